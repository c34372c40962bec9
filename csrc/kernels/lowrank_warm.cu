// Launches the CUDA kernels around the low-rank exchange.
#include "core/cuda_check.h"
#include "kernels/lowrank_warm_device.h"

namespace lgreco::kernels {

void warm_load(const WarmColumn* columns, uint32_t count, const BatchFeedback& arenas,
               const DeviceTransaction* transaction, uint64_t seed, float* memory, CudaStream stream) {
  if (count == 0) return;
  warm_load_kernel<<<count, kColumnThreads, 0, stream>>>(columns, arenas, transaction, seed, memory);
  check_launch("warm_load");
}

void warm_store(const WarmColumn* columns, uint32_t count, const BatchFeedback& arenas,
                const DeviceTransaction* transaction, const float* memory, const uint8_t* bits,
                CudaStream stream) {
  if (count == 0) return;
  warm_store_kernel<<<count, kColumnThreads, 0, stream>>>(columns, arenas, transaction, memory, bits);
  check_launch("warm_store");
}

void copy_bits(const BitCopy* copies, uint32_t count, const uint8_t* from, uint8_t* to,
               CudaStream stream) {
  if (count == 0) return;
  constexpr uint32_t kThreads = 128;
  copy_bits_kernel<<<(count + kThreads - 1) / kThreads, kThreads, 0, stream>>>(
      copies, count, from, reinterpret_cast<uint32_t*>(to));
  check_launch("copy_bits");
}

}  // namespace lgreco::kernels
