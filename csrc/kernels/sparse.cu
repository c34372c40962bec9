// Launches the CUDA kernels of sparse coding: the twins of sparse_cpu.cpp for a whole batch.
#include "core/cuda_check.h"
#include "kernels/sparse_device.h"

namespace lgreco::kernels {

void batch_sparse_encode(const SparseSpec& spec, const Batch& batch, const void* gradient, DType dtype,
                         const BatchFeedback& feedback, const DeviceTransaction* transaction,
                         uint64_t seed, uint8_t* wire, CudaStream stream) {
  if (batch.block_count == 0) return;
  const SparseCoding coding = sparse_coding_of(spec, batch, feedback, transaction, seed);
  with_team(spec.block_numel, [&]<typename Team>(Team) {
    sparse_encode_kernel<Team>
        <<<batch.block_count, Team::kThreads, 0, stream>>>(coding, gradient, dtype, wire);
  });
  check_launch("batch_sparse_encode");
}

void batch_sparse_reduce(const SparseSpec& spec, const Batch& batch, const BatchPayloads& payloads,
                         float factor, const BatchFeedback& feedback,
                         const DeviceTransaction* transaction, uint64_t seed, uint8_t* out,
                         CudaStream stream) {
  if (batch.block_count == 0) return;
  const SparseCoding coding = sparse_coding_of(spec, batch, feedback, transaction, seed);
  with_team(spec.block_numel, [&]<typename Team>(Team) {
    sparse_reduce_kernel<Team>
        <<<batch.block_count, Team::kThreads, 0, stream>>>(coding, payloads, factor, out);
  });
  check_launch("batch_sparse_reduce");
}

void batch_sparse_decode(const SparseSpec& spec, const Batch& batch, const uint8_t* wire, void* out,
                         DType dtype, const BatchFeedback& feedback, DeviceTransaction* transaction,
                         uint64_t seed, CudaStream stream) {
  if (batch.block_count == 0) return;
  const SparseCoding coding = sparse_coding_of(spec, batch, feedback, transaction, seed);
  with_team(spec.block_numel, [&]<typename Team>(Team) {
    sparse_decode_kernel<Team>
        <<<batch.block_count, Team::kThreads, 0, stream>>>(coding, wire, out, dtype, transaction);
  });
  check_launch("batch_sparse_decode");
}

}  // namespace lgreco::kernels
