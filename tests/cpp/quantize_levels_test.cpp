// The quantise kernels of every instruction set level against the scalar one, bit for bit.
#include "quantize_cases.h"

namespace lgreco::kernels {
namespace {

TEST(QuantizeLevels, EncodeAlike) {
  uint32_t seed = 0;
  for (const QuantizeSpec& spec : all_specs()) {
    SCOPED_TRACE(text_of(spec));
    for (const int64_t numel : kSizes) {
      const DType dtype = kAllDTypes[seed % 3];
      const auto residual = static_cast<Residual>(seed / 3 % 3);
      const DType residual_dtype = seed / 9 % 2 == 0 ? DType::kFloat32 : DType::kBFloat16;
      const int kind = static_cast<int>(seed % kValueKinds);
      const auto gradient = make_values(kind, numel, ++seed);
      const auto owed = make_values(kind == 1 ? 1 : 4, numel, ++seed);
      const size_t misalignment = seed % 5;
      const float scale = seed % 4 == 0 ? 1024.0F : 1.0F;
      Encoding scalar(spec, gradient, owed, dtype, residual, residual_dtype, misalignment, scale);
      scalar.run(CpuLevel::kBaseline);
      for (const CpuLevel level : faster_levels()) {
        SCOPED_TRACE(std::string(name_of(level)) + " numel " + std::to_string(numel) + " kind " +
                     std::to_string(kind) + " dtype " + name_of(dtype) + " residual " +
                     std::to_string(static_cast<int>(residual)) + " " + name_of(residual_dtype));
        Encoding fast(spec, gradient, owed, dtype, residual, residual_dtype, misalignment, scale);
        fast.run(level);
        expect_same(fast, scalar);
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(QuantizeLevels, EncodeEveryTypeAlike) {
  const int64_t numel = 1500;
  for (const DType dtype : kAllDTypes) {
    for (const Residual residual : {Residual::kNone, Residual::kInPlace, Residual::kShadow}) {
      for (const DType residual_dtype : {DType::kFloat32, DType::kBFloat16}) {
        for (int kind = 0; kind < kValueKinds; ++kind) {
          for (const bool stochastic : {false, true}) {
            const QuantizeSpec spec{.bits = 4, .stochastic = stochastic};
            const auto gradient = make_values(kind, numel, 1), owed = make_values(4, numel, 2);
            Encoding scalar(spec, gradient, owed, dtype, residual, residual_dtype);
            scalar.run(CpuLevel::kBaseline);
            for (const CpuLevel level : faster_levels()) {
              Encoding fast(spec, gradient, owed, dtype, residual, residual_dtype);
              fast.run(level);
              expect_same(fast, scalar);
            }
          }
        }
      }
    }
  }
}

TEST(QuantizeLevels, DecodeAlike) {
  uint32_t seed = 0;
  for (const QuantizeSpec& spec : all_specs()) {
    SCOPED_TRACE(text_of(spec));
    for (const int64_t numel : kSizes) {
      ++seed;
      const auto gradient = make_values(static_cast<int>(seed % kValueKinds), numel, seed);
      Encoding encoding(spec, gradient, gradient, DType::kFloat32, Residual::kNone, DType::kFloat32,
                        seed % 5);
      encoding.run(CpuLevel::kBaseline);
      for (const DType dtype : kAllDTypes) {
        Buffer expected(numel * element_bytes(dtype), seed % 3 * 4);
        {
          const WithLevel guard(CpuLevel::kBaseline);
          quantize_decode(spec, encoding.wire.data(), numel, expected.data(), dtype);
        }
        for (const CpuLevel level : faster_levels()) {
          const WithLevel guard(level);
          Buffer out(numel * element_bytes(dtype), seed % 3 * 4);
          quantize_decode(spec, encoding.wire.data(), numel, out.data(), dtype);
          EXPECT_TRUE(out == expected) << name_of(level) << " numel " << numel << " " << name_of(dtype);
          EXPECT_TRUE(out.guards_hold());
        }
      }
      Buffer sum(numel * 4, 4), fast_sum(numel * 4, 4);
      fill(sum, DType::kFloat32, make_values(0, numel, seed + 1));
      for (const CpuLevel level : faster_levels()) {
        fast_sum.take(sum);
        Buffer slow_sum(numel * 4, 4);
        slow_sum.take(sum);
        {
          const WithLevel guard(level);
          quantize_decode_add(spec, encoding.wire.data(), numel,
                              reinterpret_cast<float*>(fast_sum.data()));
        }
        const WithLevel guard(CpuLevel::kBaseline);
        quantize_decode_add(spec, encoding.wire.data(), numel,
                            reinterpret_cast<float*>(slow_sum.data()));
        EXPECT_TRUE(fast_sum == slow_sum) << name_of(level) << " numel " << numel;
        EXPECT_TRUE(fast_sum.guards_hold());
      }
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST(QuantizeLevels, ReduceAlike) {
  for (const QuantizeSpec& spec : all_specs()) {
    SCOPED_TRACE(text_of(spec));
    for (const int64_t numel : {int64_t{1}, int64_t{33}, int64_t{513}, int64_t{4097}}) {
      const int count = 1 + spec.bits % 4 * 3;
      const auto owed = make_values(0, numel, 99);
      Buffer shadow(numel * 4);
      fill(shadow, DType::kFloat32, owed);
      Findings findings;
      const Buffer expected = reduced(spec, count, -1, numel, CpuLevel::kBaseline, shadow, findings);
      EXPECT_FALSE(findings.nonfinite);
      for (const CpuLevel level : available_levels()) {
        for (const int over : {-1, 0, count - 1}) {
          Buffer fast_shadow(numel * 4);
          fill(fast_shadow, DType::kFloat32, owed);
          EXPECT_TRUE(expected == reduced(spec, count, over, numel, level, fast_shadow, findings))
              << name_of(level) << " numel " << numel << " over " << over;
          EXPECT_TRUE(shadow == fast_shadow);
        }
      }
      if (::testing::Test::HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace lgreco::kernels
