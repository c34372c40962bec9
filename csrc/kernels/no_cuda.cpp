// Stands in for the CUDA kernels in a build without CUDA: every launch throws.
#include "core/error.h"
#include "kernels/batch.h"
#include "kernels/lowrank_cuda.h"
#include "kernels/lowrank_warm.h"
#include "kernels/mask_cuda.h"

namespace lgreco::kernels {
namespace {

[[noreturn]] void refuse() {
  throw Error(
      "this build of lgreco has no CUDA kernels; install again where nvcc is found, with LGRECO_CUDA=1 "
      "(python -m lgreco info says why they were left out)");
}

}  // namespace

void transaction_begin(DeviceTransaction*, CudaStream) { refuse(); }
void transaction_settle(DeviceTransaction*, CudaStream) { refuse(); }
void transaction_discard(DeviceTransaction*, CudaStream) { refuse(); }
void transaction_poison(const DeviceTransaction*, void*, DType, int64_t, CudaStream) { refuse(); }

void batch_clear_bits(const Batch&, uint8_t*, CudaStream) { refuse(); }

void batch_quantize_encode(const QuantizeSpec&, const Batch&, const void*, DType, const BatchFeedback&,
                           const DeviceTransaction*, uint64_t, uint8_t*, CudaStream) {
  refuse();
}
void batch_quantize_reduce(const QuantizeSpec&, const Batch&, const BatchPayloads&, float,
                           const BatchFeedback&, const DeviceTransaction*, uint64_t, uint8_t*,
                           CudaStream) {
  refuse();
}
void batch_quantize_decode(const QuantizeSpec&, const Batch&, const uint8_t*, void*, DType,
                           const BatchFeedback&, DeviceTransaction*, CudaStream) {
  refuse();
}

void batch_sparse_encode(const SparseSpec&, const Batch&, const void*, DType, const BatchFeedback&,
                         const DeviceTransaction*, uint64_t, uint8_t*, CudaStream) {
  refuse();
}
void batch_sparse_reduce(const SparseSpec&, const Batch&, const BatchPayloads&, float,
                         const BatchFeedback&, const DeviceTransaction*, uint64_t, uint8_t*,
                         CudaStream) {
  refuse();
}
void batch_sparse_decode(const SparseSpec&, const Batch&, const uint8_t*, void*, DType,
                         const BatchFeedback&, DeviceTransaction*, uint64_t, CudaStream) {
  refuse();
}

void batch_dense_encode(DType, const Batch&, const void*, DType, const BatchFeedback&,
                        const DeviceTransaction*, uint8_t*, CudaStream) {
  refuse();
}
void batch_dense_reduce(DType, const Batch&, const BatchPayloads&, float, const BatchFeedback&,
                        const DeviceTransaction*, uint8_t*, CudaStream) {
  refuse();
}
void batch_dense_decode(DType, const Batch&, const uint8_t*, void*, DType, const BatchFeedback&,
                        DeviceTransaction*, CudaStream) {
  refuse();
}

void warm_load(const WarmColumn*, uint32_t, const BatchFeedback&, const DeviceTransaction*, uint64_t,
               float*, CudaStream) {
  refuse();
}
void warm_store(const WarmColumn*, uint32_t, const BatchFeedback&, const DeviceTransaction*,
                const float*, const uint8_t*, CudaStream) {
  refuse();
}
void copy_bits(const BitCopy*, uint32_t, const uint8_t*, uint8_t*, CudaStream) { refuse(); }

void lowrank_batch_gather(const LowRankBatch&, const void*, DType, const BatchFeedback&,
                          DeviceTransaction*, float*, uint8_t*, CudaStream) {
  refuse();
}
void lowrank_batch_orthonormalise(const LowRankFactor*, uint32_t, float*, CudaStream) { refuse(); }
void lowrank_batch_seed(const LowRankFactor*, uint32_t, uint64_t, float*, CudaStream) { refuse(); }
void lowrank_batch_reconstruct(const LowRankBatch&, const float*, float, const float*, const uint8_t*,
                               void*, DType, const BatchFeedback&, DeviceTransaction*, CudaStream) {
  refuse();
}

void mask_device_gather(const DeviceMask&, const void*, int64_t, void*, CudaStream) { refuse(); }
void mask_device_scatter(const DeviceMask&, const void*, int64_t, void*, CudaStream) { refuse(); }
void mask_device_clear(const DeviceMask&, int64_t, void*, CudaStream) { refuse(); }
void mask_device_clear_shadow(const DeviceMask&, const BatchFeedback&, const DeviceTransaction*, int64_t,
                              CudaStream) {
  refuse();
}

}  // namespace lgreco::kernels
