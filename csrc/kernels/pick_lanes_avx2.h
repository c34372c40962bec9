// What picking elements by magnitude adds to sixteen AVX2 lanes: raw bits, comparison, compaction.
#pragma once

#include "kernels/lanes_avx2.h"

namespace lgreco::kernels::avx2 {

struct PickLanes : Lanes {
  using Lanes::add;
  LGRECO_LANES Int add(Int a, Int b) {
    return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
  }
  LGRECO_LANES Int load_bits(const void* at) {
    const auto* halves = static_cast<const __m256i*>(at);
    return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
  }
  LGRECO_LANES void store_bits(void* at, Int a) {
    auto* halves = static_cast<__m256i*>(at);
    _mm256_storeu_si256(halves, a.low);
    _mm256_storeu_si256(halves + 1, a.high);
  }
  LGRECO_LANES Int lanes() {
    return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
  }

  /// Lanes whose magnitude is at least `least`.
  LGRECO_LANES uint32_t reaching(Int values, Int least) {
    return reaching_half(values.low, least.low) | reaching_half(values.high, least.high) << 8;
  }

  /// Stores the lanes of `mask` one after the other; all 16 places may be overwritten.
  LGRECO_LANES void append(uint32_t* at, uint32_t mask, Int values) {
    const uint32_t low = mask & 0xFF;
    append_half(at, low, values.low);
    append_half(at + __builtin_popcount(low), mask >> 8, values.high);
  }
  LGRECO_LANES void append(float* at, uint32_t mask, Int values) {
    append(reinterpret_cast<uint32_t*>(at), mask, values);
  }

 private:
  LGRECO_LANES uint32_t reaching_half(__m256i values, __m256i least) {
    const __m256i magnitude = _mm256_and_si256(values, _mm256_set1_epi32(0x7FFFFFFF));
    const __m256i below = _mm256_cmpgt_epi32(least, magnitude);
    return ~static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(below))) & 0xFF;
  }

  LGRECO_LANES void append_half(uint32_t* at, uint32_t mask, __m256i values) {
    const uint64_t wanted_bytes = _pdep_u64(mask, 0x0101010101010101U) * 0xFF;
    const auto lanes = static_cast<long long>(_pext_u64(0x0706050403020100U, wanted_bytes));
    const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(lanes));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm256_permutevar8x32_epi32(values, order));
  }
};

}  // namespace lgreco::kernels::avx2
