// Selection on the CPU: the passes of the best instruction set level that there is.
#include <algorithm>
#include <functional>
#include <memory>

#include "core/cpu_dispatch.h"
#include "core/error.h"
#include "pruning/select.h"
#include "pruning/select_levels.h"
#include "pruning/select_passes.h"

namespace lgreco::pruning {
namespace {

constexpr int kDigitBits = 16;

int32_t key_as(Order order, float score) {
  return order == Order::kMagnitude ? magnitude_key(score) : value_key(score);
}

void scan_at_level(const Scores& scores, Order order, const Bracket& bracket, Seen& seen,
                   Collected& collected) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512: return avx512::scan(scores, order, bracket, seen, collected);
    case CpuLevel::kAvx2: return avx2::scan(scores, order, bracket, seen, collected);
    case CpuLevel::kBaseline: break;
  }
  scalar::scan(scores, order, bracket, seen, collected);
}

/// See Passes::among_collected. Buckets narrow it down, so that only a few keys are compared with each
/// other.
std::pair<int32_t, int64_t> select_among(const int32_t* keys, int64_t count, int64_t wanted) {
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
  std::vector<int32_t> few;
  for (int64_t i = 0; i < count; ++i) {
    if ((keys[i] - base) >> shift == bucket) few.push_back(keys[i]);
  }
  const auto nth = few.begin() + (wanted - above - 1);
  std::nth_element(few.begin(), nth, few.end(), std::greater<>());
  const int32_t key = *nth;
  return {key, above + std::count_if(few.begin(), few.end(), [&](int32_t each) { return each > key; })};
}

class CpuPasses final : public Passes {
 public:
  CpuPasses(const std::vector<Scores>& arrays, Order order) : arrays_(arrays), order_(order) {}

  std::vector<int32_t> sample(const std::vector<SampleLine>& lines) override {
    std::vector<int32_t> keys;
    keys.reserve(lines.size() * static_cast<size_t>(kLineNumel));
    for (const SampleLine& line : lines) {
      for (int64_t i = 0; i < kLineNumel; ++i) keys.push_back(key_as(order_, sampled(line, i)));
    }
    return keys;
  }

  Findings scan(const Bracket& bracket, int64_t most) override {
    if (most + kLineNumel > room_) {
      room_ = most + kLineNumel;
      keys_ = std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(room_));
    }
    Collected collected{keys_.get(), 0, most};
    Seen seen;
    for (const Scores& array : arrays_) {
      scan_at_level(array, order_, bracket, seen, collected);
      if (seen.nan) refuse_nans();
      if (collected.overflown) break;
    }
    collected_ = collected.count;
    return {seen.from_high, collected.count, collected.overflown};
  }

  std::pair<int32_t, int64_t> among_collected(int64_t wanted) override {
    return select_among(keys_.get(), collected_, wanted);
  }

  int digit_bits() const override { return kDigitBits; }

  std::vector<int64_t> count(const Digit& digit) override {
    std::vector<int64_t> counts(size_t{1} << digit.bits, 0);
    bool nan = false;
    for (const Scores& array : arrays_) {
      for (int64_t i = 0; i < array.numel; ++i) {
        nan |= is_nan(array.values[i]);  // a scan that ended early has not seen all
        const int32_t value = digit_of(digit, key_as(order_, array.values[i]));
        if (value >= 0) ++counts[static_cast<size_t>(value)];
      }
    }
    if (nan) refuse_nans();
    return counts;
  }

 private:
  [[noreturn]] void refuse_nans() const {
    for (size_t array = 0; array < arrays_.size(); ++array) {
      for (int64_t i = 0; i < arrays_[array].numel; ++i) {
        if (is_nan(arrays_[array].values[i])) refuse_nan(array, i);
      }
    }
    throw Error("a NaN was seen among the scores and is gone: they changed while they were read");
  }

  const std::vector<Scores>& arrays_;
  const Order order_;
  std::unique_ptr<int32_t[]> keys_;
  int64_t room_ = 0, collected_ = 0;
};

}  // namespace

Threshold find_threshold(const std::vector<Scores>& arrays, int64_t kept, Order order) {
  CpuPasses passes(arrays, order);
  return find_threshold(passes, arrays, kept);
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
