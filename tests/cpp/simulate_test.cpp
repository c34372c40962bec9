// Simulation of an exchange: equal to one done by hand, with what the owner still owes.
#include "codecs/simulate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "codecs/registry.h"
#include "core/error.h"

namespace lgreco::codecs {
namespace {

Choice quantize(const char* bits, const char* rounding) {
  return {
      "quantize",
      {{"bits", bits}, {"block", "64"}, {"grid", "minmax"}, {"rounding", rounding}, {"scales", "fp32"}}};
}

std::vector<std::vector<float>> gradients(int ranks, int64_t numel) {
  std::vector<std::vector<float>> values(ranks, std::vector<float>(numel));
  for (int rank = 0; rank < ranks; ++rank) {
    for (int64_t i = 0; i < numel; ++i) {
      values[rank][i] = std::sin(static_cast<float>(i * (rank + 1))) * static_cast<float>(1 + i % 7);
    }
  }
  return values;
}

std::vector<const float*> pointers(const std::vector<std::vector<float>>& values) {
  std::vector<const float*> out;
  for (const auto& rank : values) out.push_back(rank.data());
  return out;
}

TEST(Simulate, EqualsAnExchangeByHand) {
  const auto codec = make_codec(quantize("3", "nearest"));
  for (const int64_t numel : {1, 31, 64, 1000}) {
    const auto values = gradients(3, numel);
    std::vector<float> owner(numel, 0.25F), rest = owner, delivered(numel);
    std::vector<std::vector<uint8_t>> wires;
    std::vector<const uint8_t*> payloads;
    for (const auto& rank : values) {
      wires.emplace_back(codec->wire_bytes(numel));
      codec->encode(rank.data(), DType::kFloat32, numel, {}, {}, wires.back().data());
    }
    for (const auto& wire : wires) payloads.push_back(wire.data());
    const Feedback feedback{.in = rest.data(), .out = rest.data()};
    codec->reduce(payloads.data(), 3, 1.0F / 3.0F, numel, feedback, {}, wires[0].data());
    codec->decode(wires[0].data(), numel, {}, delivered.data(), DType::kFloat32);
    double expected = 0;
    for (int64_t i = 0; i < numel; ++i) {
      const double exact = (double{values[0][i]} + values[1][i] + values[2][i]) / 3.0 + owner[i];
      expected += (exact - delivered[i]) * (exact - delivered[i]);
    }
    const double error = simulate(*codec, pointers(values), owner.data(), numel, 1);
    EXPECT_NEAR(error, expected, 1e-9 * expected + 1e-12) << numel;
    EXPECT_TRUE(numel == 1 || error > 0) << numel;
  }
}

TEST(Simulate, ExactWireLeavesNothingMoreBitsLeaveLess) {
  const auto values = gradients(4, 4096);
  const auto exact = make_codec({"dense", {{"dtype", "fp32"}}});
  EXPECT_LT(simulate(*exact, pointers(values), nullptr, 4096, 1), 1e-8);
  double last = 1e30;
  for (const char* bits : {"1", "2", "4", "8"}) {
    const double error =
        simulate(*make_codec(quantize(bits, "stochastic")), pointers(values), nullptr, 4096, 7);
    EXPECT_LT(error, last);
    last = error;
  }
}

TEST(Simulate, SameSeedSameBitsRanksDrawForThemselves) {
  const auto codec = make_codec(quantize("2", "stochastic"));
  const auto values = gradients(2, 512);
  EXPECT_EQ(simulate(*codec, pointers(values), nullptr, 512, 3),
            simulate(*codec, pointers(values), nullptr, 512, 3));
  EXPECT_NE(simulate(*codec, pointers(values), nullptr, 512, 3),
            simulate(*codec, pointers(values), nullptr, 512, 4));
}

TEST(Simulate, EmptyLayersAndWrongWorlds) {
  const auto codec = make_codec(quantize("2", "nearest"));
  EXPECT_EQ(simulate(*codec, {nullptr}, nullptr, 0, 0), 0);
  EXPECT_THROW(simulate(*codec, {}, nullptr, 8, 0), ValueError);
}

}  // namespace
}  // namespace lgreco::codecs
