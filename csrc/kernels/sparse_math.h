// The arithmetic of one sparse block, shared by every CPU level and CUDA, so that they agree bit for
// bit: what a kept value becomes on the wire, and which elements randomk draws.
#pragma once

#include "kernels/quantize_math.h"
#include "kernels/sparse.h"

namespace lgreco::kernels {

LGRECO_HD uint32_t magnitude_of(float value) { return bits_of(value) & 0x7FFFFFFFU; }

/// Magnitudes from here on are inf or NaN.
inline constexpr uint32_t kNonfiniteMagnitude = 0x7F800000U;

/// How a block's kept values are coded.
struct ValueCode {
  int bits;    ///< as SparseSpec::value_bits
  bool sound;  ///< all of them decode to finite numbers; else all are sent as NaN
  Grid grid;   ///< of integers
};

/// `largest`: the greatest magnitude of the values to be sent; `finite`: of the whole block.
LGRECO_HD ValueCode value_code(const SparseSpec& spec, float largest, bool finite) {
  ValueCode code{spec.value_bits, finite, {0.0F, 0.0F, 0.0F}};
  if (has_integer_values(spec)) {
    QuantizeSpec symmetric;
    symmetric.bits = spec.value_bits;
    symmetric.grid = GridKind::kSymmetric;
    code.grid = finite ? make_grid(symmetric, {-largest, largest, 0.0F}, 1) : broken_grid();
    code.sound = is_finite(code.grid.step);
  } else if (spec.value_bits == 16) {
    code.sound = finite && is_finite(bf16_to_float(float_to_bf16(largest)));
  }
  return code;
}

/// The bits that stand for a value on the wire.
LGRECO_HD uint32_t code_value(const ValueCode& code, float value) {
  constexpr uint32_t kNan = 0x7FC00000U;
  if (code.bits == 32) return code.sound ? bits_of(value) : kNan;
  if (code.bits == 16) return code.sound ? float_to_bf16(value) : kNan >> 16;
  return code.sound ? static_cast<uint32_t>(nearest_code(value, code.grid, (1 << code.bits) - 2)) : 0U;
}

LGRECO_HD float decode_value(int bits, const Grid& grid, uint32_t coded) {
  if (bits == 32) return float_of(coded);
  if (bits == 16) return bf16_to_float(static_cast<uint16_t>(coded));
  return decode_code(grid, static_cast<int>(coded));
}

/// Bit of the index code's bitmap that kept element number `i`, at `index`, sets.
LGRECO_HD int index_bit(const SparseShape& shape, int index, int i) {
  return shape.low_bits == 0 ? index : (index >> shape.low_bits) + i;
}

/// The index that bit `bit` of the bitmap and `low`, the low part, stand for.
LGRECO_HD int index_of(const SparseShape& shape, int bit, int i, uint32_t low) {
  return shape.low_bits == 0 ? bit : (bit - i) << shape.low_bits | static_cast<int>(low);
}

/// Four strata's draws. All ranks and both rounds share them; steps and blocks do not.
LGRECO_HD Philox4 stratum_draws(const Noise& noise, uint32_t block, uint32_t four) {
  return philox4x32(four, noise.first_block + block, noise.step, shared_noise_stream(noise.stream),
                    static_cast<uint32_t>(noise.seed), static_cast<uint32_t>(noise.seed >> 32));
}

/// Element of stratum `j` of `kept` for 32 random bits.
LGRECO_HD uint32_t stratum_element(uint32_t numel, uint32_t kept, uint32_t j, uint32_t draw) {
  const uint32_t begin = j * numel / kept, end = (j + 1) * numel / kept;
  return begin + static_cast<uint32_t>((static_cast<uint64_t>(draw) * (end - begin)) >> 32);
}

}  // namespace lgreco::kernels
