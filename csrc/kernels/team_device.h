// The CUDA threads that share a sparse block, however large: who they are, and what they agree on.
//
// A CUDA block takes one block of the batch. Thread t holds elements t, t + kThreads, ...: in registers
// where there are few, else in local memory.
#pragma once

#include "core/error.h"
#include "kernels/lane_group.h"

namespace lgreco::kernels {

template <int kThreadsOf, int kChunksOf>
struct Team {
  static constexpr int kThreads = kThreadsOf;
  static constexpr int kChunks = kChunksOf;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kMaxNumel = kThreads * kChunks;
  static constexpr int kWords = kMaxNumel / 32;  ///< of a bitmap of the block
  static constexpr int kTileNumel = kMaxNumel < 4096 ? kMaxNumel : 4096;

  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ static int lane() { return thread() % 32; }
  __device__ static int warp() { return thread() / 32; }

  /// Calls `visit(chunk, element)` for this thread's elements of a block of `numel`, and for some beyond
  /// its end, so that all threads of a warp are always called together.
  template <typename Visit>
  __device__ static void each_element(int numel, const Visit& visit) {
    if constexpr (kChunks <= 16) {
      LGRECO_UNROLL
      for (int c = 0; c < kChunks; ++c) visit(c, c * kThreads + thread());
    } else {
      for (int c = 0; c * kThreads < numel; ++c) visit(c, c * kThreads + thread());
    }
  }

  /// The greatest of all threads' numbers. `slots`: of shared memory, one a warp.
  __device__ static uint32_t greatest(uint32_t own, uint32_t* slots) {
    for (int step = 16; step > 0; step /= 2) {
      const uint32_t other = __shfl_xor_sync(kAllLanes, own, step);
      own = other > own ? other : own;
    }
    if (lane() == 0) slots[warp()] = own;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) own = slots[w] > own ? slots[w] : own;
    __syncthreads();  // before the slots are written again
    return own;
  }

  /// The sum of the numbers of all threads before this one; `total` that of all.
  __device__ static uint32_t sum_before(uint32_t own, uint32_t* slots, uint32_t& total) {
    uint32_t sum = own;
    for (int step = 1; step < 32; step *= 2) {
      const uint32_t other = __shfl_up_sync(kAllLanes, sum, step);
      if (lane() >= step) sum += other;
    }
    if (lane() == 31) slots[warp()] = sum;
    __syncthreads();
    uint32_t before = sum - own;
    total = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp()) before += slots[w];
      total += slots[w];
    }
    __syncthreads();
    return before;
  }
};

/// Calls `launch` with the team that takes a block of `block_numel` elements.
template <typename Launch>
void with_team(int block_numel, Launch&& launch) {
  require(block_numel >= 32 && block_numel <= 65536, "block must be 32..65536, got ", block_numel);
  if (block_numel <= 512) return launch(Team<64, 8>());
  if (block_numel <= 4096) return launch(Team<256, 16>());
  return launch(Team<1024, 64>());
}

}  // namespace lgreco::kernels
