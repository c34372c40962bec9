// What the tests of the quantise kernels share: every spec, and calls with all their memory.
#pragma once

#include <limits>
#include <string>

#include "kernel_cases.h"
#include "kernels/quantize.h"

namespace lgreco::kernels {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kMax = std::numeric_limits<float>::max();
inline constexpr Noise kNoise{.seed = 0x123456789ABCDEFULL, .step = 7, .stream = 42, .first_block = 3};

/// Where the residual lives: nowhere, in one place, in a committed and a shadow arena.
enum class Residual { kNone, kInPlace, kShadow };

inline constexpr int kVariants = 12;

/// Every grid with either rounding and either type of scales, by number.
inline QuantizeSpec variant_of(int bits, int block, unsigned variant) {
  return {bits, block, static_cast<GridKind>(variant % 3), variant / 3 % 2 != 0, variant / 6 % 2 != 0};
}

inline std::vector<QuantizeSpec> all_specs() {
  std::vector<QuantizeSpec> specs;
  for (int bits = 1; bits <= 8; ++bits) {
    for (const int block : {32, 64, 96, 512, 4096}) {
      for (unsigned variant = 0; variant < kVariants; ++variant)
        specs.push_back(variant_of(bits, block, variant));
    }
  }
  return specs;
}

inline std::string text_of(const QuantizeSpec& spec) {
  static const char* const kGrids[] = {" minmax", " symmetric", " clipped"};
  return "bits " + std::to_string(spec.bits) + " block " + std::to_string(spec.block_numel) +
         kGrids[static_cast<int>(spec.grid)] + (spec.stochastic ? " stochastic" : " nearest") +
         (spec.bf16_scales ? " bf16 scales" : " fp32 scales");
}

/// One call of encode with all its memory.
struct Encoding {
  Encoding(const QuantizeSpec& spec, const std::vector<float>& gradient_values,
           const std::vector<float>& residual_values, DType dtype, Residual residual,
           DType residual_dtype, size_t misalignment = 0, float scale = 1.0F)
      : spec(spec),
        dtype(dtype),
        numel(static_cast<int64_t>(gradient_values.size())),
        gradient(numel * element_bytes(dtype), misalignment * element_bytes(dtype)),
        committed(numel * element_bytes(residual_dtype), misalignment * element_bytes(residual_dtype)),
        shadow(numel * element_bytes(residual_dtype), misalignment * element_bytes(residual_dtype)),
        wire(quantize_wire_bytes(spec, numel), misalignment * 4) {
    fill(gradient, dtype, gradient_values);
    fill(committed, residual_dtype, residual_values);
    shadow.take(committed);
    feedback.dtype = residual_dtype;
    feedback.scale = scale;
    feedback.inverse_scale = 1.0F / scale;
    if (residual == Residual::kNone) return;
    feedback.in = residual == Residual::kInPlace ? shadow.data() : committed.data();
    feedback.out = shadow.data();
  }

  void run(CpuLevel level) {
    const WithLevel guard(level);
    findings = quantize_encode(spec, gradient.data(), dtype, numel, feedback, kNoise, wire.data());
    EXPECT_TRUE(gradient.guards_hold() && committed.guards_hold() && shadow.guards_hold() &&
                wire.guards_hold());
  }

  QuantizeSpec spec;
  DType dtype;
  int64_t numel;
  Buffer gradient, committed, shadow, wire;
  Feedback feedback;
  Findings findings;
};

inline void expect_same(const Encoding& a, const Encoding& b) {
  EXPECT_TRUE(a.wire == b.wire);
  EXPECT_TRUE(a.shadow == b.shadow);
  EXPECT_EQ(a.findings.nonfinite, b.findings.nonfinite);
  EXPECT_EQ(a.findings.nonzero, b.findings.nonzero);
}

inline std::vector<float> decoded(const QuantizeSpec& spec, const Buffer& wire, int64_t numel) {
  Buffer out(numel * 4);
  quantize_decode(spec, wire.data(), numel, out.data(), DType::kFloat32);
  return read(out, DType::kFloat32);
}

/// Encodes `count` wires, and reduces them into a wire of its own or over wire `over`.
inline Buffer reduced(const QuantizeSpec& spec, int count, int over, int64_t numel, CpuLevel level,
                      Buffer& shadow, Findings& findings) {
  std::vector<std::unique_ptr<Encoding>> encodings;
  std::vector<const uint8_t*> wires;
  for (int k = 0; k < count; ++k) {
    const auto values = make_values(k % 2 == 0 ? 0 : 4, numel, static_cast<uint32_t>(k + 1));
    encodings.push_back(std::make_unique<Encoding>(spec, values, values, DType::kFloat32,
                                                   Residual::kNone, DType::kFloat32, k % 3));
    encodings.back()->run(CpuLevel::kBaseline);
    wires.push_back(encodings.back()->wire.data());
  }
  Buffer own(quantize_wire_bytes(spec, numel));
  Buffer& out = over < 0 ? own : encodings[over]->wire;
  Feedback feedback{.in = shadow.data(), .out = shadow.data(), .dtype = DType::kFloat32};
  const WithLevel guard(level);
  findings = quantize_reduce(spec, wires.data(), count, 1.0F / static_cast<float>(count), numel,
                             feedback, kNoise, out.data());
  EXPECT_TRUE(out.guards_hold() && shadow.guards_hold());
  Buffer result(out.bytes());
  result.take(out);
  return result;
}

}  // namespace lgreco::kernels
