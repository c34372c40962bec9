// Keys: 32-bit integers that order as scores do, the same on every level and on CUDA.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/host_device.h"
#include "pruning/select.h"

namespace lgreco::pruning {

/// Magnitudes from here on are NaN.
inline constexpr int32_t kNanMagnitude = 0x7F800001;

LGRECO_HD int32_t bits_of(float score) {
  int32_t bits;
  memcpy(&bits, &score, sizeof bits);
  return bits;
}

LGRECO_HD int32_t magnitude_key(float score) { return bits_of(score) & 0x7FFFFFFF; }

/// Zeros of both signs are equal: adding 0 makes them one.
LGRECO_HD int32_t value_key(float score) {
  const int32_t bits = bits_of(score + 0.0F);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

template <Order order>
LGRECO_HD int32_t key_of(float score) {
  return order == Order::kMagnitude ? magnitude_key(score) : value_key(score);
}

LGRECO_HD bool is_nan(float score) { return magnitude_key(score) >= kNanMagnitude; }

/// Keys that are collected: those between `low` and `high`, both excluded.
struct Bracket {
  int32_t low, high;
};

LGRECO_HD bool in_bracket(const Bracket& bracket, int32_t key) {
  return key > bracket.low && key < bracket.high;
}

/// `bits` bits of keys from bit `shift` on, of those keys whose bits above them are `prefix`. Keys are
/// taken as unsigned numbers of the same order.
struct Digit {
  int shift, bits;
  uint32_t prefix;
};

/// The key's digit, or -1 where its bits above are others.
LGRECO_HD int32_t digit_of(const Digit& digit, int32_t key) {
  const uint32_t bits = static_cast<uint32_t>(key) ^ 0x80000000U;
  const auto above = static_cast<uint32_t>(static_cast<uint64_t>(bits) >> (digit.shift + digit.bits));
  if (above != digit.prefix) return -1;
  return static_cast<int32_t>(bits >> digit.shift & ((1U << digit.bits) - 1U));
}

}  // namespace lgreco::pruning
