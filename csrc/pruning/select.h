// Which weights are kept: exactly the `kept` elements of greatest score over any number of arrays, of
// equal scores those of lowest index, without sorting.
//
// A sample of cache lines gives a bracket that holds the wanted score almost surely; one pass counts
// what lies above it and collects the few elements inside, among which the score is found exactly. Where
// the bracket misses, or too much lies in it, two passes of counting by 16 bits find the score.
#pragma once

#include <cstdint>
#include <vector>

namespace lgreco::pruning {

/// What is compared: |score| or the score itself.
enum class Order : uint8_t { kMagnitude, kValue };

struct Scores {
  const float* values;
  int64_t numel;
};

/// The elements whose key is greater than `key` are kept, and of those that have it the first `ties`.
/// A key orders as its score does: see select_math.h.
struct Threshold {
  int32_t key = 0;
  int64_t ties = 0;
  int64_t collected = 0;  ///< elements inside the bracket; 0 where it was not used
  bool counted = false;   ///< found by counting, because the bracket missed
};

/// Finds what keeps `kept` elements of all `arrays`, which count as one, in their order. On CUDA:
/// select_cuda.h.
/// Throws ValueError for a NaN, naming its array and element, and for `kept` outside 0..all.
Threshold find_threshold(const std::vector<Scores>& arrays, int64_t kept, Order order);

/// Writes 1 for each kept element and 0 for each other one to `kept`; the scores hold no NaN.
/// `ties`: equal ones that may still be kept; returns what is left of them, for the next array.
/// Where `weights` is not null, those that are not kept become 0 (it may be the scores' own memory).
int64_t mark_kept(const Scores& scores, Order order, int32_t key, int64_t ties, uint8_t* kept,
                  float* weights);

/// Sets weights to 0 where `kept` is 0, and writes only where that changes something.
void hold(const uint8_t* kept, int64_t numel, float* weights);

}  // namespace lgreco::pruning
