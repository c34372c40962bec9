// The arithmetic of one quantised block, shared by every CPU level and CUDA, so that they agree bit
// for bit: no FMA, no reassociation, each step rounded to fp32 as written.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "core/philox.h"
#include "kernels/quantize.h"

namespace lgreco::kernels {

/// Elements that share one round of Philox draws: 16 lanes x 8 slots.
inline constexpr int kGroupNumel = 128;

/// Where code c decodes to lo + c * step. A block that must not be delivered has a NaN step.
struct Grid {
  float lo;
  float step;
  float inverse;  ///< 1 / step, or 0 where step is 0
};

LGRECO_HD int max_code(int bits, bool symmetric) {
  return symmetric && bits > 1 ? (1 << bits) - 2 : (1 << bits) - 1;
}

/// The lowest point of a symmetric grid: zero is one of its points, except for a single bit.
LGRECO_HD float symmetric_low(int bits, float step) {
  return bits == 1 ? -(0.5F * step) : -(static_cast<float>((1 << (bits - 1)) - 1) * step);
}

LGRECO_HD Grid broken_grid() {
  const float nan = float_of(0x7FC00000U);
  return {nan, nan, 0.0F};
}

/// Whether every code of a grid decodes to a finite number.
LGRECO_HD bool is_sound(const Grid& grid, int max) {
  return is_finite(grid.lo) && is_finite(grid.lo + static_cast<float>(max) * grid.step);
}

/// The grid over [lo, hi], the extremes of the block's finite values. With bf16 scales its ends are
/// rounded outwards, so that it covers the range. Where the grid would overflow it is broken; where
/// it is too narrow for a finite 1 / step, all values decode to lo.
LGRECO_HD Grid make_grid(const QuantizeSpec& spec, float lo, float hi) {
  const float max = static_cast<float>(max_code(spec.bits, spec.symmetric));
  Grid grid;
  if (spec.symmetric) {
    const float largest = -lo > hi ? -lo : hi;
    const float zero_code = static_cast<float>((1 << (spec.bits - 1)) - 1);
    grid.step = (spec.bits == 1 ? 2.0F * largest : largest / zero_code) + 0.0F;
    if (spec.bf16_scales) grid.step = bf16_round_up(grid.step);
    grid.lo = symmetric_low(spec.bits, grid.step);
  } else {
    grid.lo = lo + 0.0F;  // -0 becomes 0
    if (spec.bf16_scales) grid.lo = bf16_round_down(grid.lo);
    grid.step = (hi - grid.lo) / max;
    if (spec.bf16_scales) grid.step = bf16_round_up(grid.step);
  }
  if (!is_sound(grid, max_code(spec.bits, spec.symmetric))) return broken_grid();
  grid.inverse = 1.0F / grid.step;
  if (!is_finite(grid.inverse)) {
    grid.step = 0.0F;
    grid.inverse = 0.0F;
    if (spec.symmetric) grid.lo = symmetric_low(spec.bits, 0.0F);
  }
  return grid;
}

/// Writes the block's [lo][step] or [step].
LGRECO_HD void write_grid(const QuantizeSpec& spec, const Grid& grid, uint8_t* wire) {
  const float numbers[2] = {spec.symmetric ? grid.step : grid.lo, grid.step};
  const int count = spec.symmetric ? 1 : 2;
  for (int k = 0; k < count; ++k) {
    const uint32_t bits = bits_of(numbers[k]);
    if (spec.bf16_scales) {  // exact: make_grid has rounded it
      const uint16_t half = static_cast<uint16_t>(bits >> 16);
      memcpy(wire + 2 * k, &half, 2);
    } else {
      memcpy(wire + 4 * k, &bits, 4);
    }
  }
}

/// Reads what decoding needs; `inverse` is left 0.
LGRECO_HD Grid read_grid(const QuantizeSpec& spec, const uint8_t* wire) {
  float numbers[2];
  const int count = spec.symmetric ? 1 : 2;
  for (int k = 0; k < count; ++k) {
    if (spec.bf16_scales) {
      uint16_t half;
      memcpy(&half, wire + 2 * k, 2);
      numbers[k] = bf16_to_float(half);
    } else {
      memcpy(&numbers[k], wire + 4 * k, 4);
    }
  }
  if (spec.symmetric) return {symmetric_low(spec.bits, numbers[0]), numbers[0], 0.0F};
  return {numbers[0], numbers[1], 0.0F};
}

/// The code of a value of the block that the grid was made for, nearest even. It needs no clamp: the
/// value lies within the grid up to a few roundings, far less than half a step.
LGRECO_HD int nearest_code(float value, const Grid& grid) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23: the sum's last bits are the rounded integer
  const float scaled = (value - grid.lo) * grid.inverse;
  return static_cast<int>(bits_of(scaled + kMagic) - bits_of(kMagic));
}

/// The code below or above, the latter with the probability of the fraction. `draw` is 16 bits.
LGRECO_HD int stochastic_code(float value, const Grid& grid, uint32_t draw, int max) {
  const float uniform = static_cast<float>(static_cast<int>(draw)) * 0x1p-16F;
  const float lifted = (value - grid.lo) * grid.inverse + uniform;
  const float top = static_cast<float>(max);
  return static_cast<int>(lifted < top ? lifted : top);  // truncates: lifted is above -1
}

LGRECO_HD float decode_code(const Grid& grid, int code) {
  return grid.lo + static_cast<float>(code) * grid.step;
}

/// Draws of one lane (0..15) for its eight elements of a group: element slot * 16 + lane.
LGRECO_HD Philox4 lane_draws(const Noise& noise, uint32_t block, uint32_t group, uint32_t lane) {
  return philox4x32(group * 16U + lane, noise.first_block + block, noise.step, noise.stream,
                    static_cast<uint32_t>(noise.seed), static_cast<uint32_t>(noise.seed >> 32));
}

/// The 16 bits for a slot (0..7).
LGRECO_HD uint32_t draw_of(const Philox4& draws, uint32_t slot) {
  return draws.word[slot >> 1] >> (16U * (slot & 1U)) & 0xFFFFU;
}

}  // namespace lgreco::kernels
