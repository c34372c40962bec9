// Launches the CUDA kernels of masked layers.
#include <algorithm>

#include "core/cuda_check.h"
#include "kernels/mask_device.h"

namespace lgreco::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMostBlocks = 1 << 20;  // threads take further elements in turn

unsigned blocks_for(int64_t numel) {
  return static_cast<unsigned>(std::min((numel + kThreads - 1) / kThreads, kMostBlocks));
}

}  // namespace

void mask_device_gather(const DeviceMask& mask, const void* dense, int64_t element_bytes, void* run,
                        CudaStream stream) {
  if (mask.numel == 0) return;
  if (element_bytes == 2) {
    mask_gather_kernel<<<blocks_for(mask.numel), kThreads, 0, stream>>>(
        mask, static_cast<const uint16_t*>(dense), static_cast<uint16_t*>(run));
  } else {
    mask_gather_kernel<<<blocks_for(mask.numel), kThreads, 0, stream>>>(
        mask, static_cast<const uint32_t*>(dense), static_cast<uint32_t*>(run));
  }
  check_launch("mask_device_gather");
}

void mask_device_scatter(const DeviceMask& mask, const void* run, int64_t element_bytes, void* dense,
                         CudaStream stream) {
  if (mask.numel == 0) return;
  if (element_bytes == 2) {
    mask_scatter_kernel<<<blocks_for(mask.numel), kThreads, 0, stream>>>(
        mask, static_cast<const uint16_t*>(run), static_cast<uint16_t*>(dense));
  } else {
    mask_scatter_kernel<<<blocks_for(mask.numel), kThreads, 0, stream>>>(
        mask, static_cast<const uint32_t*>(run), static_cast<uint32_t*>(dense));
  }
  check_launch("mask_device_scatter");
}

void mask_device_clear(const DeviceMask& mask, int64_t element_bytes, void* dense, CudaStream stream) {
  if (mask.numel == 0) return;
  if (element_bytes == 2) {
    mask_clear_kernel<<<blocks_for(mask.numel), kThreads, 0, stream>>>(mask,
                                                                       static_cast<uint16_t*>(dense));
  } else {
    mask_clear_kernel<<<blocks_for(mask.numel), kThreads, 0, stream>>>(mask,
                                                                       static_cast<uint32_t*>(dense));
  }
  check_launch("mask_device_clear");
}

void mask_device_clear_shadow(const DeviceMask& mask, const BatchFeedback& arenas,
                              const DeviceTransaction* transaction, int64_t offset, CudaStream stream) {
  if (mask.numel == 0 || arenas.arenas[0] == nullptr) return;
  const auto clear = [&](auto* first, auto* second) {
    mask_clear_shadow_kernel<<<blocks_for(mask.numel), kThreads, 0, stream>>>(
        mask, first + offset, second + offset, transaction);
  };
  if (arenas.dtype == DType::kFloat32) {
    clear(static_cast<uint32_t*>(arenas.arenas[0]), static_cast<uint32_t*>(arenas.arenas[1]));
  } else {
    clear(static_cast<uint16_t*>(arenas.arenas[0]), static_cast<uint16_t*>(arenas.arenas[1]));
  }
  check_launch("mask_device_clear_shadow");
}

}  // namespace lgreco::kernels
