// The CUDA threads that share one block of a batch: who they are, and what they agree on.
//
// A block's elements stay in registers: kLanes threads hold kChunks octets each. Small blocks share a
// warp; blocks of more than 512 elements take a CUDA block of their own.
#pragma once

#include "core/error.h"
#include "kernels/batch.h"
#include "kernels/octet.h"

#ifdef __CUDACC__
#define LGRECO_UNROLL _Pragma("unroll")
#else
#define LGRECO_UNROLL
#endif

namespace lgreco::kernels {

inline constexpr unsigned kAllLanes = 0xFFFFFFFFU;

/// What the threads of a group know of their elements, and then of the block's.
struct Extent {
  float low;       ///< least element
  float high;      ///< greatest element
  uint32_t marks;  ///< or-ed facts
};

template <int kLanesOf, int kChunksOf>
struct LaneGroup {
  static constexpr int kLanes = kLanesOf;
  static constexpr int kChunks = kChunksOf;
  static constexpr int kThreads = kLanes > 32 ? kLanes : 256;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kWidth = kLanes < 32 ? kLanes : 32;
  static constexpr bool kSpansWarps = kLanes > 32;

  static unsigned grid(uint32_t blocks) {
    constexpr uint32_t kGroups = kThreads / kLanes;
    return (blocks + kGroups - 1) / kGroups;
  }

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kLanes; }
  __device__ static uint32_t block() { return blockIdx.x * (kThreads / kLanes) + threadIdx.x / kLanes; }
  /// Octet that this thread holds in chunk `c`.
  __device__ static int octet(int c) { return c * kLanes + lane(); }

  /// Minimum, maximum and the marks of all threads of the group. At most once a kernel: the shared
  /// memory behind it is not reused.
  __device__ static Extent agree(Extent own) {
    for (int step = kWidth / 2; step > 0; step /= 2) {
      own = merge(own,
                  {__shfl_xor_sync(kAllLanes, own.low, step), __shfl_xor_sync(kAllLanes, own.high, step),
                   __shfl_xor_sync(kAllLanes, own.marks, step)});
    }
    if constexpr (kSpansWarps) {
      __shared__ Extent of_warp[kWarps];
      if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = own;
      __syncthreads();
      own = of_warp[0];
      for (int warp = 1; warp < kWarps; ++warp) own = merge(own, of_warp[warp]);
    }
    return own;
  }

 private:
  __device__ static Extent merge(const Extent& a, const Extent& b) {
    return {fminf(a.low, b.low), fmaxf(a.high, b.high), a.marks | b.marks};
  }
};

/// Whether `fact` holds in one of the `width` (a power of two up to 32) neighbours of each thread.
__device__ inline bool any_of(int width, bool fact) {
  const unsigned found = __ballot_sync(kAllLanes, fact);
  const int first = static_cast<int>(threadIdx.x) % 32 / width * width;
  return (found >> first & (kAllLanes >> (32 - width))) != 0;
}

/// Where threads need nothing of each other, 2^lanes_log2_of() of them take a block's octets in turn,
/// two each in a whole block.
inline int lanes_log2_of(int block_numel) {
  int log2 = 1;
  while (log2 < 5 && (2 * kOctet << log2) < block_numel) ++log2;
  return log2;
}
inline constexpr int kFlatThreads = 256;

inline unsigned flat_grid(const Batch& batch, int lanes_log2) {
  const uint64_t threads = static_cast<uint64_t>(batch.block_count) << lanes_log2;
  return static_cast<unsigned>((threads + kFlatThreads - 1) / kFlatThreads);
}

/// Calls `launch` with the group that holds a block of `block_numel` elements.
template <typename Launch>
void with_group(int block_numel, Launch&& launch) {
  require(block_numel >= 32 && block_numel <= 4096, "block must be 32..4096, got ", block_numel);
  if (block_numel <= 64) return launch(LaneGroup<8, 1>());
  if (block_numel <= 128) return launch(LaneGroup<16, 1>());
  if (block_numel <= 256) return launch(LaneGroup<32, 1>());
  if (block_numel <= 512) return launch(LaneGroup<32, 2>());
  if (block_numel <= 1024) return launch(LaneGroup<64, 2>());
  if (block_numel <= 2048) return launch(LaneGroup<128, 2>());
  return launch(LaneGroup<256, 2>());
}

}  // namespace lgreco::kernels
