// The 16-bit float formats: conversions to and from fp32, the same bits on CPU and CUDA.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"

namespace lgreco {

LGRECO_HD uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

LGRECO_HD float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

LGRECO_HD bool is_finite(float value) { return (bits_of(value) & 0x7F800000U) != 0x7F800000U; }

LGRECO_HD float bf16_to_float(uint16_t half) { return float_of(static_cast<uint32_t>(half) << 16); }

/// Nearest even; a NaN stays a NaN (quieted).
LGRECO_HD uint16_t float_to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

/// The largest bf16 number that is not above a finite `value`; -inf where there is none.
LGRECO_HD float bf16_round_down(float value) {
  const uint32_t bits = bits_of(value);
  const bool away_from_zero = (bits >> 31) != 0;
  return float_of((bits + (away_from_zero ? 0xFFFFU : 0U)) & 0xFFFF0000U);
}

/// The smallest bf16 number that is not below a finite `value`; inf where there is none.
LGRECO_HD float bf16_round_up(float value) { return -bf16_round_down(-value); }

LGRECO_HD float fp16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16;
  const uint32_t magnitude = half & 0x7FFFU;
  if (magnitude < 0x0400U) {  // zero and subnormals: multiples of 2^-24
    return float_of(sign | bits_of(static_cast<float>(magnitude) * 5.9604644775390625e-8F));
  }
  if (magnitude < 0x7C00U) return float_of(sign | ((magnitude << 13) + 0x38000000U));
  const uint32_t quiet = magnitude > 0x7C00U ? 0x00400000U : 0U;
  return float_of(sign | 0x7F800000U | (magnitude & 0x03FFU) << 13 | quiet);
}

/// Nearest even; beyond 65504 (65520 and more) inf; a NaN stays a NaN (quieted).
LGRECO_HD uint16_t float_to_fp16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & 0x8000U;
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  uint32_t half = 0;
  if (magnitude > 0x7F800000U) {
    half = 0x7E00U | ((magnitude >> 13) & 0x03FFU);
  } else if (magnitude >= 0x477FF000U) {
    half = 0x7C00U;
  } else if (magnitude < 0x38800000U) {
    // Adding 0.5 leaves the subnormal's ten bits, rounded to nearest even, at the end of the sum.
    half = bits_of(float_of(magnitude) + 0.5F) - 0x3F000000U;
  } else {
    half = (magnitude - 0x38000000U + 0x0FFFU + ((magnitude >> 13) & 1U)) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

}  // namespace lgreco
