// What CUDA threads do with a masked layer: one element each. The C++ tests run this file on the host.
#pragma once

#include "kernels/mask_cuda.h"

namespace lgreco::kernels {

/// Where an element goes: its index in the run, or -1 where it is not kept.
__device__ inline int64_t run_index(const DeviceMask& mask, int64_t element) {
  const uint32_t word = mask.bits[element / 32];
  const auto lane = static_cast<unsigned>(element % 32);
  if ((word >> lane & 1U) == 0) return -1;
  return static_cast<int64_t>(mask.before[element / 32]) + __popc(word & ((1U << lane) - 1U));
}

__device__ inline int64_t first_element() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline int64_t element_stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

template <typename Element>
__global__ void mask_gather_kernel(const DeviceMask mask, const Element* dense, Element* run) {
  for (int64_t i = first_element(); i < mask.numel; i += element_stride()) {
    const int64_t index = run_index(mask, i);
    if (index >= 0) run[index] = dense[i];
  }
}

template <typename Element>
__global__ void mask_scatter_kernel(const DeviceMask mask, const Element* run, Element* dense) {
  for (int64_t i = first_element(); i < mask.numel; i += element_stride()) {
    const int64_t index = run_index(mask, i);
    dense[i] = index >= 0 ? run[index] : Element{0};
  }
}

template <typename Element>
__global__ void mask_clear_kernel(const DeviceMask mask, Element* dense) {
  for (int64_t i = first_element(); i < mask.numel; i += element_stride()) {
    if ((mask.bits[i / 32] >> (i % 32) & 1U) == 0) dense[i] = 0;
  }
}

/// Which arena is the shadow is known on the device alone.
template <typename Element>
__global__ void mask_clear_shadow_kernel(const DeviceMask mask, Element* first, Element* second,
                                         const DeviceTransaction* transaction) {
  Element* shadow = transaction->committed != 0 ? first : second;
  for (int64_t i = first_element(); i < mask.numel; i += element_stride()) {
    if ((mask.bits[i / 32] >> (i % 32) & 1U) == 0) shadow[i] = 0;
  }
}

}  // namespace lgreco::kernels
