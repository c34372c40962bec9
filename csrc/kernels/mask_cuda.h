// Masked layers on CUDA: the twins of mask.h, a thread an element. Without CUDA every function throws
// Error and names the build flag.
#pragma once

#include "kernels/batch.h"

namespace lgreco::kernels {

/// A layer's mask in device memory.
struct DeviceMask {
  const uint32_t* bits = nullptr;    ///< 1: kept
  const uint32_t* before = nullptr;  ///< kept elements before each word of `bits`
  int64_t numel = 0;
};

/// run[j] = the j-th kept element of `dense`.
void mask_device_gather(const DeviceMask& mask, const void* dense, int64_t element_bytes, void* run,
                        CudaStream stream);
/// `run` goes to the kept elements of `dense`, +0 to all others.
void mask_device_scatter(const DeviceMask& mask, const void* run, int64_t element_bytes, void* dense,
                         CudaStream stream);
/// +0 for the elements of `dense` that are not kept.
void mask_device_clear(const DeviceMask& mask, int64_t element_bytes, void* dense, CudaStream stream);
/// The same for the shadow of the arenas, from element `offset` on.
void mask_device_clear_shadow(const DeviceMask& mask, const BatchFeedback& arenas,
                              const DeviceTransaction* transaction, int64_t offset, CudaStream stream);

}  // namespace lgreco::kernels
