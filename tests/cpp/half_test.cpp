// The 16-bit formats: every value there and back, and rounding at every edge.
#include "core/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#ifdef __FLT16_MAX__
#define LGRECO_HAS_FLOAT16 1
#endif

namespace lgreco {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(Half, EveryFp16SurvivesThereAndBack) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const auto half = static_cast<uint16_t>(h);
    const float value = fp16_to_float(half);
    if ((h & 0x7FFFU) > 0x7C00U) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_EQ(float_to_fp16(value), half | 0x0200U);
    } else {
      EXPECT_EQ(float_to_fp16(value), half);
    }
  }
}

TEST(Half, EveryBf16SurvivesThereAndBack) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const auto half = static_cast<uint16_t>(h);
    const bool nan = (h & 0x7FFFU) > 0x7F80U;
    EXPECT_EQ(float_to_bf16(bf16_to_float(half)), nan ? half | 0x0040U : half);
  }
}

TEST(Half, Fp16RoundsToNearestEven) {
  EXPECT_EQ(float_to_fp16(1.0F + 0x1p-11F), 0x3C00U);  // halfway to even: down
  EXPECT_EQ(float_to_fp16(1.0F + 0x3p-11F), 0x3C02U);  // halfway to even: up
  EXPECT_EQ(float_to_fp16(1.0F + 0x1p-11F + 0x1p-23F), 0x3C01U);
  EXPECT_EQ(float_to_fp16(65519.996F), 0x7BFFU);
  EXPECT_EQ(float_to_fp16(65520.0F), 0x7C00U);
  EXPECT_EQ(float_to_fp16(-kInf), 0xFC00U);
  EXPECT_EQ(float_to_fp16(0x1p-24F), 0x0001U);
  EXPECT_EQ(float_to_fp16(0x1p-25F), 0x0000U);  // halfway to even
  EXPECT_EQ(float_to_fp16(0x1.8p-24F), 0x0002U);
  EXPECT_EQ(float_to_fp16(-0x1.000002p-25F), 0x8001U);
  EXPECT_EQ(float_to_fp16(0x1.FFFp-15F), 0x0400U);  // a subnormal rounds up to a normal
}

#ifdef LGRECO_HAS_FLOAT16
TEST(Half, Fp16AgreesWithTheCompiler) {
  std::mt19937 random(1);
  for (int i = 0; i < 200000; ++i) {
    const float value = float_of(random());
    if (std::isnan(value)) continue;
    const auto half = static_cast<_Float16>(value);
    uint16_t expected;
    memcpy(&expected, &half, 2);
    ASSERT_EQ(float_to_fp16(value), expected) << value;
  }
}
#endif

TEST(Half, Bf16RoundsToNearestEven) {
  EXPECT_EQ(float_to_bf16(float_of(0x3F808000U)), 0x3F80U);
  EXPECT_EQ(float_to_bf16(float_of(0x3F818000U)), 0x3F82U);
  EXPECT_EQ(float_to_bf16(float_of(0x3F808001U)), 0x3F81U);
  EXPECT_EQ(float_to_bf16(std::numeric_limits<float>::max()), 0x7F80U);
  EXPECT_EQ(float_to_bf16(float_of(0x7F800001U)), 0x7FC0U);  // stays a NaN
}

TEST(Half, Bf16RoundsOutwardsWhenAsked) {
  std::mt19937 random(2);
  for (int i = 0; i < 200000; ++i) {
    const float value = float_of(random());
    if (!std::isfinite(value)) continue;
    const float down = bf16_round_down(value), up = bf16_round_up(value);
    ASSERT_LE(down, value);
    ASSERT_GE(up, value);
    ASSERT_EQ(bits_of(down) & 0xFFFFU, 0U);
    ASSERT_EQ(bits_of(up) & 0xFFFFU, 0U);
    // No bf16 number lies between: the two are equal or neighbours.
    ASSERT_LE(std::abs(static_cast<int>(bits_of(down) >> 16) - static_cast<int>(bits_of(up) >> 16)), 1);
  }
  EXPECT_EQ(bits_of(bf16_round_up(0.0F)), 0U);
  EXPECT_EQ(bf16_round_down(-std::numeric_limits<float>::max()), -kInf);
}

}  // namespace
}  // namespace lgreco
