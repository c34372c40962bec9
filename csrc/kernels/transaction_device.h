// A step's fate: what CUDA threads do about it. The C++ tests run this file on the host.
#pragma once

#include "kernels/batch.h"

namespace lgreco::kernels {

[[maybe_unused]] static __global__ void settle_kernel(DeviceTransaction* transaction, uint32_t begins) {
  if (transaction->pending != 0 && transaction->flagged == 0) {
    transaction->committed ^= 1;
    ++transaction->step;
  }
  transaction->flagged = 0;
  transaction->pending = begins;
}

[[maybe_unused]] static __global__ void discard_kernel(DeviceTransaction* transaction) {
  if (transaction->pending != 0) transaction->flagged = 1;
}

template <typename Word>
__global__ void poison_kernel(const DeviceTransaction* transaction, Word* bucket, int64_t numel,
                              Word inf) {
  if (transaction->flagged == 0) return;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < numel; i += stride) {
    bucket[i] = inf;
  }
}

static __global__ void clear_bits_kernel(const Batch batch, uint32_t* words) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= batch.run_count) return;
  const int64_t bit = batch.runs[i].bit;
  atomicAnd(words + bit / 32, ~(1U << (bit % 32)));
}

}  // namespace lgreco::kernels
