// Keys: 32-bit integers that order as scores do, the same on every level.
#pragma once

#include <bit>
#include <cstdint>

#include "pruning/select.h"

namespace lgreco::pruning {

/// Magnitudes from here on are NaN.
inline constexpr int32_t kNanMagnitude = 0x7F800001;

inline int32_t magnitude_key(float score) {
  return static_cast<int32_t>(std::bit_cast<uint32_t>(score) & 0x7FFFFFFFU);
}

/// Zeros of both signs are equal: adding 0 makes them one.
inline int32_t value_key(float score) {
  const auto bits = std::bit_cast<int32_t>(score + 0.0F);
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}

template <Order order>
int32_t key_of(float score) {
  return order == Order::kMagnitude ? magnitude_key(score) : value_key(score);
}

}  // namespace lgreco::pruning
