// The dense kernels: every level against the scalar one, bit for bit, and what they promise.
#include "kernels/dense.h"

#include <cmath>
#include <limits>

#include "kernel_cases.h"

namespace lgreco::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Where the residual lives: nowhere, in one place, in a committed and a shadow arena.
enum class Residual { kNone, kInPlace, kShadow };
constexpr Residual kResiduals[] = {Residual::kNone, Residual::kInPlace, Residual::kShadow};

/// The memory of one call.
struct Memory {
  Memory(const std::vector<float>& values, DType dtype, DType wire_dtype, Residual residual,
         DType residual_dtype, size_t misalignment = 0)
      : numel(static_cast<int64_t>(values.size())),
        input(numel * element_bytes(dtype), misalignment),
        committed(numel * element_bytes(residual_dtype), misalignment * 4),
        shadow(numel * element_bytes(residual_dtype), misalignment * 4),
        wire(numel * element_bytes(wire_dtype), misalignment) {
    fill(input, dtype, values);
    fill(committed, residual_dtype, make_values(0, numel, 77));
    shadow.take(committed);
    feedback = {.dtype = residual_dtype, .scale = 8.0F, .inverse_scale = 0.125F};
    if (residual == Residual::kNone) return;
    feedback.in = residual == Residual::kInPlace ? shadow.data() : committed.data();
    feedback.out = shadow.data();
  }
  bool guards_hold() const {
    return input.guards_hold() && committed.guards_hold() && shadow.guards_hold() && wire.guards_hold();
  }

  int64_t numel;
  Buffer input, committed, shadow, wire;
  Feedback feedback;
};

template <typename Body>
void for_each_case(const Body& body) {
  size_t misalignment = 0;
  for (const DType dtype : kAllDTypes) {
    for (const DType wire_dtype : kAllDTypes) {
      for (const Residual residual : kResiduals) {
        for (const DType residual_dtype : {DType::kFloat32, DType::kBFloat16}) {
          for (const int64_t numel : kSizes) {
            SCOPED_TRACE(std::string(name_of(dtype)) + " wire " + name_of(wire_dtype) + " residual " +
                         std::to_string(static_cast<int>(residual)) + " " + name_of(residual_dtype) +
                         " numel " + std::to_string(numel));
            body(dtype, wire_dtype, residual, residual_dtype, numel, misalignment++ % 5);
            if (::testing::Test::HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(Dense, LevelsEncodeAlike) {
  for_each_case([](DType dtype, DType wire_dtype, Residual residual, DType residual_dtype, int64_t numel,
                   size_t misalignment) {
    for (int kind = 0; kind < kValueKinds; kind += 2) {
      const auto values = make_values(kind, numel, 3);
      Memory expected(values, dtype, wire_dtype, residual, residual_dtype, misalignment);
      Findings expected_findings;
      for (const CpuLevel level : available_levels()) {
        const WithLevel guard(level);
        Memory memory(values, dtype, wire_dtype, residual, residual_dtype, misalignment);
        const Findings findings = dense_encode(wire_dtype, memory.input.data(), dtype, numel,
                                               memory.feedback, memory.wire.data());
        EXPECT_TRUE(memory.guards_hold());
        if (level == CpuLevel::kBaseline) {
          expected.wire.take(memory.wire);
          expected.shadow.take(memory.shadow);
          expected_findings = findings;
        }
        EXPECT_TRUE(memory.wire == expected.wire) << name_of(level);
        EXPECT_TRUE(memory.shadow == expected.shadow) << name_of(level);
        EXPECT_EQ(findings.nonzero, expected_findings.nonzero);
        EXPECT_EQ(findings.nonfinite, expected_findings.nonfinite);
      }
    }
  });
}

TEST(Dense, LevelsReduceAlikeAlsoOverAWire) {
  for_each_case([](DType, DType wire_dtype, Residual residual, DType residual_dtype, int64_t numel,
                   size_t misalignment) {
    for (const int count : {1, 2, 5}) {
      for (const int over : {-1, 0, count - 1}) {
        Buffer expected(numel * element_bytes(wire_dtype)),
            expected_shadow(numel * element_bytes(residual_dtype));
        for (const CpuLevel level : available_levels()) {
          const WithLevel guard(level);
          Memory memory(make_values(0, numel, 9), DType::kFloat32, wire_dtype, residual, residual_dtype,
                        misalignment);
          std::vector<Buffer> wires;
          std::vector<const uint8_t*> pointers;
          for (int k = 0; k < count; ++k) {
            wires.emplace_back(numel * element_bytes(wire_dtype), misalignment + k);
            fill(wires.back(), wire_dtype, make_values(0, numel, static_cast<uint32_t>(k)));
          }
          for (const Buffer& wire : wires) pointers.push_back(wire.data());
          Buffer& out = over < 0 ? memory.wire : wires[over];
          const Findings findings = dense_reduce(wire_dtype, pointers.data(), count, 1.0F / 3.0F, numel,
                                                 memory.feedback, out.data());
          EXPECT_FALSE(findings.nonfinite);
          EXPECT_TRUE(memory.guards_hold() && out.guards_hold());
          if (level == CpuLevel::kBaseline) {
            expected.take(out);
            expected_shadow.take(memory.shadow);
          }
          EXPECT_TRUE(out == expected) << name_of(level) << " count " << count << " over " << over;
          EXPECT_TRUE(memory.shadow == expected_shadow) << name_of(level);
        }
      }
    }
  });
}

TEST(Dense, LevelsDecodeAlike) {
  for (const DType wire_dtype : kAllDTypes) {
    for (const DType dtype : kAllDTypes) {
      for (const int64_t numel : kSizes) {
        Buffer wire(numel * element_bytes(wire_dtype), 3), expected(numel * element_bytes(dtype));
        fill(wire, wire_dtype, make_values(4, numel, 5));
        for (const CpuLevel level : available_levels()) {
          const WithLevel guard(level);
          Buffer out(numel * element_bytes(dtype), 7);
          dense_decode(wire_dtype, wire.data(), numel, out.data(), dtype);
          if (level == CpuLevel::kBaseline) expected.take(out);
          EXPECT_TRUE(out == expected) << name_of(level) << " " << numel;
          EXPECT_TRUE(out.guards_hold());
        }
      }
    }
  }
}

TEST(Dense, Fp32WithoutResidualIsACopy) {
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    const auto values = make_values(4, 1001, 1);
    Memory memory(values, DType::kFloat32, DType::kFloat32, Residual::kNone, DType::kFloat32);
    const Findings findings = dense_encode(DType::kFloat32, memory.input.data(), DType::kFloat32, 1001,
                                           {}, memory.wire.data());
    EXPECT_TRUE(memory.wire == memory.input);
    EXPECT_TRUE(findings.nonzero);
    EXPECT_FALSE(findings.nonfinite);
  }
}

TEST(Dense, DecodedPlusResidualIsTheOriginal) {
  for (const DType wire_dtype : kAllDTypes) {
    const int64_t numel = 1001;
    const auto values = make_values(0, numel, 1);
    Memory memory(values, DType::kFloat32, wire_dtype, Residual::kShadow, DType::kFloat32);
    const auto owed = read(memory.committed, DType::kFloat32);
    dense_encode(wire_dtype, memory.input.data(), DType::kFloat32, numel, memory.feedback,
                 memory.wire.data());
    const auto sent = read(memory.wire, wire_dtype), left = read(memory.shadow, DType::kFloat32);
    for (int64_t i = 0; i < numel; ++i) {
      // One rounding of the sum; the scale of 8 is exact.
      const float value = values[i] + owed[i] * 8.0F;
      ASSERT_NEAR(sent[i] + left[i] * 8.0F, value, std::fabs(value) * 1e-7F);
      ASSERT_LE(std::fabs(left[i] * 8.0F), std::fabs(value) * 0x1p-8F + 0x1p-24F);
    }
  }
}

TEST(Dense, InfAndNanAreFoundWhereverTheyAre) {
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    for (const DType wire_dtype : kAllDTypes) {
      for (const float bad : {kInf, -kInf, kNan, wire_dtype == DType::kFloat16 ? 1e5F : kInf}) {
        for (const int64_t where : {0, 17, 1000}) {
          auto values = make_values(0, 1001, 1);
          values[where] = bad;
          Memory memory(values, DType::kFloat32, wire_dtype, Residual::kShadow, DType::kFloat32);
          EXPECT_TRUE(dense_encode(wire_dtype, memory.input.data(), DType::kFloat32, 1001,
                                   memory.feedback, memory.wire.data())
                          .nonfinite);
          EXPECT_EQ(read(memory.shadow, DType::kFloat32)[where], 0.0F);
          EXPECT_EQ(std::isnan(read(memory.wire, wire_dtype)[where]), std::isnan(bad));
          const uint8_t* wire = memory.wire.data();
          Buffer out(1001 * 4);
          EXPECT_TRUE(dense_decode(wire_dtype, wire, 1001, out.data(), DType::kFloat32).nonfinite);
          EXPECT_TRUE(dense_reduce(wire_dtype, &wire, 1, 1.0F, 1001, {}, memory.wire.data()).nonfinite);
        }
      }
    }
  }
}

TEST(Dense, DecodingToFp16FindsOverflow) {
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    for (const int64_t where : {0, 40}) {
      std::vector<float> values(41, 1.0F);
      values[where] = 70000.0F;
      Buffer wire(41 * 4), out(41 * 2);
      fill(wire, DType::kFloat32, values);
      EXPECT_TRUE(dense_decode(DType::kFloat32, wire.data(), 41, out.data(), DType::kFloat16).nonfinite);
      EXPECT_FALSE(
          dense_decode(DType::kFloat32, wire.data(), 41, Buffer(164).data(), DType::kFloat32).nonfinite);
    }
  }
}

TEST(Dense, NonzeroSpeaksOfTheGradientAlone) {
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    for (const DType dtype : kAllDTypes) {
      for (const int64_t where : {-1, 0, 99, 100}) {
        std::vector<float> values(101, -0.0F);
        if (where >= 0) values[where] = 1e-6F;
        Memory memory(values, dtype, DType::kBFloat16, Residual::kShadow, DType::kFloat32);
        EXPECT_EQ(dense_encode(DType::kBFloat16, memory.input.data(), dtype, 101, memory.feedback,
                               memory.wire.data())
                      .nonzero,
                  where >= 0);
      }
    }
  }
}

}  // namespace
}  // namespace lgreco::kernels
