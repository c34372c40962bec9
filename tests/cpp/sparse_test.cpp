// The sparse kernels (topk, randomk) of every instruction set level against a naive reference.
#include "sparse_cases.h"

namespace lgreco::kernels {
namespace {

constexpr int64_t kSparseSizes[] = {0, 1, 15, 16, 31, 33, 127, 512, 513, 4095, 4096, 4097, 9000};

/// Runs on every level and expects the reference's wire, residual and findings.
void expect_reference(const SparseSpec& spec, const std::vector<float>& gradient,
                      const std::vector<float>& owed, DType dtype, Residual residual,
                      DType residual_dtype, size_t misalignment, float scale) {
  for (const CpuLevel level : available_levels()) {
    SparseCall call(spec, gradient, owed, dtype, residual, residual_dtype, misalignment, scale);
    const NaiveRun expected(spec, call.values());
    call.run(level);
    SCOPED_TRACE(concat(name_of(level), " numel ", gradient.size(), " ", name_of(dtype), " residual ",
                        static_cast<int>(residual), " ", name_of(residual_dtype)));
    ASSERT_TRUE(same_bytes(call.wire, expected.wire));
    ASSERT_EQ(call.findings.nonfinite, !expected.sound);
    ASSERT_EQ(call.findings.nonzero,
              std::any_of(gradient.begin(), gradient.end(), [](float value) { return value != 0.0F; }));
    if (expected.sound) {
      ASSERT_TRUE(same_bits(decoded(spec, call.wire, call.numel), expected.decoded));
    }
    if (residual == Residual::kNone) continue;
    Buffer left(call.shadow.bytes());
    for (size_t i = 0; i < expected.left.size(); ++i) {
      store_element(left.data(), residual_dtype, static_cast<int64_t>(i),
                    expected.left[i] * call.feedback.inverse_scale);
    }
    ASSERT_TRUE(call.shadow == left);
  }
}

TEST(Sparse, EncodesAsTheReferenceDoes) {
  uint32_t seed = 0;
  for (const SparseSpec& spec : some_specs()) {
    SCOPED_TRACE(text_of(spec));
    for (const int64_t numel : kSparseSizes) {
      const DType dtype = kAllDTypes[seed % 3 == 0 ? 0 : seed / 3 % 3];
      const auto residual = static_cast<Residual>(seed / 3 % 3);
      const DType residual_dtype = seed / 9 % 3 != 2 ? DType::kFloat32 : DType::kBFloat16;
      const int kind = static_cast<int>(seed % kValueKinds);
      auto gradient = make_values(kind, numel, ++seed);
      for (float& value : gradient) {  // as the tensor holds it, so that nonzero speaks of the same
        uint32_t element;
        value = store_element(&element, dtype, 0, value);
      }
      const auto owed = make_values(kind == 1 || kind == 2 ? 1 : 4, numel, ++seed);
      expect_reference(spec, gradient, owed, dtype, residual, residual_dtype, seed % 5,
                       seed % 4 == 0 ? 1024.0F : 1.0F);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(Sparse, EncodesLargeBlocksAsTheReferenceDoes) {
  const int64_t numel = 65536 + 7;
  for (const bool random : {false, true}) {
    for (const double density : {1e-4, 0.01, 0.5}) {
      for (const int kind : {0, 1, 2, 3, 4, 6}) {
        const SparseSpec spec{density, 65536, kind % 2 == 0 ? 8 : 32, random};
        SCOPED_TRACE(concat(text_of(spec), " kind ", kind));
        expect_reference(spec, make_values(kind, numel, 1), make_values(kind, numel, 2), DType::kFloat32,
                         Residual::kShadow, DType::kFloat32, 0, 1.0F);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(Sparse, OfEqualMagnitudesTheLowestIndexIsTaken) {
  std::mt19937 random(3);
  for (const int block : {64, 512, 4096}) {
    for (const double density : {0.002, 0.01, 0.1, 0.5}) {
      for (const uint32_t distinct : {1U, 2U, 5U, 40U}) {
        std::vector<float> values(static_cast<size_t>(3 * block + 5));
        for (float& value : values) {
          value = static_cast<float>(random() % distinct) * ((random() & 1U) != 0 ? 1.0F : -1.0F);
        }
        SCOPED_TRACE(concat("block ", block, " density ", density, " distinct ", distinct));
        expect_reference({density, block, 32, false}, values, std::vector<float>(values.size()),
                         DType::kFloat32, Residual::kShadow, DType::kFloat32, 0, 1.0F);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(Sparse, ABlockWithInfOrNanIsSeenByAllAndLeavesNoResidual) {
  const int64_t numel = 1100;
  for (const bool random : {false, true}) {
    for (const int bits : {4, 8, 16, 32}) {
      const SparseSpec spec{0.01, 512, bits, random};
      for (const CpuLevel level : available_levels()) {
        for (const float bad : {kInf, -kInf, kNan}) {
          for (const int64_t at : {int64_t{0}, int64_t{511}, int64_t{700}, numel - 1}) {
            auto values = make_values(0, numel, 8);
            values[at] = bad;
            SparseCall call(spec, values, make_values(0, numel, 9));
            const NaiveRun expected(spec, call.values());
            call.run(level);
            EXPECT_TRUE(call.findings.nonfinite);
            ASSERT_TRUE(same_bytes(call.wire, expected.wire));
            ASSERT_TRUE(same_bits(read(call.shadow, DType::kFloat32), expected.left));
            const auto delivered = decoded(spec, call.wire, numel);
            bool seen = false;
            for (int64_t i = 0; i < numel; ++i) {
              ASSERT_TRUE(std::isfinite(delivered[i]) || i / 512 == at / 512);
              seen |= !std::isfinite(delivered[i]);
            }
            EXPECT_TRUE(seen);
            Buffer out(numel * 4);
            EXPECT_TRUE(
                sparse_decode(spec, call.wire.data(), numel, kSparseNoise, out.data(), DType::kFloat32)
                    .nonfinite);
          }
        }
      }
    }
  }
}

TEST(Sparse, WhatOverflowsIsNotDelivered) {
  for (const CpuLevel level : available_levels()) {
    const std::vector<float> ones(40, 1.0F), large(40, 1e30F);
    SparseCall residual({0.1, 64, 32, false}, ones, large, DType::kFloat32, Residual::kShadow,
                        DType::kFloat32, 0, 1e10F);
    residual.run(level);
    EXPECT_TRUE(residual.findings.nonfinite);
    for (const float left : read(residual.shadow, DType::kFloat32)) EXPECT_EQ(left, 0.0F);
    std::vector<float> greatest = ones;
    greatest[7] = -kMax;  // bf16 rounds it to inf
    for (const int bits : {16, 32}) {
      SparseCall call({0.1, 64, bits, false}, greatest, ones, DType::kFloat32, Residual::kNone);
      call.run(level);
      EXPECT_EQ(call.findings.nonfinite, bits == 16);
    }
  }
}

TEST(Sparse, DecodingToFp16FindsOverflow) {
  for (const float top : {60000.0F, 65000.0F, 66000.0F, -70000.0F}) {
    auto values = make_values(0, 600, 1);
    values[5] = top;
    SparseCall call({0.01, 512, 32, false}, values, values, DType::kFloat32, Residual::kNone);
    call.run(cpu_level());
    Buffer out(1200);
    EXPECT_EQ(sparse_decode(call.spec, call.wire.data(), 600, kSparseNoise, out.data(), DType::kFloat16)
                  .nonfinite,
              std::fabs(top) >= 65520.0F);
    EXPECT_TRUE(out.guards_hold());
  }
}

/// Encodes `count` wires and reduces them, into a wire of its own or over wire `over`.
void expect_reference_sum(const SparseSpec& spec, int count, int over, int64_t numel, CpuLevel level,
                          Residual residual) {
  std::vector<Buffer> wires;
  std::vector<float> sum(static_cast<size_t>(numel));
  for (int k = 0; k < count; ++k) {
    SparseCall call(spec, make_values(k % 2 == 0 ? 0 : 4, numel, static_cast<uint32_t>(k + 1)),
                    std::vector<float>(static_cast<size_t>(numel)), DType::kFloat32, Residual::kNone,
                    DType::kFloat32, static_cast<size_t>(k % 3));
    call.run(CpuLevel::kBaseline);
    const auto part = decoded(spec, call.wire, numel);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += part[i];
    wires.push_back(std::move(call.wire));
  }
  const float factor = 1.0F / static_cast<float>(count);
  for (float& value : sum) value *= factor;
  std::vector<const uint8_t*> pointers;
  for (const Buffer& wire : wires) pointers.push_back(wire.data());
  Buffer own(sparse_wire_bytes(spec, numel));
  Buffer& out = over < 0 ? own : wires[static_cast<size_t>(over)];
  SparseCall call(spec, sum, make_values(0, numel, 99), DType::kFloat32, residual);
  const NaiveRun expected(spec, call.values());
  const WithLevel guard(level);
  const Findings findings = sparse_reduce(spec, pointers.data(), count, factor, numel, call.feedback,
                                          kSparseNoise, out.data());
  ASSERT_FALSE(findings.nonfinite);
  ASSERT_TRUE(out.guards_hold() && call.shadow.guards_hold());
  ASSERT_TRUE(same_bytes(out, expected.wire));
  if (residual == Residual::kNone) return;
  ASSERT_TRUE(same_bits(read(call.shadow, DType::kFloat32), expected.left));
}

TEST(Sparse, ReducesAsTheReferenceDoes) {
  int turn = 0;
  for (const SparseSpec& spec : some_specs()) {
    SCOPED_TRACE(text_of(spec));
    for (const int64_t numel : {int64_t{1}, int64_t{33}, int64_t{513}, int64_t{4097}}) {
      const int count = 1 + turn++ % 4 * 2;
      const int over = turn % 3 - 1;
      for (const CpuLevel level : available_levels()) {
        SCOPED_TRACE(concat(name_of(level), " numel ", numel, " count ", count, " over ", over));
        expect_reference_sum(spec, count, std::min(over, count - 1), numel, level,
                             static_cast<Residual>(turn % 3));
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(Sparse, DecodesToEveryType) {
  for (const DType dtype : kAllDTypes) {
    const SparseSpec spec{0.05, 512, 8, false};
    const auto values = make_values(0, 1300, 4);
    SparseCall call(spec, values, values, DType::kFloat32, Residual::kNone);
    call.run(cpu_level());
    const auto expected = decoded(spec, call.wire, 1300);
    Buffer out(1300 * element_bytes(dtype)), wanted(1300 * element_bytes(dtype));
    fill(wanted, dtype, expected);
    sparse_decode(spec, call.wire.data(), 1300, kSparseNoise, out.data(), dtype);
    EXPECT_TRUE(out == wanted && out.guards_hold()) << name_of(dtype);
  }
}

TEST(Sparse, RunsMayBeCutBetweenBlocks) {
  for (const bool random : {false, true}) {
    const SparseSpec spec{0.02, 96, 8, random};
    const auto values = make_values(0, 1000, 2);
    SparseCall whole(spec, values, values, DType::kFloat32, Residual::kNone);
    whole.run(cpu_level());
    const int64_t cut = 480;
    Buffer wire(whole.wire.bytes());
    Noise later = kSparseNoise;
    later.first_block += 5;
    sparse_encode(spec, values.data(), DType::kFloat32, cut, {}, kSparseNoise, wire.data());
    sparse_encode(spec, values.data() + cut, DType::kFloat32, 1000 - cut, {}, later,
                  wire.data() + sparse_wire_bytes(spec, cut));
    EXPECT_TRUE(wire == whole.wire);
  }
}

TEST(Sparse, AWireIsWhatItsDescriptionSays) {
  // 2 of 32: Elias-Fano with 3 low bits takes (31 >> 3) + 2 + 6 = 11 bits, a bitmap 32. Indices 5 and
  // 20: high parts 0 and 2 set bits 0 and 3, low parts are 5 and 4: 01001, 101, 100, from the right.
  std::vector<float> values(32, 0.5F);
  values[5] = -127.0F;
  values[20] = 64.0F;
  const SparseSpec spec{0.06, 32, 8, false};
  EXPECT_EQ(sparse_wire_bytes(spec, 32), 8);
  for (const CpuLevel level : available_levels()) {
    SparseCall call(spec, values, std::vector<float>(32));
    call.run(level);
    const std::vector<uint8_t> expected = {0, 0, 0x80, 0x3F, 0, 127 + 64, 0b10101001, 0b00000100};
    EXPECT_TRUE(same_bytes(call.wire, expected));
    EXPECT_EQ(read(call.shadow, DType::kFloat32)[20], 0.0F);
    EXPECT_EQ(read(call.shadow, DType::kFloat32)[21], 0.5F);
  }
  EXPECT_EQ(sparse_wire_bytes({0.01, 4096, 8, false}, 4096), 92);
  EXPECT_EQ(sparse_wire_bytes({0.01, 4096, 32, true}, 4096), 41 * 4);
  EXPECT_EQ(sparse_wire_bytes({0.5, 65536, 4, false}, 65536), 4 + 32768 / 2 + 65536 / 8);
}

}  // namespace
}  // namespace lgreco::kernels
