// Warm starts and layers' bits: what CUDA threads do. The C++ tests run this file on the host.
#pragma once

#include "kernels/batch_device.h"
#include "kernels/lowrank_math.h"
#include "kernels/lowrank_warm.h"

namespace lgreco::kernels {

inline constexpr int kColumnThreads = 256;

__device__ inline const float* committed_column(const BatchFeedback& arenas,
                                                const DeviceTransaction* transaction,
                                                const WarmColumn& column) {
  const void* arena = transaction->committed != 0 ? arenas.arenas[1] : arenas.arenas[0];
  return static_cast<const float*>(arena) + column.warm_offset;
}

static __global__ void __launch_bounds__(kColumnThreads)
    warm_load_kernel(const WarmColumn* columns, const BatchFeedback arenas,
                     const DeviceTransaction* transaction, uint64_t seed, float* memory) {
  const WarmColumn column = columns[blockIdx.x];
  const float* const committed = committed_column(arenas, transaction, column);
  float* const to = memory + column.memory_offset;
  __shared__ uint32_t largest;  // magnitude's bits, in the order of the numbers
  if (threadIdx.x == 0) largest = 0;
  __syncthreads();
  uint32_t own = 0;
  for (int i = static_cast<int>(threadIdx.x); i < column.length; i += kColumnThreads) {
    const uint32_t magnitude = bits_of(committed[i]) & 0x7FFFFFFFU;
    own = own > magnitude ? own : magnitude;
  }
  atomicMax(&largest, own);
  __syncthreads();
  if (largest != 0) {
    const float scale = unit_scale(largest);
    for (int i = static_cast<int>(threadIdx.x); i < column.length; i += kColumnThreads) {
      to[i] = committed[i] * scale;
    }
    return;
  }
  for (int i = static_cast<int>(threadIdx.x); i < column.length; i += kColumnThreads) {
    to[i] = seed_value(seed + transaction->step, column.layer, static_cast<uint32_t>(column.column),
                       static_cast<uint32_t>(i));
  }
}

static __global__ void __launch_bounds__(kColumnThreads)
    warm_store_kernel(const WarmColumn* columns, const BatchFeedback arenas,
                      const DeviceTransaction* transaction, const float* memory, const uint8_t* bits) {
  const WarmColumn column = columns[blockIdx.x];
  const bool fresh = column.bit >= 0 && bit_at(bits, column.bit);
  const float* const from =
      fresh ? memory + column.memory_offset : committed_column(arenas, transaction, column);
  void* shadow = transaction->committed != 0 ? arenas.arenas[0] : arenas.arenas[1];
  float* const to = static_cast<float*>(shadow) + column.warm_offset;
  for (int i = static_cast<int>(threadIdx.x); i < column.length; i += kColumnThreads) to[i] = from[i];
}

static __global__ void copy_bits_kernel(const BitCopy* copies, uint32_t count, const uint8_t* from,
                                        uint32_t* to) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const BitCopy copy = copies[i];
  const uint32_t mask = 1U << (copy.to % 32);
  if (bit_at(from, copy.from)) {
    atomicOr(to + copy.to / 32, mask);
  } else {
    atomicAnd(to + copy.to / 32, ~mask);
  }
}

}  // namespace lgreco::kernels
