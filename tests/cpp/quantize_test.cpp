// What the quantise kernels promise, on every instruction set level.
#include <cmath>
#include <random>

#include "kernels/quantize_math.h"
#include "quantize_cases.h"

namespace lgreco::kernels {
namespace {

TEST(Quantize, ReduceIsTheMeanOfTheDecodedWires) {
  const QuantizeSpec spec{.bits = 8, .block_numel = 64};
  const int64_t numel = 200;
  std::vector<float> mean(numel, 0.0F);
  for (int k = 0; k < 3; ++k) {
    const auto values = make_values(k % 2 == 0 ? 0 : 4, numel, static_cast<uint32_t>(k + 1));
    Encoding encoding(spec, values, values, DType::kFloat32, Residual::kNone, DType::kFloat32);
    encoding.run(CpuLevel::kBaseline);
    const auto part = decoded(spec, encoding.wire, numel);
    for (int64_t i = 0; i < numel; ++i) mean[i] += part[i] / 3.0F;
  }
  Buffer shadow(numel * 4);
  fill(shadow, DType::kFloat32, std::vector<float>(numel, 0.0F));
  Findings findings;
  const Buffer wire = reduced(spec, 3, -1, numel, cpu_level(), shadow, findings);
  const auto delivered = decoded(spec, wire, numel), left = read(shadow, DType::kFloat32);
  for (int64_t i = 0; i < numel; ++i)
    EXPECT_NEAR(delivered[i] + left[i], mean[i], 1e-5F * (1 + std::fabs(mean[i])));
}

TEST(Quantize, DecodedPlusResidualIsTheOriginal) {
  for (const QuantizeSpec& spec : all_specs()) {
    if (spec.block_numel == 4096) continue;
    SCOPED_TRACE(text_of(spec));
    for (const int kind : {0, 3, 4, 5, 6}) {
      const int64_t numel = 1030;
      const auto gradient = make_values(kind, numel, 5), owed = make_values(kind, numel, 6);
      Encoding encoding(spec, gradient, owed, DType::kFloat32, Residual::kShadow, DType::kFloat32);
      encoding.run(cpu_level());
      const auto delivered = decoded(spec, encoding.wire, numel),
                 left = read(encoding.shadow, DType::kFloat32);
      for (int64_t begin = 0; begin < numel; begin += spec.block_numel) {
        const int64_t end = std::min<int64_t>(begin + spec.block_numel, numel);
        float largest = 0.0F, worst = 0.0F;
        for (int64_t i = begin; i < end; ++i)
          largest = std::max(largest, std::fabs(gradient[i] + owed[i]));
        for (int64_t i = begin; i < end; ++i) {
          ASSERT_NEAR(delivered[i] + left[i], gradient[i] + owed[i], largest * 2e-6F);
          worst = std::max(worst, std::fabs(left[i]));
        }
        // Within half a step of nearest and one of stochastic; bf16 scales widen a step by 1 / 128.
        if (spec.grid == GridKind::kClipped) continue;  // has a test of its own
        const float points = static_cast<float>(max_code(spec));
        const float slack = spec.bf16_scales ? 1.02F : 1.0001F;
        const float rounding = spec.stochastic ? 1.0F : 0.5F;
        // A denormal range is too narrow for a grid: all of it stays in the residual.
        if (kind != 3) {
          EXPECT_LE(worst, 2.0F * largest / points * rounding * slack);
        }
      }
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST(Quantize, ZeroIsExactOnASymmetricGrid) {
  for (int bits = 2; bits <= 8; ++bits) {
    for (const bool bf16_scales : {false, true}) {
      const QuantizeSpec spec{.bits = bits, .grid = GridKind::kSymmetric, .bf16_scales = bf16_scales};
      auto values = make_values(6, 700, 3);
      Encoding encoding(spec, values, values, DType::kFloat32, Residual::kNone, DType::kFloat32);
      encoding.run(cpu_level());
      const auto delivered = decoded(spec, encoding.wire, 700);
      for (size_t i = 0; i < values.size(); ++i) {
        if (values[i] == 0.0F) {
          EXPECT_EQ(delivered[i], 0.0F);
        }
      }
    }
  }
}

TEST(Quantize, ConstantAndZeroBlocksAreExact) {
  for (const QuantizeSpec& spec : all_specs()) {
    for (const CpuLevel level : available_levels()) {
      const std::vector<float> zeros(100, -0.0F), constant(100, 1.5F);
      Encoding zero(spec, zeros, zeros, DType::kFloat32, Residual::kInPlace, DType::kFloat32);
      zero.run(level);
      EXPECT_FALSE(zero.findings.nonzero);
      for (const float value : decoded(spec, zero.wire, 100)) EXPECT_EQ(value, 0.0F);
      if (has_one_number(spec) || spec.bf16_scales) continue;
      Encoding same(spec, constant, zeros, DType::kFloat32, Residual::kInPlace, DType::kFloat32);
      same.run(level);
      EXPECT_TRUE(same.findings.nonzero);
      for (const float value : decoded(spec, same.wire, 100)) EXPECT_EQ(value, 1.5F);
    }
  }
}

TEST(Quantize, NonzeroSpeaksOfTheGradientAlone) {
  for (const CpuLevel level : available_levels()) {
    for (const DType dtype : kAllDTypes) {
      const std::vector<float> zeros(700, -0.0F);
      std::vector<float> last = zeros;
      last.back() = 1e-7F;
      const auto owed = make_values(0, 700, 1);
      Encoding none({}, zeros, owed, dtype, Residual::kShadow, DType::kFloat32);
      Encoding one({}, last, owed, dtype, Residual::kShadow, DType::kFloat32);
      none.run(level);
      one.run(level);
      EXPECT_FALSE(none.findings.nonzero);
      EXPECT_TRUE(one.findings.nonzero);
    }
  }
}

TEST(Quantize, ABlockWithInfOrNanDecodesToNanAndLeavesNoResidual) {
  const int64_t numel = 1100;
  for (const QuantizeSpec& base : all_specs()) {
    if (base.block_numel != 512) continue;
    for (const CpuLevel level : available_levels()) {
      for (const float bad : {kInf, -kInf, kNan}) {
        for (const int64_t at : {int64_t{0}, int64_t{511}, int64_t{700}, numel - 1}) {
          auto values = make_values(0, numel, 8);
          values[at] = bad;
          Encoding encoding(base, values, make_values(0, numel, 9), DType::kFloat32, Residual::kShadow,
                            DType::kFloat32);
          encoding.run(level);
          EXPECT_TRUE(encoding.findings.nonfinite);
          Encoding scalar(base, values, make_values(0, numel, 9), DType::kFloat32, Residual::kShadow,
                          DType::kFloat32);
          scalar.run(CpuLevel::kBaseline);
          expect_same(encoding, scalar);
          const auto delivered = decoded(base, encoding.wire, numel);
          const auto left = read(encoding.shadow, DType::kFloat32);
          for (int64_t i = 0; i < numel; ++i) {
            const bool broken = i / 512 == at / 512;
            ASSERT_EQ(std::isnan(delivered[i]), broken) << i;
            if (broken) {
              ASSERT_EQ(left[i], 0.0F);
            }
          }
          const WithLevel guard(level);
          Buffer out(numel * 4);
          EXPECT_TRUE(
              quantize_decode(base, encoding.wire.data(), numel, out.data(), DType::kFloat32).nonfinite);
        }
      }
    }
  }
}

TEST(Quantize, ARangeThatOverflowsIsNotDelivered) {
  for (const CpuLevel level : available_levels()) {
    for (const GridKind grid : {GridKind::kMinMax, GridKind::kSymmetric, GridKind::kClipped}) {
      const QuantizeSpec spec{.bits = 4, .grid = grid};
      auto values = make_values(0, 600, 1);
      values[3] = kMax;
      values[4] = -kMax;
      Encoding encoding(spec, values, values, DType::kFloat32, Residual::kNone, DType::kFloat32);
      encoding.run(level);
      for (int64_t i = 0; i < 512; ++i) {
        // Others: 7 steps of kMax / 7, or 7.5 of less, just fit; the range from -kMax to kMax is inf.
        const float first = decoded(spec, encoding.wire, 600)[i];
        ASSERT_EQ(std::isfinite(first), !encoding.findings.nonfinite);
        if (grid == GridKind::kMinMax) {
          ASSERT_TRUE(std::isnan(first));
        }
      }
    }
  }
}

TEST(Quantize, AResidualThatOverflowsIsFound) {
  for (const CpuLevel level : available_levels()) {
    const std::vector<float> ones(40, 1.0F), large(40, 1e30F);
    Encoding encoding({}, ones, large, DType::kFloat32, Residual::kShadow, DType::kFloat32, 0, 1e10F);
    encoding.run(level);
    EXPECT_TRUE(encoding.findings.nonfinite);
  }
}

TEST(Quantize, DecodingToFp16FindsOverflow) {
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    const QuantizeSpec spec{.bits = 4};
    for (const float top : {60000.0F, 65000.0F, 66000.0F, 70000.0F, -70000.0F}) {
      auto values = make_values(0, 600, 1);
      values[5] = top;
      Encoding encoding(spec, values, values, DType::kFloat32, Residual::kNone, DType::kFloat32);
      encoding.run(level);
      Buffer out(600 * 2);
      EXPECT_EQ(quantize_decode(spec, encoding.wire.data(), 600, out.data(), DType::kFloat16).nonfinite,
                std::fabs(top) >= 65520.0F)
          << top;
      EXPECT_FALSE(quantize_decode(spec, encoding.wire.data(), 600, Buffer(2400).data(), DType::kFloat32)
                       .nonfinite);
    }
  }
}

TEST(Quantize, StochasticRoundingIsUnbiasedAndDependsOnItsCounter) {
  const QuantizeSpec spec{.bits = 2, .stochastic = true};
  std::vector<float> values(4096, 0.3F);
  for (size_t i = 0; i < values.size(); i += 512) values[i] = 0.0F, values[i + 1] = 3.0F;
  double sum = 0.0;
  std::vector<float> first;
  for (uint32_t step = 0; step < 50; ++step) {
    Buffer gradient(4096 * 4), wire(quantize_wire_bytes(spec, 4096));
    fill(gradient, DType::kFloat32, values);
    quantize_encode(spec, gradient.data(), DType::kFloat32, 4096, {}, {.seed = 1, .step = step},
                    wire.data());
    const auto delivered = decoded(spec, wire, 4096);
    for (size_t i = 2; i < 512; ++i) sum += delivered[i];
    if (step == 0) first = delivered;
    if (step == 1) {
      EXPECT_NE(delivered, first);
    }
    // Other blocks draw other numbers.
    EXPECT_FALSE(std::equal(delivered.begin(), delivered.begin() + 512, delivered.begin() + 512));
  }
  EXPECT_NEAR(sum / (50 * 510), 0.3, 0.01);
}

TEST(Quantize, RunsMayBeCutBetweenBlocks) {
  for (const QuantizeSpec& spec : all_specs()) {
    if (spec.block_numel > 512) continue;
    const auto values = make_values(0, 1200, 2);
    Encoding whole(spec, values, values, DType::kFloat32, Residual::kNone, DType::kFloat32);
    whole.run(cpu_level());
    const int64_t cut = spec.block_numel * (600 / spec.block_numel);
    const int64_t cut_bytes = quantize_wire_bytes(spec, cut);
    Buffer wire(quantize_wire_bytes(spec, 1200));
    Noise later = kNoise;
    later.first_block += static_cast<uint32_t>(cut / spec.block_numel);
    quantize_encode(spec, whole.gradient.data(), DType::kFloat32, cut, {}, kNoise, wire.data());
    quantize_encode(spec, whole.gradient.data() + cut * 4, DType::kFloat32, 1200 - cut, {}, later,
                    wire.data() + cut_bytes);
    EXPECT_TRUE(wire == whole.wire) << text_of(spec);
  }
}

/// Share of the squares of normally distributed values that a clipped grid leaves out.
double clipped_loss(int bits, int block) {
  const int64_t numel = 64 * 1024;
  std::mt19937 random(bits);
  std::normal_distribution<double> normal;
  std::vector<float> values(numel);
  for (float& value : values) value = static_cast<float>(1e-3 * normal(random));
  const QuantizeSpec spec{.bits = bits, .block_numel = block, .grid = GridKind::kClipped};
  Encoding encoding(spec, values, std::vector<float>(numel, 0.0F), DType::kFloat32, Residual::kInPlace,
                    DType::kFloat32);
  encoding.run(cpu_level());
  const auto left = read(encoding.shadow, DType::kFloat32);
  double lost = 0.0, all = 0.0;
  for (int64_t i = 0; i < numel; ++i) {
    lost += static_cast<double>(left[i]) * left[i];
    all += static_cast<double>(values[i]) * values[i];
  }
  return lost / all;
}

TEST(Quantize, AClippedGridLosesWhatTheBestUniformGridLosesOfANormalDistribution) {
  // Max, Quantizing for minimum distortion (1960), table II: 2, 4, 8, 16, 32 points.
  const double best[] = {0.3634, 0.1188, 0.0374, 0.0115, 0.0035};
  for (int bits = 1; bits <= 5; ++bits) {
    for (const int block : {256, 512, 1024, 2048, 4096}) {
      EXPECT_LT(clipped_loss(bits, block), 1.12 * best[bits - 1]) << bits << " bits, " << block;
    }
  }
}

TEST(Quantize, AValueThatStandsAloneLeavesAClippedGridWithinAFewSteps) {
  std::vector<float> values(512, 0.0F), owed(512, 0.0F);
  values[77] = -3.0F;
  const QuantizeSpec spec{.bits = 4, .grid = GridKind::kClipped};
  float first_left = 0.0F;
  for (int step = 0; step < 12; ++step) {
    Encoding encoding(spec, values, owed, DType::kFloat32, Residual::kInPlace, DType::kFloat32);
    encoding.run(cpu_level());
    owed = read(encoding.shadow, DType::kFloat32);
    if (step == 0) first_left = owed[77];
    values.assign(512, 0.0F);
  }
  EXPECT_NEAR(first_left, -2.25F, 1e-6F);  // a quarter at once
  for (const float left : owed) EXPECT_LT(std::fabs(left), 0.15F);
}

TEST(Quantize, LanesBeyondTheEndOfARunCountAsZero) {
  // One element: its lane's magnitude among fifteen zeros; the quarter is larger.
  const QuantizeSpec spec{.bits = 1, .block_numel = 32, .grid = GridKind::kClipped};
  for (const CpuLevel level : available_levels()) {
    Encoding encoding(spec, {8.0F}, {0.0F}, DType::kFloat32, Residual::kNone, DType::kFloat32);
    encoding.run(level);
    EXPECT_EQ(decoded(spec, encoding.wire, 1)[0], 2.0F);
  }
}

TEST(Quantize, AWireIsWhatItsDescriptionSays) {
  // Range [0, 15] in 4 bits: lo 0, step 1, codes are the values, two to a byte, zeros to 4 bytes.
  const QuantizeSpec spec{.bits = 4, .block_numel = 32};
  const std::vector<float> values = {0.0F, 15.0F, 3.0F, 9.0F, 7.0F};
  EXPECT_EQ(quantize_wire_bytes(spec, 5), 12);
  for (const CpuLevel level : available_levels()) {
    Encoding encoding(spec, values, values, DType::kFloat32, Residual::kNone, DType::kFloat32);
    encoding.run(level);
    const uint8_t expected[12] = {0, 0, 0, 0, 0, 0, 0x80, 0x3F, 0xF0, 0x93, 0x07, 0x00};
    EXPECT_EQ(memcmp(encoding.wire.data(), expected, sizeof expected), 0);
  }
}

}  // namespace
}  // namespace lgreco::kernels
