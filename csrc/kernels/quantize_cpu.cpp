// Quantisation on the CPU: the choice of instruction set level, and the scalar level that runs
// anywhere and that the other levels are tested against.
#include "core/cpu_dispatch.h"
#include "kernels/elements.h"
#include "kernels/quantize_levels.h"
#include "kernels/quantize_math.h"

namespace lgreco::kernels {
namespace scalar {
namespace {

constexpr int kMaxBlockNumel = 4096;

int block_numel_at(const QuantizeSpec& spec, int64_t begin, int64_t numel) {
  return static_cast<int>(numel - begin < spec.block_numel ? numel - begin : spec.block_numel);
}

/// Appends codes to a wire, least significant bit first.
class CodeWriter {
 public:
  CodeWriter(uint8_t* wire, int bits) : wire_(wire), bits_(bits) {}

  void put(int code) {
    pending_ |= static_cast<uint32_t>(code) << pending_bits_;
    for (pending_bits_ += bits_; pending_bits_ >= 8; pending_bits_ -= 8) {
      *wire_++ = static_cast<uint8_t>(pending_);
      pending_ >>= 8;
    }
  }

  /// Writes the last partial byte, then zeros up to `end`.
  void finish(const uint8_t* end) {
    if (pending_bits_ > 0) *wire_++ = static_cast<uint8_t>(pending_);
    while (wire_ != end) *wire_++ = 0;
  }

 private:
  uint8_t* wire_;
  int bits_;
  uint32_t pending_ = 0;
  int pending_bits_ = 0;
};

/// Takes codes from a wire, least significant bit first.
class CodeReader {
 public:
  CodeReader(const uint8_t* wire, int bits) : wire_(wire), bits_(bits) {}

  int take() {
    if (pending_bits_ < bits_) {
      pending_ |= static_cast<uint32_t>(*wire_++) << pending_bits_;
      pending_bits_ += 8;
    }
    const int code = static_cast<int>(pending_ & ((1U << bits_) - 1U));
    pending_ >>= bits_;
    pending_bits_ -= bits_;
    return code;
  }

 private:
  const uint8_t* wire_;
  int bits_;
  uint32_t pending_ = 0;
  int pending_bits_ = 0;
};

/// The grid of a block's values; broken where one of them is not finite.
Grid grid_of(const QuantizeSpec& spec, const float* values, int numel) {
  Spread spread{values[0], values[0], 0.0F};
  float lanes[kSpreadLanes] = {};
  bool finite = true;
  for (int i = 0; i < numel; ++i) {
    finite &= is_finite(values[i]);
    spread.lo = values[i] < spread.lo ? values[i] : spread.lo;
    spread.hi = values[i] > spread.hi ? values[i] : spread.hi;
    float& largest = lanes[i % kSpreadLanes];
    const float magnitude = std::fabs(values[i]);
    largest = magnitude > largest ? magnitude : largest;
  }
  for (int half = kSpreadLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  spread.mean_of_largest = lanes[0] * (1.0F / kSpreadLanes);
  return finite ? make_grid(spec, spread, numel) : broken_grid();
}

/// Codes one block's values and stores what the codes leave out from element `begin` of the run's
/// residual. Returns whether the block can be delivered.
bool encode_block(const QuantizeSpec& spec, const float* values, int numel, int64_t begin,
                  const Feedback& feedback, const Noise& noise, uint8_t* wire) {
  const Grid grid = grid_of(spec, values, numel);
  const bool sound = is_finite(grid.step);
  const int max = max_code(spec);
  const auto block = static_cast<uint32_t>(begin / spec.block_numel);
  write_grid(spec, grid, wire);
  CodeWriter codes(wire + quantize_metadata_bytes(spec), spec.bits);
  Philox4 draws[16];
  for (int i = 0; i < numel; ++i) {
    const uint32_t lane = static_cast<uint32_t>(i) % 16U;
    const uint32_t slot = static_cast<uint32_t>(i) / 16U % 8U;
    const uint32_t group = static_cast<uint32_t>(i) / kGroupNumel;
    if (spec.stochastic && slot == 0) draws[lane] = lane_draws(noise, block, group, lane);
    int code = 0;
    if (sound) {
      code = spec.stochastic ? stochastic_code(values[i], grid, draw_of(draws[lane], slot), max)
                             : nearest_code(values[i], grid, max);
    }
    codes.put(code);
    if (feedback.out == nullptr) continue;
    const float error = sound ? (values[i] - decode_code(grid, code)) * feedback.inverse_scale : 0.0F;
    store_element(feedback.out, feedback.dtype, begin + i, error);
  }
  codes.finish(wire + quantize_block_bytes(spec, numel));
  return sound;
}

/// Calls `visit(element index, decoded value)` for a run. Returns whether all grids are sound.
template <typename Visit>
bool decode_run(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel, const Visit& visit) {
  bool sound = true;
  for (int64_t begin = 0; begin < numel; begin += spec.block_numel) {
    const int block_numel = block_numel_at(spec, begin, numel);
    const Grid grid = read_grid(spec, wire);
    sound &= is_sound(grid, max_code(spec));
    CodeReader codes(wire + quantize_metadata_bytes(spec), spec.bits);
    for (int i = 0; i < block_numel; ++i) visit(begin + i, decode_code(grid, codes.take()));
    wire += quantize_block_bytes(spec, block_numel);
  }
  return sound;
}

/// values[i] += residual of element begin + i, in the gradient's scale.
void add_residual(const Feedback& feedback, int64_t begin, int numel, float* values) {
  if (feedback.in == nullptr) return;
  for (int i = 0; i < numel; ++i) {
    values[i] += load_element(feedback.in, feedback.dtype, begin + i) * feedback.scale;
  }
}

}  // namespace

Findings quantize_encode(const QuantizeSpec& spec, const void* gradient, DType dtype, int64_t numel,
                         const Feedback& feedback, const Noise& noise, uint8_t* wire) {
  Findings findings;
  float values[kMaxBlockNumel];
  for (int64_t begin = 0; begin < numel; begin += spec.block_numel) {
    const int block_numel = block_numel_at(spec, begin, numel);
    for (int i = 0; i < block_numel; ++i) {
      values[i] = load_element(gradient, dtype, begin + i);
      findings.nonzero |= values[i] != 0.0F;
    }
    add_residual(feedback, begin, block_numel, values);
    findings.nonfinite |= !encode_block(spec, values, block_numel, begin, feedback, noise, wire);
    wire += quantize_block_bytes(spec, block_numel);
  }
  return findings;
}

Findings quantize_reduce(const QuantizeSpec& spec, const uint8_t* const* wires, int count, float factor,
                         int64_t numel, const Feedback& feedback, const Noise& noise, uint8_t* out) {
  Findings findings;
  float values[kMaxBlockNumel];
  int64_t offset_bytes = 0;
  for (int64_t begin = 0; begin < numel; begin += spec.block_numel) {
    const int block_numel = block_numel_at(spec, begin, numel);
    for (int k = 0; k < count; ++k) {
      decode_run(spec, wires[k] + offset_bytes, block_numel,
                 [&](int64_t i, float decoded) { values[i] = k == 0 ? decoded : values[i] + decoded; });
    }
    for (int i = 0; i < block_numel; ++i) values[i] *= factor;
    add_residual(feedback, begin, block_numel, values);
    findings.nonfinite |=
        !encode_block(spec, values, block_numel, begin, feedback, noise, out + offset_bytes);
    offset_bytes += quantize_block_bytes(spec, block_numel);
  }
  return findings;
}

Findings quantize_decode(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel, void* out,
                         DType dtype) {
  bool finite = true;
  const bool sound = decode_run(spec, wire, numel, [&](int64_t i, float decoded) {
    finite &= is_finite(store_element(out, dtype, i, decoded));
  });
  return {.nonfinite = !sound || !finite};
}

Findings quantize_decode_add(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel, float* sum) {
  const bool sound = decode_run(spec, wire, numel, [&](int64_t i, float decoded) {
    store_element(sum, DType::kFloat32, i, load_element(sum, DType::kFloat32, i) + decoded);
  });
  return {.nonfinite = !sound};
}

}  // namespace scalar

Findings quantize_encode(const QuantizeSpec& spec, const void* gradient, DType dtype, int64_t numel,
                         const Feedback& feedback, const Noise& noise, uint8_t* wire) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512:
      return avx512::quantize_encode(spec, gradient, dtype, numel, feedback, noise, wire);
    case CpuLevel::kAvx2:
      return avx2::quantize_encode(spec, gradient, dtype, numel, feedback, noise, wire);
    case CpuLevel::kBaseline: break;
  }
  return scalar::quantize_encode(spec, gradient, dtype, numel, feedback, noise, wire);
}

Findings quantize_reduce(const QuantizeSpec& spec, const uint8_t* const* wires, int count, float factor,
                         int64_t numel, const Feedback& feedback, const Noise& noise, uint8_t* out) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512:
      return avx512::quantize_reduce(spec, wires, count, factor, numel, feedback, noise, out);
    case CpuLevel::kAvx2:
      return avx2::quantize_reduce(spec, wires, count, factor, numel, feedback, noise, out);
    case CpuLevel::kBaseline: break;
  }
  return scalar::quantize_reduce(spec, wires, count, factor, numel, feedback, noise, out);
}

Findings quantize_decode(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel, void* out,
                         DType dtype) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512: return avx512::quantize_decode(spec, wire, numel, out, dtype);
    case CpuLevel::kAvx2: return avx2::quantize_decode(spec, wire, numel, out, dtype);
    case CpuLevel::kBaseline: break;
  }
  return scalar::quantize_decode(spec, wire, numel, out, dtype);
}

Findings quantize_decode_add(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel, float* sum) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512: return avx512::quantize_decode_add(spec, wire, numel, sum);
    case CpuLevel::kAvx2: return avx2::quantize_decode_add(spec, wire, numel, sum);
    case CpuLevel::kBaseline: break;
  }
  return scalar::quantize_decode_add(spec, wire, numel, sum);
}

}  // namespace lgreco::kernels
