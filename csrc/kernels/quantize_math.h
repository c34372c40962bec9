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

LGRECO_HD int max_code(const QuantizeSpec& spec) {
  return spec.grid == GridKind::kSymmetric && spec.bits > 1 ? (1 << spec.bits) - 2
                                                            : (1 << spec.bits) - 1;
}

/// The lowest point of a symmetric grid: zero is one of its points, except for a single bit.
LGRECO_HD float symmetric_low(int bits, float step) {
  return bits == 1 ? -(0.5F * step) : -(static_cast<float>((1 << (bits - 1)) - 1) * step);
}

/// The lowest point of a clipped grid: as many points lie below zero as above.
LGRECO_HD float clipped_low(int bits, float step) {
  return -(0.5F * static_cast<float>((1 << bits) - 1) * step);
}

/// The lowest point of a grid with one number.
LGRECO_HD float low_of(const QuantizeSpec& spec, float step) {
  return spec.grid == GridKind::kClipped ? clipped_low(spec.bits, step) : symmetric_low(spec.bits, step);
}

LGRECO_HD Grid broken_grid() {
  const float nan = float_of(0x7FC00000U);
  return {nan, nan, 0.0F};
}

/// Whether every code of a grid decodes to a finite number.
LGRECO_HD bool is_sound(const Grid& grid, int max) {
  return is_finite(grid.lo) && is_finite(grid.lo + static_cast<float>(max) * grid.step);
}

/// Lanes that a clipped grid looks at: element i of a block belongs to lane i % 16.
inline constexpr int kSpreadLanes = 16;

/// What the grid of a block of finite values is made of.
struct Spread {
  float lo, hi;           ///< the extremes
  float mean_of_largest;  ///< over lanes, of their largest magnitudes (0 of a lane without elements);
                          ///< the halves are added, then their halves, ...; only clipped grids need it
};

/// The largest magnitude that a clipped grid of `bits` should reach, in units of a normal
/// distribution's standard deviation: where its squared error is least.
LGRECO_HD float best_reach(int bits) {
  constexpr float kReach[8] = {0.798F, 1.494F, 2.052F, 2.514F, 2.916F, 3.278F, 3.612F, 3.922F};
  return kReach[bits - 1];
}

/// The largest of `numel` magnitudes, in the same units, on average; for 2^k elements, and for others as
/// for the next lower 2^k.
LGRECO_HD float expected_largest(int numel) {
  constexpr float kLargest[9] = {0.7979F, 1.1284F, 1.4647F, 1.7834F, 2.0772F,
                                 2.3471F, 2.5961F, 2.8276F, 3.0442F};
  int log2 = 0;
  while (log2 < 8 && (2 << log2) <= numel) ++log2;
  return kLargest[log2];
}

/// How far a clipped grid of a block of `numel` values reaches. Lanes are maxima, which need no order,
/// so that all levels and CUDA find the same; their mean tells the spread without being drawn along by a
/// single large value, as the extremes are. But at least to a quarter of the largest value, so that a
/// value which stands alone is delivered within a few steps.
LGRECO_HD float reach_of(const QuantizeSpec& spec, const Spread& spread, int numel) {
  constexpr float kLeastShare = 0.25F;
  const float most = -spread.lo > spread.hi ? -spread.lo : spread.hi;
  const int lane_numel = (numel + kSpreadLanes - 1) / kSpreadLanes;
  float reach = spread.mean_of_largest * (best_reach(spec.bits) / expected_largest(lane_numel));
  reach = reach > kLeastShare * most ? reach : kLeastShare * most;
  return reach < most ? reach : most;
}

/// The grid of a block of `numel` finite values. With bf16 scales the ends of [min, max] and of a
/// symmetric grid are rounded outwards, so that it covers the range. Where the grid would overflow it is
/// broken; where it is too narrow for a finite 1 / step, all values decode to lo.
LGRECO_HD Grid make_grid(const QuantizeSpec& spec, const Spread& spread, int numel) {
  const float max = static_cast<float>(max_code(spec));
  Grid grid;
  if (spec.grid == GridKind::kMinMax) {
    grid.lo = spread.lo + 0.0F;  // -0 becomes 0
    if (spec.bf16_scales) grid.lo = bf16_round_down(grid.lo);
    grid.step = (spread.hi - grid.lo) / max;
    if (spec.bf16_scales) grid.step = bf16_round_up(grid.step);
  } else {
    if (spec.grid == GridKind::kClipped) {
      grid.step = reach_of(spec, spread, numel) / (0.5F * max) + 0.0F;
    } else {
      const float largest = -spread.lo > spread.hi ? -spread.lo : spread.hi;
      const float zero_code = static_cast<float>((1 << (spec.bits - 1)) - 1);
      grid.step = (spec.bits == 1 ? 2.0F * largest : largest / zero_code) + 0.0F;
    }
    if (spec.bf16_scales) grid.step = bf16_round_up(grid.step);
    grid.lo = low_of(spec, grid.step);
  }
  if (!is_sound(grid, max_code(spec))) return broken_grid();
  grid.inverse = 1.0F / grid.step;
  if (!is_finite(grid.inverse)) {
    grid.step = 0.0F;
    grid.inverse = 0.0F;
    if (has_one_number(spec)) grid.lo = low_of(spec, 0.0F);
  }
  return grid;
}

/// Writes the block's [lo][step] or [step].
LGRECO_HD void write_grid(const QuantizeSpec& spec, const Grid& grid, uint8_t* wire) {
  const float numbers[2] = {has_one_number(spec) ? grid.step : grid.lo, grid.step};
  const int count = has_one_number(spec) ? 1 : 2;
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
  const int count = has_one_number(spec) ? 1 : 2;
  for (int k = 0; k < count; ++k) {
    if (spec.bf16_scales) {
      uint16_t half;
      memcpy(&half, wire + 2 * k, 2);
      numbers[k] = bf16_to_float(half);
    } else {
      memcpy(&numbers[k], wire + 4 * k, 4);
    }
  }
  if (has_one_number(spec)) return {low_of(spec, numbers[0]), numbers[0], 0.0F};
  return {numbers[0], numbers[1], 0.0F};
}

/// The code of the point nearest to a value of the block that the grid was made for, even of two.
LGRECO_HD int nearest_code(float value, const Grid& grid, int max) {
  constexpr float kMagic = 12582912.0F;  // 1.5 * 2^23: the sum's last bits are the rounded integer
  const float top = static_cast<float>(max);
  float scaled = (value - grid.lo) * grid.inverse;
  scaled = scaled > 0.0F ? scaled : 0.0F;
  scaled = scaled < top ? scaled : top;
  return static_cast<int>(bits_of(scaled + kMagic) - bits_of(kMagic));
}

/// The code below or above, the latter with the probability of the fraction. `draw` is 16 bits.
LGRECO_HD int stochastic_code(float value, const Grid& grid, uint32_t draw, int max) {
  const float uniform = static_cast<float>(static_cast<int>(draw)) * 0x1p-16F;
  const float top = static_cast<float>(max);
  float lifted = (value - grid.lo) * grid.inverse + uniform;
  lifted = lifted > 0.0F ? lifted : 0.0F;
  return static_cast<int>(lifted < top ? lifted : top);
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
