// Masks as bits: element i is bit i % 8 of byte i / 8; bits beyond the last element are 0.
#pragma once

#include <cstdint>

namespace lgreco::pruning {

constexpr int64_t mask_bytes(int64_t numel) { return (numel + 7) / 8; }

/// `kept`: 0 or 1 an element.
inline void pack_mask(const uint8_t* kept, int64_t numel, uint8_t* bits) {
  for (int64_t byte = 0; byte < mask_bytes(numel); ++byte) {
    const int64_t begin = byte * 8, count = numel - begin < 8 ? numel - begin : 8;
    uint32_t packed = 0;
    for (int64_t i = 0; i < count; ++i) packed |= static_cast<uint32_t>(kept[begin + i] != 0) << i;
    bits[byte] = static_cast<uint8_t>(packed);
  }
}

inline void unpack_mask(const uint8_t* bits, int64_t numel, uint8_t* kept) {
  for (int64_t i = 0; i < numel; ++i) kept[i] = bits[i / 8] >> (i % 8) & 1;
}

}  // namespace lgreco::pruning
