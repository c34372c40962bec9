// What the low-rank kernels compute element by element and the constants that fix their order, shared by
// the CPU levels and CUDA.
#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/host_device.h"
#include "core/philox.h"

namespace lgreco::kernels {

/// Sums over a column: element i goes to lane i % 16, lanes add up chunk by chunk (a chunk's sums first,
/// then chunk after chunk), and sum_lanes() adds the lanes.
inline constexpr int kSumLanes = 16;
inline constexpr int kSumChunk = 128;

/// Orthonormalisation works on panels of columns, each against blocks of the columns before it.
inline constexpr int kPanelColumns = 8;
inline constexpr int kBlockColumns = 32;

/// A column is dependent on those before it where less than this share of its norm is left of it. Above
/// that, taking out twice what lies along the others leaves orthogonality to rounding (Giraud et al.
/// 2005, "twice is enough").
inline constexpr float kIndependentShare = 0x1p-18F;
/// The second time hardly anything may be left to take out.
inline constexpr float kSecondShare = 0.5F;

/// Halves, quarters, ... of the lanes: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
LGRECO_HD float sum_lanes(float (&lanes)[kSumLanes]) {
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  }
  return lanes[0];
}

/// The magnitude's bits grow with it, and those of inf and NaN are the greatest.
LGRECO_HD uint32_t magnitude_bits(float value) { return bits_of(value) & 0x7FFFFFFFU; }

/// The power of two that brings a column whose greatest magnitude has these bits to 1..4, so that its
/// squares neither overflow nor vanish; 0 where the column is to become zero: it is zero, denormal or
/// not finite.
LGRECO_HD float column_scale(uint32_t greatest_bits) {
  const uint32_t exponent = greatest_bits >> 23;
  if (exponent == 0 || exponent == 0xFF) return 0.0F;
  return float_of((exponent == 0xFE ? 1U : 254U - exponent) << 23);
}

/// Element i of a seeded column: the sum of eight 16-bit draws, centred, of variance 1 (Irwin-Hall). The
/// quantiser's draws have the step in place of the third word; no step has this number.
LGRECO_HD float seed_value(uint64_t seed, uint32_t layer, uint32_t column, uint32_t i) {
  const Philox4 draws = philox4x32(i, column, 0xFFFFFFFFU, layer, static_cast<uint32_t>(seed),
                                   static_cast<uint32_t>(seed >> 32));
  int sum = -4 * 0xFFFF;
  for (const uint32_t word : draws.word) sum += static_cast<int>((word & 0xFFFFU) + (word >> 16));
  return static_cast<float>(sum) * 1.86881237e-5F;  // 1 / sqrt(8 * (2^32 - 1) / 12)
}

/// The power of two that brings a finite, nonzero magnitude, given by its bits, near 1.
LGRECO_HD float unit_scale(uint32_t magnitude_bits) {
  const uint32_t exponent = magnitude_bits >> 23;  // biased; 0 of a denormal
  const uint32_t opposite = exponent < 253U ? 254U - exponent : 1U;
  return float_of((opposite < 253U ? opposite : 253U) << 23);
}

}  // namespace lgreco::kernels
