// The passes over scores that selection is made of: on the CPU and on CUDA.
#pragma once

#include <utility>
#include <vector>

#include "pruning/select_math.h"

namespace lgreco::pruning {

inline constexpr int64_t kLineNumel = 16;  ///< a cache line of scores

/// A cache line of an array: elements first, first + 1, ..., none behind `last`.
struct SampleLine {
  const float* values;
  int64_t first, last;
};

LGRECO_HD float sampled(const SampleLine& line, int64_t i) {
  return line.values[line.first + i < line.last ? line.first + i : line.last];
}

/// What a pass has seen.
struct Findings {
  int64_t from_high = 0;  ///< keys that are at least bracket.high
  int64_t inside = 0;     ///< keys in the bracket; no more than `most` where that was exceeded
  bool exceeded = false;
};

/// All arrays as one. Every pass throws ValueError for a NaN, naming its array and element.
class Passes {
 public:
  virtual ~Passes() = default;

  /// The keys of all lines, kLineNumel each.
  virtual std::vector<int32_t> sample(const std::vector<SampleLine>& lines) = 0;
  /// Counts, and collects the keys inside the bracket; those of an earlier pass are forgotten. Where
  /// there are more than `most` it may end early.
  virtual Findings scan(const Bracket& bracket, int64_t most) = 0;
  /// The key that exactly `wanted` of the collected keys reach or exceed, and how many exceed it; wanted
  /// is 1..Findings::inside of the last scan.
  virtual std::pair<int32_t, int64_t> among_collected(int64_t wanted) = 0;
  /// Bits that count() takes at most.
  virtual int digit_bits() const = 0;
  /// How many keys have each value of a digit.
  virtual std::vector<int64_t> count(const Digit& digit) = 0;
};

/// What keeps `kept` elements, 1 to all but one; the arrays hold `numel`.
Threshold find_threshold(Passes& passes, const std::vector<Scores>& arrays, int64_t kept);

[[noreturn]] void refuse_nan(size_t array, int64_t element);

}  // namespace lgreco::pruning
