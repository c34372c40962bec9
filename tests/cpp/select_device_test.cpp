// The CUDA kernels of selection against the CPU's passes, their threads as fibers.
#include "cuda_emulation.h"

#include <limits>
#include <numeric>

#include "kernel_cases.h"
#include "pruning/select_device.h"
#include "pruning/select_levels.h"

namespace lgreco::pruning {
namespace {

constexpr auto kNoNan = std::numeric_limits<unsigned long long>::max();

void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  emulation::Machine::instance().launch(blocks, threads, kernel);
}

void launch(unsigned blocks, const std::function<void()>& kernel) {
  launch(blocks, SelectTeam::kThreads, kernel);
}

/// As in select.cu; a library's part, the sorting, is left to the standard one.
template <Order order>
class EmulatedPasses : public Passes {
 public:
  explicit EmulatedPasses(const std::vector<Scores>& arrays) : arrays_(arrays) {}

  std::vector<int32_t> sample(const std::vector<SampleLine>& lines) override {
    std::vector<int32_t> keys(lines.size() * kLineNumel);
    const auto count = static_cast<int64_t>(lines.size());
    const auto blocks = static_cast<unsigned>((keys.size() - 1) / SelectTeam::kThreads + 1);
    launch(blocks, [&] { select_sample_kernel<order>(lines.data(), count, keys.data()); });
    return keys;
  }

  Findings scan(const Bracket& bracket, int64_t most) override {
    collected_.assign(static_cast<size_t>(most + 1), 7);
    DeviceFindings found{0, 0, kNoNan};
    int64_t before = 0;
    for (const Scores& array : arrays_) {
      launch(3, [&] {
        select_scan_kernel<order>(array, before, bracket, most, &found, collected_.data());
      });
      before += array.numel;
    }
    EXPECT_EQ(collected_.back(), 7);  // nothing behind the end
    if (found.first_nan != kNoNan) refuse_nan(0, static_cast<int64_t>(found.first_nan));
    const auto inside = static_cast<int64_t>(found.inside);
    collected_.resize(static_cast<size_t>(std::min(inside, most)));
    return {static_cast<int64_t>(found.from_high), std::min(inside, most), inside > most};
  }

  std::pair<int32_t, int64_t> among_collected(int64_t wanted) override {
    std::sort(collected_.begin(), collected_.end(), std::greater<>());
    std::pair<int32_t, int64_t> among;
    launch(1, 32, [&] {
      if (threadIdx.x > 0) return;
      select_among_kernel(collected_.data(), wanted, &among.first, &among.second);
    });
    return among;
  }

  int digit_bits() const override { return kCudaDigitBits; }

  std::vector<int64_t> count(const Digit& digit) override {
    std::vector<unsigned long long> counts(size_t{1} << digit.bits);
    for (const Scores& array : arrays_) {
      launch(2, [&] { select_count_kernel<order>(array, digit, counts.data()); });
    }
    return {counts.begin(), counts.end()};
  }

 private:
  const std::vector<Scores>& arrays_;
  std::vector<int32_t> collected_;
};

template <Order order>
int64_t mark_emulated(const Scores& scores, const Threshold& threshold, int64_t ties, uint8_t* kept,
                      float* weights) {
  std::vector<int64_t> of_tiles(static_cast<size_t>(tiles_of(scores.numel) + 1)), before(of_tiles);
  launch(2, [&] { select_ties_kernel<order>(scores, threshold.key, of_tiles.data()); });
  std::exclusive_scan(of_tiles.begin(), of_tiles.end(), before.begin(), int64_t{0});
  const int64_t* given = ties > 0 ? before.data() : nullptr;
  launch(3, [&] { select_mark_kernel<order>(scores, threshold.key, ties, given, kept, weights); });
  return std::max<int64_t>(ties - before.back(), 0);
}

/// Selects on both, over arrays that `scores` are cut into, and compares all that they find.
template <Order order>
Threshold expect_alike(const std::vector<float>& scores, const std::vector<int64_t>& cuts,
                       int64_t kept) {
  std::vector<Scores> arrays;
  int64_t begin = 0;
  for (const int64_t end : cuts) {
    arrays.push_back({scores.data() + begin, end - begin});
    begin = end;
  }
  EmulatedPasses<order> passes(arrays);
  const Threshold expected = find_threshold(arrays, kept, order);
  const Threshold found = find_threshold(passes, arrays, kept);
  EXPECT_EQ(found.key, expected.key);
  EXPECT_EQ(found.ties, expected.ties);
  EXPECT_EQ(found.collected, expected.collected);
  EXPECT_EQ(found.counted, expected.counted);
  std::vector<uint8_t> mask(scores.size(), 9), cpu_mask(scores.size(), 8);
  std::vector<float> weights = scores, cpu_weights = scores;
  int64_t ties = found.ties, cpu_ties = found.ties, at = 0;
  for (const Scores& array : arrays) {
    const Scores own{weights.data() + at, array.numel};  // zeroed where they are read
    ties = mark_emulated<order>(own, found, ties, mask.data() + at, weights.data() + at);
    cpu_ties =
        mark_kept(array, order, found.key, cpu_ties, cpu_mask.data() + at, cpu_weights.data() + at);
    EXPECT_EQ(ties, cpu_ties);
    at += array.numel;
  }
  EXPECT_EQ(mask, cpu_mask);
  EXPECT_EQ(std::memcmp(weights.data(), cpu_weights.data(), weights.size() * sizeof(float)), 0);
  return found;
}

template <Order order>
void small_arrays() {
  uint32_t seed = 0;
  for (const int64_t numel : {1, 2, 31, 33, 255, 257, 4096, 4097, 9000}) {
    for (int kind = 0; kind < kernels::kValueKinds; ++kind) {
      const auto scores = kernels::make_values(kind, numel, ++seed);
      for (const int64_t kept : {int64_t{0}, int64_t{1}, numel / 2, numel - 1, numel}) {
        SCOPED_TRACE("numel " + std::to_string(numel) + " kind " + std::to_string(kind) + " kept " +
                     std::to_string(kept));
        expect_alike<order>(scores, {numel / 3, numel / 3, numel}, kept);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(SelectDevice, SmallArraysAreSelectedAsOnTheCpu) {
  small_arrays<Order::kMagnitude>();
  small_arrays<Order::kValue>();
}

TEST(SelectDevice, TheBracketIsTheCpus) {
  const int64_t numel = 90'001;
  for (const int kind : {0, 1, 2}) {
    const auto scores = kernels::make_values(kind, numel, 7);
    const auto found = expect_alike<Order::kMagnitude>(scores, {10, 50'000, numel}, numel / 10);
    EXPECT_FALSE(found.counted);
  }
  expect_alike<Order::kValue>(kernels::make_values(0, numel, 8), {numel}, numel / 2);
}

/// Many equal scores: ties within a tile, over tiles, and over arrays.
TEST(SelectDevice, TiesGoToTheLowestIndex) {
  std::vector<float> scores(20'000);
  for (size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(i * 7 % 5) - 2.0F;
  for (const int64_t kept : {1, 255, 257, 4000, 4001, 7000, 12'345, 19'999}) {
    expect_alike<Order::kMagnitude>(scores, {5000, 5001, 20'000}, kept);
    expect_alike<Order::kValue>(scores, {5000, 5001, 20'000}, kept);
  }
}

/// Finds the threshold by counting alone.
template <Order order>
class CountingPasses final : public EmulatedPasses<order> {
 public:
  using EmulatedPasses<order>::EmulatedPasses;
  Findings scan(const Bracket&, int64_t) override { return {0, 0, true}; }
};

TEST(SelectDevice, CountsWhereTheBracketMisses) {
  const int64_t numel = 70'000;
  const auto scores = kernels::make_values(0, numel, 5);
  const std::vector<Scores> arrays{{scores.data(), 100}, {scores.data() + 100, numel - 100}};
  for (const int64_t kept : {int64_t{1}, numel / 3, numel - 1}) {
    CountingPasses<Order::kValue> passes(arrays);
    const Threshold found = find_threshold(passes, arrays, kept);
    const Threshold expected = find_threshold(arrays, kept, Order::kValue);
    EXPECT_TRUE(found.counted);
    EXPECT_EQ(found.key, expected.key);
    EXPECT_EQ(found.ties, expected.ties);
  }
}

TEST(SelectDevice, FindsTheFirstNan) {
  auto scores = kernels::make_values(0, 9000, 1);
  scores[8000] = scores[5001] = std::nanf("");
  const std::vector<Scores> arrays{{scores.data(), 100}, {scores.data() + 100, 8900}};
  EmulatedPasses<Order::kMagnitude> passes(arrays);
  for (const int64_t kept : {0, 4000, 9000}) {
    try {
      find_threshold(passes, arrays, kept);
      FAIL() << "a NaN was accepted";
    } catch (const ValueError& error) {
      EXPECT_NE(std::string(error.what()).find("element 5001"), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace lgreco::pruning
