// Exact selection: sample, bracket, one pass, and counting where the bracket misses.
#include "pruning/select.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <utility>

#include "core/error.h"
#include "core/philox.h"
#include "pruning/select_passes.h"

namespace lgreco::pruning {
namespace {

constexpr int32_t kLeast = std::numeric_limits<int32_t>::min();
constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
constexpr int64_t kLines = 16384;       ///< of the sample
constexpr int64_t kSmallNumel = 65536;  ///< so few are collected whole
constexpr double kDeviations = 5.0;     ///< half the bracket's width, in standard errors

int64_t numel_of(const std::vector<Scores>& arrays) {
  int64_t numel = 0;
  for (const Scores& array : arrays) numel += array.numel;
  return numel;
}

/// One cache line of each of kLines equal parts, at a drawn place: no period of the weights meets it.
std::vector<SampleLine> lines_of(const std::vector<Scores>& arrays, int64_t numel) {
  std::vector<SampleLine> lines;
  lines.reserve(kLines);
  size_t array = 0;
  int64_t array_begin = 0;
  for (int64_t line = 0; line < kLines; ++line) {
    const int64_t begin = line * numel / kLines, end = (line + 1) * numel / kLines;
    const uint64_t draw = philox4x32(static_cast<uint32_t>(line), 0, 0, 0, 0, 0).word[0];
    const auto at = begin + static_cast<int64_t>(draw * static_cast<uint64_t>(end - begin) >> 32);
    while (at >= array_begin + arrays[array].numel) array_begin += arrays[array++].numel;
    const Scores& from = arrays[array];
    const int64_t first = std::min(at - array_begin, std::max<int64_t>(0, from.numel - kLineNumel));
    lines.push_back({from.values, first, from.numel - 1});
  }
  return lines;
}

/// Elements of a line resemble each other, so the error of the sampled share is that of whole lines.
Bracket bracket_of(const std::vector<int32_t>& keys, double share) {
  std::vector<int32_t> sorted = keys;
  const auto count = static_cast<int64_t>(keys.size());
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

/// Elements whose key is at least `key`: one more pass, for thresholds that many elements share.
int64_t count_from(Passes& passes, int32_t key) { return passes.scan({key, key}, 0).from_high; }

/// None where the wanted key is outside the bracket, or more than `most` are inside.
std::optional<Threshold> find_within(Passes& passes, const Bracket& bracket, int64_t kept,
                                     int64_t most) {
  const Findings found = passes.scan(bracket, most);
  if (found.exceeded) return std::nullopt;
  if (kept <= found.from_high) {  // among ties at the bracket's end, or above it
    const int64_t above = bracket.high == kMost ? 0 : count_from(passes, bracket.high + 1);
    if (kept <= above) return std::nullopt;
    return Threshold{bracket.high, kept - above, found.inside, false};
  }
  const int64_t wanted = kept - found.from_high;
  if (wanted <= found.inside) {
    const auto [key, above] = passes.among_collected(wanted);
    return Threshold{key, wanted - above, found.inside, false};
  }
  const int64_t ties = wanted - found.inside;
  const int64_t at_low = count_from(passes, bracket.low) - found.from_high - found.inside;
  return ties <= at_low ? std::optional(Threshold{bracket.low, ties, found.inside, false})
                        : std::nullopt;
}

/// From the highest digit down, counts the keys that agree with the wanted one so far.
Threshold find_by_counting(Passes& passes, int64_t kept) {
  int64_t above = 0;
  uint32_t prefix = 0;
  for (int left = 32; left > 0;) {
    const int bits = std::min(left, passes.digit_bits());
    left -= bits;
    const std::vector<int64_t> counts = passes.count({left, bits, prefix});
    uint32_t digit = (1U << bits) - 1U;
    while (above + counts[digit] < kept) above += counts[digit--];
    prefix = prefix << bits | digit;
  }
  return {static_cast<int32_t>(prefix ^ 0x80000000U), kept - above, 0, true};
}

}  // namespace

Threshold find_threshold(Passes& passes, const std::vector<Scores>& arrays, int64_t kept) {
  const int64_t numel = numel_of(arrays);
  require(kept >= 0 && kept <= numel, "kept must be 0..", numel, ", got ", kept);
  if (kept == 0 || kept == numel) {
    passes.scan({kMost, kMost}, 0);  // refuses a NaN
    return {kept == 0 ? kMost : kLeast, 0, 0, false};
  }
  if (numel <= kSmallNumel) return *find_within(passes, {kLeast, kMost}, kept, numel);
  const double share = static_cast<double>(kept) / static_cast<double>(numel);
  const Bracket bracket = bracket_of(passes.sample(lines_of(arrays, numel)), share);
  const auto found = find_within(passes, bracket, kept, numel / 8 + kSmallNumel);
  return found ? *found : find_by_counting(passes, kept);
}

void refuse_nan(size_t array, int64_t element) {
  throw ValueError(concat("scores must be numbers, got NaN: array ", array, ", element ", element));
}

}  // namespace lgreco::pruning
