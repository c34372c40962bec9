// CUDA kernels over a batch: many runs of one codec in one launch, every pointer in device memory.
//
// The twins of quantize.h, sparse.h and dense.h for a whole bucket. Which arena is committed, the step
// and the loss scale are read on the device, so the host never waits. A launch is in stream order and
// throws Error where it is refused; without CUDA every function throws Error and names the build flag.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/error.h"
#include "core/types.h"
#include "kernels/quantize.h"
#include "kernels/sparse.h"

struct CUstream_st;

namespace lgreco::kernels {

/// CUDA's cudaStream_t, named so that files without CUDA's headers can pass it on.
using CudaStream = CUstream_st*;

/// Where a run lies. Offsets count from the base pointers of a launch.
struct BatchRun {
  int64_t gradient_offset = 0;   ///< elements into the bucket
  int64_t residual_offset = -1;  ///< elements into the arenas; -1: no error feedback for this run
  int64_t wire_offset = 0;       ///< bytes, a multiple of 4
  int64_t bit = 0;               ///< the run's nonzero bit, counted from the wire's first bit
  int32_t numel = 0;
  uint32_t first_block = 0;  ///< index within the layer of the run's first block, for the noise
  uint32_t stream = 0;       ///< of the noise; see engine/plan.h
  uint32_t batch_block = 0;  ///< index within the batch of the run's first block: number_blocks()
};
static_assert(sizeof(BatchRun) == 48);

/// Sets every run's batch_block. Returns the run of each of the batch's blocks, which is what a CUDA
/// block asks first. Both arrays go to the device once per layout.
inline std::vector<uint32_t> number_blocks(std::vector<BatchRun>& runs, int block_numel) {
  require(block_numel >= 32 && block_numel <= 65536 && block_numel % 32 == 0,
          "block must be a multiple of 32 from 32 to 65536, got ", block_numel);
  std::vector<uint32_t> block_runs;
  for (size_t i = 0; i < runs.size(); ++i) {
    require(runs[i].numel >= 0, "numel of run ", i, " must be at least 0, got ", runs[i].numel);
    require(runs[i].wire_offset >= 0 && runs[i].wire_offset % 4 == 0, "wire offset of run ", i,
            " must be a multiple of 4, got ", runs[i].wire_offset);
    runs[i].batch_block = static_cast<uint32_t>(block_runs.size());
    const int blocks = (runs[i].numel + block_numel - 1) / block_numel;
    block_runs.insert(block_runs.end(), blocks, static_cast<uint32_t>(i));
  }
  return block_runs;
}

/// Runs of one codec, in device memory.
struct Batch {
  const BatchRun* runs = nullptr;
  const uint32_t* block_runs = nullptr;  ///< as number_blocks() returns them
  uint32_t run_count = 0;
  uint32_t block_count = 0;
  int32_t block_numel = 512;  ///< of the codec; elements that one group of threads takes
};

/// A step in device memory: what the last one left behind and what becomes of this one.
struct DeviceTransaction {
  uint32_t committed = 0;  ///< index of the committed residual arena, 0 or 1; the other is the shadow
  uint32_t step = 0;       ///< committed steps so far, low 32 bits: the noise's counter
  uint32_t flagged = 0;    ///< the step will be dropped: inf or NaN was decoded, or discarded
  uint32_t pending = 0;    ///< a step is under way or waits to be committed
};
static_assert(sizeof(DeviceTransaction) == 16);

/// Error feedback of a batch. Arenas null: none.
struct BatchFeedback {
  void* arenas[2] = {nullptr, nullptr};
  DType dtype = DType::kFloat32;  ///< fp32 or bf16
  const float* scale = nullptr;   ///< loss scale of the gradients, in device memory; null: 1
};

/// The payloads of all ranks that an owner sums. A run's wire_offset and bit count from each one.
struct BatchPayloads {
  const uint8_t* inbox = nullptr;  ///< rank r's payload begins at inbox + r * stride_bytes
  int64_t stride_bytes = 0;
  int32_t count = 0;      ///< ranks
  int32_t own_rank = -1;  ///< this rank's payload is `own` instead; -1: it is in the inbox
  const uint8_t* own = nullptr;
};

/// Commits the last step unless it was flagged, and begins a step.
void transaction_begin(DeviceTransaction* transaction, CudaStream stream);
/// Commits the last step unless it was flagged, and begins none.
void transaction_settle(DeviceTransaction* transaction, CudaStream stream);
/// The pending step will be dropped instead of committed.
void transaction_discard(DeviceTransaction* transaction, CudaStream stream);
/// Fills a bucket with inf if the step is flagged.
void transaction_poison(const DeviceTransaction* transaction, void* bucket, DType dtype, int64_t numel,
                        CudaStream stream);

/// Clears the runs' nonzero bits; before encoding, because encoding only ever sets bits.
void batch_clear_bits(const Batch& batch, uint8_t* wire, CudaStream stream);

/// Codes gradient + residual of every run into `wire`, leaves the errors in the shadow arena and sets
/// the bits of runs whose gradient has a nonzero element.
void batch_quantize_encode(const QuantizeSpec& spec, const Batch& batch, const void* gradient,
                           DType dtype, const BatchFeedback& feedback,
                           const DeviceTransaction* transaction, uint64_t seed, uint8_t* wire,
                           CudaStream stream);

/// Codes factor * (sum of the decoded payloads, in rank order) + owner residual of every run into
/// `out`, which may be `own`, and sets the bits of runs that are nonzero on some rank. A run that is
/// zero on every rank is not coded and keeps its residual.
void batch_quantize_reduce(const QuantizeSpec& spec, const Batch& batch, const BatchPayloads& payloads,
                           float factor, const BatchFeedback& feedback,
                           const DeviceTransaction* transaction, uint64_t seed, uint8_t* out,
                           CudaStream stream);

/// Decodes every run over `out` and flags the step where the result holds an inf or NaN. A run whose
/// bit is clear becomes zeros and keeps its residual (`feedback` is the one that encode was given).
void batch_quantize_decode(const QuantizeSpec& spec, const Batch& batch, const uint8_t* wire, void* out,
                           DType dtype, const BatchFeedback& feedback, DeviceTransaction* transaction,
                           CudaStream stream);

/// The same three for sparse blocks.
void batch_sparse_encode(const SparseSpec& spec, const Batch& batch, const void* gradient, DType dtype,
                         const BatchFeedback& feedback, const DeviceTransaction* transaction,
                         uint64_t seed, uint8_t* wire, CudaStream stream);
void batch_sparse_reduce(const SparseSpec& spec, const Batch& batch, const BatchPayloads& payloads,
                         float factor, const BatchFeedback& feedback,
                         const DeviceTransaction* transaction, uint64_t seed, uint8_t* out,
                         CudaStream stream);
void batch_sparse_decode(const SparseSpec& spec, const Batch& batch, const uint8_t* wire, void* out,
                         DType dtype, const BatchFeedback& feedback, DeviceTransaction* transaction,
                         uint64_t seed, CudaStream stream);

/// The same three for the dense wire.
void batch_dense_encode(DType wire_dtype, const Batch& batch, const void* gradient, DType dtype,
                        const BatchFeedback& feedback, const DeviceTransaction* transaction,
                        uint8_t* wire, CudaStream stream);
void batch_dense_reduce(DType wire_dtype, const Batch& batch, const BatchPayloads& payloads,
                        float factor, const BatchFeedback& feedback,
                        const DeviceTransaction* transaction, uint8_t* out, CudaStream stream);
void batch_dense_decode(DType wire_dtype, const Batch& batch, const uint8_t* wire, void* out,
                        DType dtype, const BatchFeedback& feedback, DeviceTransaction* transaction,
                        CudaStream stream);

}  // namespace lgreco::kernels
