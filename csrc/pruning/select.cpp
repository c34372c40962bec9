// Exact selection: sample, bracket, one pass, and counting where the bracket misses.
#include "pruning/select.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "core/cpu_dispatch.h"
#include "core/error.h"
#include "core/philox.h"
#include "pruning/select_levels.h"
#include "pruning/select_math.h"

namespace lgreco::pruning {
namespace {

constexpr int32_t kLeast = std::numeric_limits<int32_t>::min();
constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
constexpr int64_t kLineNumel = 16;      ///< a cache line of scores
constexpr int64_t kLines = 16384;       ///< of the sample
constexpr int64_t kSmallNumel = 65536;  ///< so few are collected whole
constexpr double kDeviations = 5.0;     ///< half the bracket's width, in standard errors

int32_t key_as(Order order, float score) {
  return order == Order::kMagnitude ? magnitude_key(score) : value_key(score);
}

void scan(const Scores& scores, Order order, const Bracket& bracket, Seen& seen, Collected& inside) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512: return avx512::scan(scores, order, bracket, seen, inside);
    case CpuLevel::kAvx2: return avx2::scan(scores, order, bracket, seen, inside);
    case CpuLevel::kBaseline: break;
  }
  scalar::scan(scores, order, bracket, seen, inside);
}

[[noreturn]] void refuse_nan(const std::vector<Scores>& arrays) {
  for (size_t array = 0; array < arrays.size(); ++array) {
    for (int64_t i = 0; i < arrays[array].numel; ++i) {
      if (!std::isnan(arrays[array].values[i])) continue;
      throw ValueError(concat("scores must be numbers, got NaN: array ", array, ", element ", i));
    }
  }
  throw Error("a NaN was seen among the scores and is gone: they changed while they were read");
}

/// The key that exactly `wanted` keys of `keys` reach or exceed, and how many exceed it. 1 <= wanted <=
/// count. Buckets narrow it down, so that only a few keys are compared with each other.
std::pair<int32_t, int64_t> select_among(std::vector<int32_t>& few, const int32_t* keys, int64_t count,
                                         int64_t wanted) {
  constexpr int kBucketBits = 12;
  const auto [least, most] = std::minmax_element(keys, keys + count);
  const int64_t base = *least, range = static_cast<int64_t>(*most) - base;
  int shift = 0;
  while ((range >> shift) >= int64_t{1} << kBucketBits) ++shift;
  std::vector<int64_t> counts(size_t{1} << kBucketBits, 0);
  for (int64_t i = 0; i < count; ++i) ++counts[static_cast<size_t>((keys[i] - base) >> shift)];
  int64_t above = 0, bucket = (int64_t{1} << kBucketBits) - 1;
  while (above + counts[static_cast<size_t>(bucket)] < wanted) {
    above += counts[static_cast<size_t>(bucket--)];
  }
  few.clear();
  for (int64_t i = 0; i < count; ++i) {
    if ((keys[i] - base) >> shift == bucket) few.push_back(keys[i]);
  }
  const auto nth = few.begin() + (wanted - above - 1);
  std::nth_element(few.begin(), nth, few.end(), std::greater<>());
  const int32_t key = *nth;
  return {key, above + std::count_if(few.begin(), few.end(), [&](int32_t each) { return each > key; })};
}

/// All arrays as one.
class Whole {
 public:
  Whole(const std::vector<Scores>& arrays, Order order) : arrays_(arrays), order_(order) {
    for (const Scores& array : arrays) numel_ += array.numel;
  }

  int64_t numel() const { return numel_; }

  Threshold find(int64_t kept) {
    if (numel_ <= kSmallNumel) return *find_within({kLeast, kMost}, kept, numel_);
    const Bracket bracket = sampled_bracket(kept);
    const auto found = find_within(bracket, kept, numel_ / 8 + kSmallNumel);
    return found ? *found : find_by_counting(kept);
  }

  void refuse_nans() const {
    Seen seen;
    int32_t none[kLineNumel];
    for (const Scores& array : arrays_) {
      Collected nothing{none, 0, 0};
      scan(array, order_, {kMost, kMost}, seen, nothing);
    }
    if (seen.nan) refuse_nan(arrays_);
  }

 private:
  /// One cache line of each of kLines equal parts, at a drawn place: no period of the weights meets it.
  std::vector<int32_t> sample() const {
    std::vector<int32_t> keys;
    keys.reserve(static_cast<size_t>(kLines * kLineNumel));
    size_t array = 0;
    int64_t array_begin = 0;
    for (int64_t line = 0; line < kLines; ++line) {
      const int64_t begin = line * numel_ / kLines, end = (line + 1) * numel_ / kLines;
      const uint64_t draw = philox4x32(static_cast<uint32_t>(line), 0, 0, 0, 0, 0).word[0];
      const auto at = begin + static_cast<int64_t>(draw * static_cast<uint64_t>(end - begin) >> 32);
      while (at >= array_begin + arrays_[array].numel) array_begin += arrays_[array++].numel;
      const Scores& from = arrays_[array];
      const int64_t first = std::min(at - array_begin, std::max<int64_t>(0, from.numel - kLineNumel));
      for (int64_t i = 0; i < kLineNumel; ++i) {
        keys.push_back(key_as(order_, from.values[std::min(first + i, from.numel - 1)]));
      }
    }
    return keys;
  }

  /// Elements of a line resemble each other, so the error of the sampled share is that of whole lines.
  Bracket sampled_bracket(int64_t kept) const {
    std::vector<int32_t> keys = sample();
    std::vector<int32_t> sorted = keys;
    const auto count = static_cast<int64_t>(keys.size());
    const double share = static_cast<double>(kept) / static_cast<double>(numel_);
    const auto place = [&](double at) {  // descending
      return std::clamp<int64_t>(static_cast<int64_t>(at * static_cast<double>(count)), 0, count - 1);
    };
    const int64_t middle = place(share);
    std::nth_element(sorted.begin(), sorted.begin() + middle, sorted.end(), std::greater<>());
    const int32_t guess = sorted[static_cast<size_t>(middle)];
    double squares = 0.0;
    for (int64_t line = 0; line < kLines; ++line) {
      const auto begin = keys.begin() + line * kLineNumel;
      const auto above =
          std::count_if(begin, begin + kLineNumel, [&](int32_t key) { return key > guess; });
      const double off = static_cast<double>(above) / kLineNumel - share;
      squares += off * off;
    }
    const double margin = kDeviations * std::sqrt(squares) / kLines + 8.0 / static_cast<double>(count);
    Bracket bracket{kLeast, kMost};
    if (share - margin > 0) {
      const auto high = sorted.begin() + place(share - margin);
      std::nth_element(sorted.begin(), high, sorted.begin() + middle + 1, std::greater<>());
      bracket.high = *high;
    }
    if (share + margin < 1) {
      const auto low = sorted.begin() + place(share + margin);
      std::nth_element(sorted.begin() + middle, low, sorted.end(), std::greater<>());
      bracket.low = *low;
    }
    return bracket;
  }

  std::optional<Threshold> find_within(const Bracket& bracket, int64_t kept, int64_t most) {
    const auto keys = std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(most + kLineNumel));
    Collected inside{keys.get(), 0, most};
    Seen seen;
    for (const Scores& array : arrays_) {
      scan(array, order_, bracket, seen, inside);
      if (seen.nan) refuse_nan(arrays_);
      if (inside.overflown) return std::nullopt;
    }
    if (kept <= seen.from_high) {  // among ties at the bracket's end, or above it
      const int64_t above = bracket.high == kMost ? 0 : count_from(bracket.high + 1);
      if (kept <= above) return std::nullopt;
      return Threshold{bracket.high, kept - above, inside.count, false};
    }
    const int64_t wanted = kept - seen.from_high;
    if (wanted <= inside.count) {
      const auto [key, above] = select_among(few_, keys.get(), inside.count, wanted);
      return Threshold{key, wanted - above, inside.count, false};
    }
    const int64_t ties = wanted - inside.count;
    const int64_t at_low = count_from(bracket.low) - seen.from_high - inside.count;
    return ties <= at_low ? std::optional(Threshold{bracket.low, ties, inside.count, false})
                          : std::nullopt;
  }

  /// Elements whose key is at least `key`: one more pass, for thresholds that many elements share.
  int64_t count_from(int32_t key) const {
    int32_t none[kLineNumel];
    Seen seen;
    for (const Scores& array : arrays_) {
      Collected nothing{none, 0, 0};
      scan(array, order_, {key, key}, seen, nothing);
    }
    return seen.from_high;
  }

  /// Counts the upper halves of all keys, then the lower halves of those whose upper half is the wanted
  /// one.
  Threshold find_by_counting(int64_t kept) const {
    const auto upper_of = [](int32_t key) { return (static_cast<uint32_t>(key) ^ 0x80000000U) >> 16; };
    std::vector<int64_t> counts(65536, 0);
    for_each([&](int32_t key) { ++counts[upper_of(key)]; });
    int64_t above = 0;
    uint32_t upper = 65535;
    while (above + counts[upper] < kept) above += counts[upper--];
    std::fill(counts.begin(), counts.end(), 0);
    for_each([&](int32_t key) {
      if (upper_of(key) == upper) ++counts[static_cast<uint32_t>(key) & 0xFFFFU];
    });
    uint32_t lower = 65535;
    while (above + counts[lower] < kept) above += counts[lower--];
    return {static_cast<int32_t>((upper << 16 | lower) ^ 0x80000000U), kept - above, 0, true};
  }

  template <typename Visit>
  void for_each(const Visit& visit) const {
    bool nan = false;
    for (const Scores& array : arrays_) {
      for (int64_t i = 0; i < array.numel; ++i) {
        nan |= std::isnan(array.values[i]);
        visit(key_as(order_, array.values[i]));
      }
    }
    if (nan) refuse_nan(arrays_);
  }

  const std::vector<Scores>& arrays_;
  Order order_;
  int64_t numel_ = 0;
  std::vector<int32_t> few_;
};

}  // namespace

Threshold find_threshold(const std::vector<Scores>& arrays, int64_t kept, Order order) {
  Whole whole(arrays, order);
  require(kept >= 0 && kept <= whole.numel(), "kept must be 0..", whole.numel(), ", got ", kept);
  if (kept > 0 && kept < whole.numel()) return whole.find(kept);
  whole.refuse_nans();
  return {kept == 0 ? kMost : kLeast, 0, 0, false};
}

int64_t mark_kept(const Scores& scores, Order order, int32_t key, int64_t ties, uint8_t* kept,
                  float* weights) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512: return avx512::mark_kept(scores, order, key, ties, kept, weights);
    case CpuLevel::kAvx2: return avx2::mark_kept(scores, order, key, ties, kept, weights);
    case CpuLevel::kBaseline: break;
  }
  return scalar::mark_kept(scores, order, key, ties, kept, weights);
}

void hold(const uint8_t* kept, int64_t numel, float* weights) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512: return avx512::hold(kept, numel, weights);
    case CpuLevel::kAvx2: return avx2::hold(kept, numel, weights);
    case CpuLevel::kBaseline: break;
  }
  scalar::hold(kept, numel, weights);
}

}  // namespace lgreco::pruning
