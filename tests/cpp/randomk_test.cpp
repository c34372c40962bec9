// Which elements randomk draws.
#include "sparse_cases.h"

namespace lgreco::kernels {
namespace {

TEST(RandomK, RandomElementsAreSharedByRanksAndRoundsAndNewInEachStepAndBlock) {
  const SparseSpec spec{0.05, 512, 32, true};
  const auto drawn = [&](const Noise& noise) {
    const std::vector<float> ones(2 * 512, 1.0F);
    Buffer wire(sparse_wire_bytes(spec, 1024)), out(1024 * 4);
    sparse_encode(spec, ones.data(), DType::kFloat32, 1024, {}, noise, wire.data());
    sparse_decode(spec, wire.data(), 1024, noise, out.data(), DType::kFloat32);
    return read(out, DType::kFloat32);
  };
  const Noise noise{.seed = 1, .step = 3, .stream = noise_stream(2, 0, 0)};
  const auto first = drawn(noise);
  EXPECT_EQ(std::count(first.begin(), first.end(), 1.0F), 2 * 26);
  EXPECT_FALSE(std::equal(first.begin(), first.begin() + 512, first.begin() + 512));
  Noise other = noise;
  other.stream = noise_stream(2, 7, 1);
  EXPECT_EQ(drawn(other), first);
  other.stream = noise_stream(3, 0, 0);
  EXPECT_NE(drawn(other), first);
  other = noise;
  other.step = 4;
  EXPECT_NE(drawn(other), first);
  other = noise;
  other.first_block = 1;  // the same draws one block later
  EXPECT_TRUE(std::equal(first.begin() + 512, first.end(), drawn(other).begin()));
}

TEST(RandomK, EveryElementHasTheSameChanceToBeDrawn) {
  const SparseSpec spec{0.05, 96, 32, true};  // 5 of 96: strata of 19 and 20
  const std::vector<float> ones(96, 1.0F);
  std::vector<int> taken(96);
  constexpr int kSteps = 4000;
  Buffer wire(sparse_wire_bytes(spec, 96)), out(96 * 4);
  for (uint32_t step = 0; step < kSteps; ++step) {
    const Noise noise{.seed = 9, .step = step};
    sparse_encode(spec, ones.data(), DType::kFloat32, 96, {}, noise, wire.data());
    sparse_decode(spec, wire.data(), 96, noise, out.data(), DType::kFloat32);
    const auto delivered = read(out, DType::kFloat32);
    for (size_t i = 0; i < taken.size(); ++i) taken[i] += delivered[i] == 1.0F;
  }
  for (const int times : taken) EXPECT_NEAR(times, kSteps * 5.0 / 96, 70);  // 5 standard deviations
}

}  // namespace
}  // namespace lgreco::kernels
