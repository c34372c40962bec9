// Launches the CUDA kernels of the low-rank codec: the twins of lowrank_cpu.cpp for a whole batch.
#include "core/cuda_check.h"
#include "kernels/lowrank_basis_device.h"
#include "kernels/lowrank_device.h"

namespace lgreco::kernels {

void lowrank_batch_gather(const LowRankBatch& batch, const void* gradient, DType dtype,
                          const BatchFeedback& feedback, DeviceTransaction* transaction,
                          float* workspace, uint8_t* wire, CudaStream stream) {
  if (batch.tile_count == 0) return;
  lowrank_gather_kernel<<<batch.tile_count, kTileThreads, 0, stream>>>(batch, gradient, dtype, feedback,
                                                                       transaction, workspace, wire);
  check_launch("lowrank_batch_gather");
}

void lowrank_batch_orthonormalise(const LowRankFactor* factors, uint32_t count, float* arena,
                                  CudaStream stream) {
  if (count == 0) return;
  lowrank_orthonormalise_kernel<<<count, kBasisThreads, 0, stream>>>(factors, arena);
  check_launch("lowrank_batch_orthonormalise");
}

void lowrank_batch_seed(const LowRankFactor* factors, uint32_t count, uint64_t seed, float* arena,
                        CudaStream stream) {
  if (count == 0) return;
  lowrank_seed_kernel<<<count, kTileThreads, 0, stream>>>(factors, seed, arena);
  check_launch("lowrank_batch_seed");
}

void lowrank_batch_reconstruct(const LowRankBatch& batch, const float* factors, float factor,
                               const float* workspace, const uint8_t* wire, void* out, DType dtype,
                               const BatchFeedback& feedback, DeviceTransaction* transaction,
                               CudaStream stream) {
  if (batch.tile_count == 0) return;
  const Rebuilding rebuilding{batch, factors, factor, workspace, wire, feedback};
  lowrank_reconstruct_kernel<<<batch.tile_count, kTileThreads, 0, stream>>>(rebuilding, out, dtype,
                                                                            transaction);
  check_launch("lowrank_batch_reconstruct");
}

}  // namespace lgreco::kernels
