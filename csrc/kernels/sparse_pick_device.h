// Which elements of a block are sent: what the CUDA threads of a team find out together.
//
// The k-th largest magnitude is found by its digits of 11, 10 and 10 bits: a histogram of each digit
// among the magnitudes that share the digits before it.
#pragma once

#include "kernels/sparse_math.h"
#include "kernels/team_device.h"

namespace lgreco::kernels {

/// What a team shares while it codes a block. About 36 KiB for the largest one.
template <class Team>
struct SparseShared {
  static constexpr int kBins = 2048;

  float tile[Team::kTileNumel];     ///< sums of some elements, or some of the kept values
  uint32_t selected[Team::kWords];  ///< bitmap of the kept elements
  uint16_t before[Team::kWords];    ///< how many of them stand before each word of it
  union {                           ///< one after the other
    uint32_t histogram[kBins];
    uint32_t equal[Team::kWords];  ///< bitmap of the elements of the least kept magnitude
    uint32_t code[Team::kWords];   ///< index code
  };
  uint32_t slots[32];
  uint32_t digit, wanted;
};

/// The least kept magnitude, and how many elements that have it are kept.
struct Threshold {
  uint32_t magnitude;
  uint32_t ties;
};

/// Finds the digit in which the magnitude number `wanted` from above lies, and which number it has among
/// those that share it.
template <class Team>
__device__ void find_digit(int bins, uint32_t wanted, SparseShared<Team>& shared) {
  // Threads take bins from above, the first thread the highest.
  const int share = (bins + Team::kThreads - 1) / Team::kThreads;
  const int high = bins - Team::thread() * share, low = high - share > 0 ? high - share : 0;
  uint32_t own = 0;
  for (int bin = low; bin < high; ++bin) own += shared.histogram[bin];
  uint32_t total;
  uint32_t above = Team::sum_before(own, shared.slots, total);
  if (above < wanted && wanted <= above + own) {
    int bin = high - 1;
    for (; above + shared.histogram[bin] < wanted; --bin) above += shared.histogram[bin];
    shared.digit = static_cast<uint32_t>(bin);
    shared.wanted = wanted - above;
  }
  __syncthreads();
}

template <class Team>
__device__ Threshold find_threshold(const SparseShape& shape, const float (&values)[Team::kChunks],
                                    SparseShared<Team>& shared) {
  uint32_t known = 0, known_bits = 0, wanted = static_cast<uint32_t>(shape.kept);
  for (int shift = 20; shift >= 0; shift -= 10) {
    const uint32_t bins = shift == 20 ? 2048 : 1024;
    for (int bin = Team::thread(); bin < static_cast<int>(bins); bin += Team::kThreads) {
      shared.histogram[bin] = 0;
    }
    __syncthreads();
    Team::each_element(shape.numel, [&](int c, int i) {
      const uint32_t magnitude = magnitude_of(values[c]);
      if (i < shape.numel && (magnitude & known_bits) == known) {
        atomicAdd(&shared.histogram[magnitude >> shift & (bins - 1)], 1U);
      }
    });
    __syncthreads();
    find_digit<Team>(static_cast<int>(bins), wanted, shared);
    known |= shared.digit << shift;
    known_bits |= (bins - 1) << shift;
    wanted = shared.wanted;
  }
  return {known, wanted};
}

/// The lowest `count` of a word's bits that are set.
__device__ inline uint32_t lowest_bits(uint32_t word, uint32_t count) {
  uint32_t rest = word;
  for (; count > 0 && rest != 0; --count) rest &= rest - 1;
  return word & ~rest;
}

/// Adds the first `ties` of shared.equal to shared.selected and counts what stands before each word.
template <class Team>
__device__ void complete_selection(int numel, uint32_t ties, SparseShared<Team>& shared) {
  const int words = (numel + 31) / 32;
  uint32_t carried = 0;
  for (int first = 0; first < words; first += Team::kThreads) {
    const int word = first + Team::thread();
    const uint32_t selected = word < words ? shared.selected[word] : 0U;
    const uint32_t equal = word < words ? shared.equal[word] : 0U;
    // Both counts in one sum. Equal ones stand above, where only the last word's may overflow.
    const uint32_t own =
        static_cast<uint32_t>(__popc(equal)) << 16 | static_cast<uint32_t>(__popc(selected));
    uint32_t total;
    const uint32_t before = carried + Team::sum_before(own, shared.slots, total);
    carried += total;
    if (word >= words) continue;
    const uint32_t tied = before >> 16 < ties ? before >> 16 : ties;
    shared.selected[word] = selected | lowest_bits(equal, ties - tied);
    shared.before[word] = static_cast<uint16_t>((before & 0xFFFF) + tied);
  }
  __syncthreads();
}

template <class Team>
__device__ void select_largest(const SparseShape& shape, const float (&values)[Team::kChunks],
                               SparseShared<Team>& shared) {
  const Threshold least = find_threshold<Team>(shape, values, shared);
  Team::each_element(shape.numel, [&](int c, int i) {
    const bool there = i < shape.numel;
    const uint32_t magnitude = magnitude_of(values[c]);
    const uint32_t greater = __ballot_sync(kAllLanes, there && magnitude > least.magnitude);
    const uint32_t equal = __ballot_sync(kAllLanes, there && magnitude == least.magnitude);
    if (Team::lane() != 0 || !there) return;
    shared.selected[i / 32] = greater;
    shared.equal[i / 32] = equal;
  });
  __syncthreads();
  complete_selection<Team>(shape.numel, least.ties, shared);
}

/// Of a block that cannot be delivered: the first elements.
template <class Team>
__device__ void select_first(const SparseShape& shape, SparseShared<Team>& shared) {
  for (int word = Team::thread(); word * 32 < shape.numel; word += Team::kThreads) {
    const int before = word * 32 < shape.kept ? word * 32 : shape.kept;
    shared.selected[word] = lowest_bits(kAllLanes, static_cast<uint32_t>(shape.kept - before));
    shared.before[word] = static_cast<uint16_t>(before);
  }
  __syncthreads();
}

/// Calls `visit(number, element)` for the elements that randomk draws.
template <class Team, typename Visit>
__device__ void each_drawn(const SparseShape& shape, const Noise& noise, uint32_t block,
                           const Visit& visit) {
  const auto numel = static_cast<uint32_t>(shape.numel), kept = static_cast<uint32_t>(shape.kept);
  for (uint32_t four = threadIdx.x; four * 4 < kept; four += Team::kThreads) {
    const Philox4 draws = stratum_draws(noise, block, four);
    LGRECO_UNROLL
    for (uint32_t w = 0; w < 4; ++w) {
      const uint32_t j = four * 4 + w;
      if (j < kept) {
        visit(static_cast<int>(j), static_cast<int>(stratum_element(numel, kept, j, draws.word[w])));
      }
    }
  }
}

template <class Team>
__device__ void select_drawn(const SparseShape& shape, const Noise& noise, uint32_t block,
                             SparseShared<Team>& shared) {
  for (int word = Team::thread(); word * 32 < shape.numel; word += Team::kThreads) {
    shared.selected[word] = shared.equal[word] = 0;
  }
  __syncthreads();
  each_drawn<Team>(shape, noise, block, [&](int, int element) {
    atomicOr(&shared.selected[element / 32], 1U << (element % 32));
  });
  __syncthreads();
  complete_selection<Team>(shape.numel, 0, shared);
}

template <class Team>
__device__ bool is_selected(const SparseShared<Team>& shared, int numel, int element) {
  return element < numel && (shared.selected[element / 32] >> (element % 32) & 1U) != 0;
}

/// Which of the kept elements a selected one is.
template <class Team>
__device__ int number_of(const SparseShared<Team>& shared, int element) {
  const uint32_t below = shared.selected[element / 32] & ((1U << (element % 32)) - 1U);
  return shared.before[element / 32] + __popc(below);
}

}  // namespace lgreco::kernels
