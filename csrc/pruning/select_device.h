// What CUDA threads do with scores. A CUDA block takes one tile after the other; thread t holds elements
// t, t + kThreads, ... of a tile. The C++ tests run this file on the host.
#pragma once

#include "kernels/team_device.h"
#include "pruning/select_passes.h"

namespace lgreco::pruning {

using SelectTeam = kernels::Team<256, 16>;
inline constexpr int kTile = SelectTeam::kMaxNumel;
inline constexpr int kCudaDigitBits = 11;  ///< so that the counts fit in shared memory

LGRECO_HD int64_t tiles_of(int64_t numel) { return (numel + kTile - 1) / kTile; }

/// As Findings, of all arrays; what is inside may be more than was collected.
struct DeviceFindings {
  unsigned long long from_high, inside;
  unsigned long long
      first_nan;  ///< element of all arrays as one, the greatest number where there is none
};

template <Order order>
__global__ void __launch_bounds__(SelectTeam::kThreads)
    select_sample_kernel(const SampleLine* lines, int64_t count, int32_t* keys) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * SelectTeam::kThreads + SelectTeam::thread();
  if (i < count * kLineNumel) keys[i] = key_of<order>(sampled(lines[i / kLineNumel], i % kLineNumel));
}

/// `before`: elements of the arrays before this one. Keys are collected in any order.
template <Order order>
__global__ void __launch_bounds__(SelectTeam::kThreads)
    select_scan_kernel(const Scores scores, int64_t before, const Bracket bracket, int64_t most,
                       DeviceFindings* found, int32_t* collected) {
  __shared__ uint32_t slots[SelectTeam::kWarps];
  __shared__ unsigned long long place;
  uint32_t from_high = 0, total = 0;
  for (int64_t tile = blockIdx.x; tile < tiles_of(scores.numel); tile += gridDim.x) {
    int32_t keys[SelectTeam::kChunks];
    uint32_t inside = 0;
    LGRECO_UNROLL
    for (int c = 0; c < SelectTeam::kChunks; ++c) {
      const int64_t i = tile * kTile + c * SelectTeam::kThreads + SelectTeam::thread();
      keys[c] = bracket.low;  // which is not inside
      if (i >= scores.numel) continue;
      const float score = scores.values[i];
      if (is_nan(score)) atomicMin(&found->first_nan, static_cast<unsigned long long>(before + i));
      keys[c] = key_of<order>(score);
      from_high += keys[c] >= bracket.high;
      inside += in_bracket(bracket, keys[c]);
    }
    const uint32_t own = SelectTeam::sum_before(inside, slots, total);
    if (total == 0) continue;
    if (SelectTeam::thread() == 0) place = atomicAdd(&found->inside, total);
    __syncthreads();
    auto to = static_cast<int64_t>(place) + own;
    LGRECO_UNROLL
    for (int c = 0; c < SelectTeam::kChunks; ++c) {
      if (!in_bracket(bracket, keys[c])) continue;
      if (to < most) collected[to] = keys[c];
      ++to;
    }
    __syncthreads();  // before the place is written again
  }
  SelectTeam::sum_before(from_high, slots, total);
  if (SelectTeam::thread() == 0 && total > 0) atomicAdd(&found->from_high, total);
}

/// What among_collected() gives, of keys in descending order: one thread.
inline __global__ void select_among_kernel(const int32_t* descending, int64_t wanted, int32_t* key,
                                           int64_t* above) {
  *key = descending[wanted - 1];
  int64_t low = 0, high = wanted - 1;  // the first one that is not greater is in [low, high]
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (descending[middle] > *key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  *above = low;
}

template <Order order>
__global__ void __launch_bounds__(SelectTeam::kThreads)
    select_count_kernel(const Scores scores, const Digit digit, unsigned long long* counts) {
  __shared__ uint32_t own[1 << kCudaDigitBits];
  for (int i = SelectTeam::thread(); i < 1 << digit.bits; i += SelectTeam::kThreads) own[i] = 0;
  __syncthreads();
  const int64_t stride = static_cast<int64_t>(gridDim.x) * SelectTeam::kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * SelectTeam::kThreads + SelectTeam::thread();
       i < scores.numel; i += stride) {
    const int32_t value = digit_of(digit, key_of<order>(scores.values[i]));
    if (value >= 0) atomicAdd(&own[value], uint32_t{1});
  }
  __syncthreads();
  for (int i = SelectTeam::thread(); i < 1 << digit.bits; i += SelectTeam::kThreads) {
    if (own[i] > 0) atomicAdd(&counts[i], static_cast<unsigned long long>(own[i]));
  }
}

/// How many scores of each tile have the threshold's key.
template <Order order>
__global__ void __launch_bounds__(SelectTeam::kThreads)
    select_ties_kernel(const Scores scores, int32_t threshold, int64_t* of_tiles) {
  __shared__ uint32_t slots[SelectTeam::kWarps];
  for (int64_t tile = blockIdx.x; tile < tiles_of(scores.numel); tile += gridDim.x) {
    uint32_t own = 0, total = 0;
    LGRECO_UNROLL
    for (int c = 0; c < SelectTeam::kChunks; ++c) {
      const int64_t i = tile * kTile + c * SelectTeam::kThreads + SelectTeam::thread();
      if (i < scores.numel) own += key_of<order>(scores.values[i]) == threshold;
    }
    SelectTeam::sum_before(own, slots, total);
    if (SelectTeam::thread() == 0) of_tiles[tile] = total;
  }
}

/// As mark_kept(). `ties_before`: equal scores before each tile and, last, all of them; null: no tie is
/// kept.
template <Order order>
__global__ void __launch_bounds__(SelectTeam::kThreads)
    select_mark_kernel(const Scores scores, int32_t threshold, int64_t ties, const int64_t* ties_before,
                       uint8_t* kept, float* weights) {
  __shared__ uint32_t slots[SelectTeam::kWarps];
  for (int64_t tile = blockIdx.x; tile < tiles_of(scores.numel); tile += gridDim.x) {
    // Ties that are still to be kept, here and behind; all of this tile's are, or some in order, or
    // none.
    int64_t left = ties_before == nullptr ? 0 : ties - ties_before[tile];
    const bool all = left > 0 && left >= ties_before[tile + 1] - ties_before[tile];
    LGRECO_UNROLL
    for (int c = 0; c < SelectTeam::kChunks; ++c) {
      const int64_t i = tile * kTile + c * SelectTeam::kThreads + SelectTeam::thread();
      const bool there = i < scores.numel;
      const int32_t key = there ? key_of<order>(scores.values[i]) : threshold;
      const bool tied = there && key == threshold;
      bool keep = key > threshold || (tied && all);
      if (!all && left > 0) {
        uint32_t total = 0;
        const uint32_t before = SelectTeam::sum_before(tied ? 1 : 0, slots, total);
        keep |= tied && before < left;
        left -= total;
      }
      if (!there) continue;
      kept[i] = keep ? 1 : 0;
      if (weights != nullptr && !keep) weights[i] = 0.0F;
    }
  }
}

}  // namespace lgreco::pruning
