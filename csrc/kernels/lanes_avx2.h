// Sixteen fp32 lanes in two AVX2 registers. Only for files compiled for that level.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/types.h"

namespace lgreco::kernels::avx2 {

#define LGRECO_LANES static inline __attribute__((always_inline))

/// Every operation rounds each lane as its scalar twin does, so lanes and scalars agree bit for bit.
struct Lanes {
  struct Float {
    __m256 low, high;
  };
  struct Int {
    __m256i low, high;
  };
  static constexpr int kRegisters = 8;  ///< Floats that the processor holds

  LGRECO_LANES Float set(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  LGRECO_LANES Int set(int value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
  LGRECO_LANES Int zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }

  LGRECO_LANES Float add(Float a, Float b) {
    return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
  }
  LGRECO_LANES Float sub(Float a, Float b) {
    return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
  }
  LGRECO_LANES Float mul(Float a, Float b) {
    return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
  }
  /// a * b + c, in one rounding or in two.
  LGRECO_LANES Float mul_add(Float a, Float b, Float c) { return add(mul(a, b), c); }
  LGRECO_LANES Float min(Float a, Float b) {
    return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
  }
  LGRECO_LANES Float max(Float a, Float b) {
    return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
  }
  LGRECO_LANES Int bit_or(Int a, Int b) {
    return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)};
  }
  LGRECO_LANES Int bits(Float a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }

  LGRECO_LANES float lowest(Float a) {
    const __m256 half = _mm256_min_ps(a.low, a.high);
    __m128 least = _mm_min_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    least = _mm_min_ps(least, _mm_movehl_ps(least, least));
    return _mm_cvtss_f32(_mm_min_ss(least, _mm_shuffle_ps(least, least, 1)));
  }
  LGRECO_LANES float highest(Float a) {
    const __m256 half = _mm256_max_ps(a.low, a.high);
    __m128 most = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_shuffle_ps(most, most, 1)));
  }
  /// Sum in a fixed order: halves, quarters, ... of the lanes.
  LGRECO_LANES float sum(Float a) {
    const __m256 half = _mm256_add_ps(a.low, a.high);
    __m128 some = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    some = _mm_add_ps(some, _mm_movehl_ps(some, some));
    return _mm_cvtss_f32(_mm_add_ss(some, _mm_shuffle_ps(some, some, 1)));
  }
  LGRECO_LANES bool any(Int a) {
    const __m256i both = _mm256_or_si256(a.low, a.high);
    return _mm256_testz_si256(both, both) == 0;
  }

  /// Whether a lane has a bit besides the sign: whether a float is not zero.
  LGRECO_LANES bool any_magnitude(Int a) {
    return _mm256_testz_si256(_mm256_or_si256(a.low, a.high), _mm256_set1_epi32(0x7FFFFFFF)) == 0;
  }

  /// Lanes of `value` where `proof` is a number, 0 where it is NaN.
  LGRECO_LANES Float where_number(Float proof, Float value) {
    return {_mm256_and_ps(_mm256_cmp_ps(proof.low, proof.low, _CMP_ORD_Q), value.low),
            _mm256_and_ps(_mm256_cmp_ps(proof.high, proof.high, _CMP_ORD_Q), value.high)};
  }

  template <DType dtype>
  LGRECO_LANES Float load(const void* at) {
    if constexpr (dtype == DType::kFloat32) {
      const auto* floats = static_cast<const float*>(at);
      return {_mm256_loadu_ps(floats), _mm256_loadu_ps(floats + 8)};
    } else {
      const auto* halves = static_cast<const __m128i*>(at);
      const __m128i low = _mm_loadu_si128(halves), high = _mm_loadu_si128(halves + 1);
      if constexpr (dtype == DType::kFloat16) return {_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)};
      return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(low), 16)),
              _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(high), 16))};
    }
  }

  /// The first `count` lanes (0 to 15); the others are zero.
  LGRECO_LANES Float load_first(const float* at, int count) {
    return {_mm256_maskload_ps(at, first(count)), _mm256_maskload_ps(at + 8, first(count - 8))};
  }
  LGRECO_LANES void store_first(float* at, int count, Float value) {
    _mm256_maskstore_ps(at, first(count), value.low);
    _mm256_maskstore_ps(at + 8, first(count - 8), value.high);
  }

  /// Stores to nearest even and returns what the stored elements read as.
  template <DType dtype>
  LGRECO_LANES Float store(void* at, Float value) {
    if constexpr (dtype == DType::kFloat32) {
      _mm256_storeu_ps(static_cast<float*>(at), value.low);
      _mm256_storeu_ps(static_cast<float*>(at) + 8, value.high);
      return value;
    } else if constexpr (dtype == DType::kFloat16) {
      const __m128i low = _mm256_cvtps_ph(value.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      const __m128i high = _mm256_cvtps_ph(value.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      _mm_storeu_si128(static_cast<__m128i*>(at), low);
      _mm_storeu_si128(static_cast<__m128i*>(at) + 1, high);
      return {_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)};
    } else {
      const __m256i low = bf16_bits(value.low), high = bf16_bits(value.high);
      const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xD8);
      _mm256_storeu_si256(static_cast<__m256i*>(at), packed);
      return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
              _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
    }
  }

  /// Stores past the caches; `at` is on a kStreamAlignment boundary.
  static constexpr int kStreamAlignment = 64;  // whole cache lines
  LGRECO_LANES void stream(float* at, Float value) {
    _mm256_stream_ps(at, value.low);
    _mm256_stream_ps(at + 8, value.high);
  }
  /// Makes what was streamed visible before what is stored next.
  LGRECO_LANES void fence() { _mm_sfence(); }

 private:
  /// All ones in the first `count` of eight lanes.
  LGRECO_LANES __m256i first(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  LGRECO_LANES __m256i bf16_bits(__m256 value) {
    const __m256i raw = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(raw, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(raw, _mm256_set1_epi32(0x7FFF)), odd);
    const __m256i quieted = _mm256_or_si256(raw, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quieted, nan), 16);
  }
};

}  // namespace lgreco::kernels::avx2
