// Selection of every instruction set level against a stable sort.
#include "pruning/select.h"

#include <numeric>

#include "core/philox.h"
#include "kernel_cases.h"

namespace lgreco::pruning {
namespace {

using kernels::available_levels;
using kernels::make_values;
using kernels::WithLevel;

/// What a sort keeps: descending by score, ascending by index.
std::vector<uint8_t> naive(const std::vector<float>& scores, int64_t kept, Order order) {
  std::vector<int64_t> index(scores.size());
  std::iota(index.begin(), index.end(), 0);
  const auto score = [&](int64_t i) {
    const float value = scores[static_cast<size_t>(i)];
    return order == Order::kMagnitude ? std::fabs(value) : value;
  };
  std::stable_sort(index.begin(), index.end(),
                   [&](int64_t a, int64_t b) { return score(a) > score(b); });
  std::vector<uint8_t> mask(scores.size(), 0);
  for (int64_t i = 0; i < kept; ++i) mask[static_cast<size_t>(index[static_cast<size_t>(i)])] = 1;
  return mask;
}

/// Selects over `scores` cut into arrays at `cuts`, zeroes the weights, and compares with the sort.
Threshold expect_naive(const std::vector<float>& scores, const std::vector<int64_t>& cuts, int64_t kept,
                       Order order) {
  std::vector<Scores> arrays;
  int64_t begin = 0;
  for (const int64_t end : cuts) {
    arrays.push_back({scores.data() + begin, end - begin});
    begin = end;
  }
  const auto expected = naive(scores, kept, order);
  const Threshold found = find_threshold(arrays, kept, order);
  std::vector<uint8_t> mask(scores.size(), 9);
  std::vector<float> weights = scores, held = scores;
  int64_t ties = found.ties, at = 0;
  for (const Scores& array : arrays) {
    ties = mark_kept(array, order, found.key, ties, mask.data() + at, weights.data() + at);
    at += array.numel;
  }
  EXPECT_EQ(ties, 0);
  EXPECT_EQ(mask, expected);
  hold(mask.data(), static_cast<int64_t>(mask.size()), held.data());
  for (size_t i = 0; i < scores.size(); ++i) {
    const float wanted = expected[i] != 0 ? scores[i] : 0.0F;
    EXPECT_TRUE(std::bit_cast<uint32_t>(weights[i]) == std::bit_cast<uint32_t>(wanted)) << i;
    EXPECT_TRUE(std::bit_cast<uint32_t>(held[i]) == std::bit_cast<uint32_t>(wanted)) << i;
    if (::testing::Test::HasFailure()) break;
  }
  return found;
}

TEST(Select, KeepsWhatASortKeeps) {
  for (const CpuLevel level : available_levels()) {
    const WithLevel with(level);
    uint32_t seed = 0;
    for (const int64_t numel : {1, 2, 15, 16, 17, 31, 33, 1000, 9000}) {
      for (int kind = 0; kind < kernels::kValueKinds; ++kind) {
        for (const Order order : {Order::kMagnitude, Order::kValue}) {
          const auto scores = make_values(kind, numel, ++seed);
          for (const int64_t kept : {int64_t{0}, int64_t{1}, numel / 10, numel / 2, numel - 1, numel}) {
            SCOPED_TRACE(std::string(name_of(level)) + " numel " + std::to_string(numel) + " kind " +
                         std::to_string(kind) + " kept " + std::to_string(kept));
            expect_naive(scores, {numel / 3, numel / 3, numel}, kept, order);
            if (::testing::Test::HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(Select, BracketsALargeArray) {
  const int64_t numel = 300007;
  for (const CpuLevel level : available_levels()) {
    const WithLevel with(level);
    for (int kind = 0; kind < kernels::kValueKinds; ++kind) {
      for (const Order order : {Order::kMagnitude, Order::kValue}) {
        const auto scores = make_values(kind, numel, 7);
        for (const int64_t kept : {int64_t{1}, numel / 100, numel / 10, numel / 2, numel - 3}) {
          SCOPED_TRACE(std::string(name_of(level)) + " kind " + std::to_string(kind) + " kept " +
                       std::to_string(kept));
          const Threshold found = expect_naive(scores, {10, 200000, 200001, numel}, kept, order);
          EXPECT_FALSE(found.counted);
          if (kind == 0) {
            EXPECT_LT(found.collected, numel / 20);
          }
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

/// Rows of one scale each: a sample that took elements for independent would miss.
TEST(Select, BracketsRowsOfDifferentScales) {
  auto scores = make_values(0, 1 << 19, 3);
  for (size_t i = 0; i < scores.size(); ++i) {
    scores[i] = scores[i] * 0.01F + static_cast<float>(i / 512 % 97);
  }
  const auto numel = static_cast<int64_t>(scores.size());
  for (const int64_t kept : {numel / 10, numel / 2, numel / 10 * 9}) {
    EXPECT_FALSE(expect_naive(scores, {numel}, kept, Order::kMagnitude).counted);
  }
}

/// Where the sample looks every score is 1, elsewhere none is.
TEST(Select, CountsWhereTheBracketMisses) {
  constexpr int64_t kNumel = 1 << 20, kLines = 16384;
  auto scores = make_values(0, kNumel, 5);
  for (float& score : scores) score = std::fabs(score) + 2.0F;
  for (int64_t line = 0; line < kLines; ++line) {
    const uint64_t draw = philox4x32(static_cast<uint32_t>(line), 0, 0, 0, 0, 0).word[0];
    const auto begin = line * (kNumel / kLines) + static_cast<int64_t>(draw * (kNumel / kLines) >> 32);
    for (int64_t i = begin; i < std::min(begin + 16, kNumel); ++i) scores[static_cast<size_t>(i)] = 1.0F;
  }
  for (const Order order : {Order::kMagnitude, Order::kValue}) {
    EXPECT_TRUE(expect_naive(scores, {kNumel}, kNumel / 2, order).counted);
    for (float& score : scores) score = -score;
    EXPECT_TRUE(expect_naive(scores, {kNumel}, kNumel / 2, order).counted);
    for (float& score : scores) score = -score;
  }
}

TEST(Select, RefusesNan) {
  for (const CpuLevel level : available_levels()) {
    const WithLevel with(level);
    for (const int64_t numel : {17, 100000}) {
      for (const float nan : {std::nanf(""), -std::nanf("")}) {
        auto scores = make_values(0, numel, 1);
        scores[static_cast<size_t>(numel - 2)] = nan;
        for (const int64_t kept : {int64_t{0}, numel / 2, numel}) {
          for (const Order order : {Order::kMagnitude, Order::kValue}) {
            EXPECT_THROW(find_threshold({{scores.data(), numel}}, kept, order), ValueError);
          }
        }
      }
    }
  }
}

TEST(Select, InfinityIsKept) {
  const std::vector<float> scores{1.0F, -INFINITY, 2.0F, INFINITY, 3.0F};
  expect_naive(scores, {5}, 2, Order::kMagnitude);
  expect_naive(scores, {5}, 1, Order::kValue);
  expect_naive(scores, {5}, 4, Order::kValue);
}

TEST(Select, RefusesAnImpossibleCount) {
  const float one = 1.0F;
  EXPECT_THROW(find_threshold({{&one, 1}}, 2, Order::kMagnitude), ValueError);
  EXPECT_THROW(find_threshold({{&one, 1}}, -1, Order::kMagnitude), ValueError);
}

}  // namespace
}  // namespace lgreco::pruning
