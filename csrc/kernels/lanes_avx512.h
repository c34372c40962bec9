// Sixteen fp32 lanes in one AVX-512 register. Only for files compiled for that level.
#pragma once

// GCC 12 warns of its own header (GCC bug 105593).
#pragma GCC diagnostic push
#ifndef __clang__
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstdint>

#include "core/types.h"

namespace lgreco::kernels::avx512 {

#define LGRECO_LANES static inline __attribute__((always_inline))

/// Every operation rounds each lane as its scalar twin does, so lanes and scalars agree bit for bit.
struct Lanes {
  using Float = __m512;
  using Int = __m512i;
  static constexpr int kRegisters = 32;  ///< Floats that the processor holds

  LGRECO_LANES Float set(float value) { return _mm512_set1_ps(value); }
  LGRECO_LANES Int set(int value) { return _mm512_set1_epi32(value); }
  LGRECO_LANES Int zero() { return _mm512_setzero_si512(); }

  LGRECO_LANES Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  LGRECO_LANES Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  LGRECO_LANES Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  /// a * b + c, in one rounding or in two.
  LGRECO_LANES Float mul_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  LGRECO_LANES Float min(Float a, Float b) { return _mm512_min_ps(a, b); }
  LGRECO_LANES Float max(Float a, Float b) { return _mm512_max_ps(a, b); }
  LGRECO_LANES Int bit_or(Int a, Int b) { return _mm512_or_si512(a, b); }
  LGRECO_LANES Int bits(Float a) { return _mm512_castps_si512(a); }

  LGRECO_LANES float lowest(Float a) { return _mm512_reduce_min_ps(a); }
  LGRECO_LANES float highest(Float a) { return _mm512_reduce_max_ps(a); }
  /// Sum in a fixed order: halves, quarters, ... of the lanes.
  LGRECO_LANES float sum(Float a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 some = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    some = _mm_add_ps(some, _mm_movehl_ps(some, some));
    return _mm_cvtss_f32(_mm_add_ss(some, _mm_shuffle_ps(some, some, 1)));
  }
  LGRECO_LANES bool any(Int a) { return _mm512_test_epi32_mask(a, a) != 0; }

  /// Whether a lane has a bit besides the sign: whether a float is not zero.
  LGRECO_LANES bool any_magnitude(Int a) { return _mm512_test_epi32_mask(a, set(0x7FFFFFFF)) != 0; }

  /// Lanes of `value` where `proof` is a number, 0 where it is NaN.
  LGRECO_LANES Float where_number(Float proof, Float value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(proof, proof, _CMP_ORD_Q), value);
  }

  template <DType dtype>
  LGRECO_LANES Float load(const void* at) {
    if constexpr (dtype == DType::kFloat32) {
      return _mm512_loadu_ps(at);
    } else {
      const __m256i half = _mm256_loadu_si256(static_cast<const __m256i*>(at));
      if constexpr (dtype == DType::kFloat16) return _mm512_cvtph_ps(half);
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
  }

  /// The first `count` lanes (0 to 15); the others are zero.
  LGRECO_LANES Float load_first(const float* at, int count) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1U << count) - 1U), at);
  }
  LGRECO_LANES void store_first(float* at, int count, Float value) {
    _mm512_mask_storeu_ps(at, static_cast<__mmask16>((1U << count) - 1U), value);
  }

  /// Stores to nearest even and returns what the stored elements read as.
  template <DType dtype>
  LGRECO_LANES Float store(void* at, Float value) {
    if constexpr (dtype == DType::kFloat32) {
      _mm512_storeu_ps(at, value);
      return value;
    } else if constexpr (dtype == DType::kFloat16) {
      const __m256i half = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      _mm256_storeu_si256(static_cast<__m256i*>(at), half);
      return _mm512_cvtph_ps(half);
    } else {
      const __m512i half = bf16_bits(value);
      _mm256_storeu_si256(static_cast<__m256i*>(at), _mm512_cvtepi32_epi16(half));
      return _mm512_castsi512_ps(_mm512_slli_epi32(half, 16));
    }
  }

  /// Stores past the caches; `at` is on a kStreamAlignment boundary.
  static constexpr int kStreamAlignment = 64;
  LGRECO_LANES void stream(float* at, Float value) { _mm512_stream_ps(at, value); }
  /// Makes what was streamed visible before what is stored next.
  LGRECO_LANES void fence() { _mm_sfence(); }

 private:
  LGRECO_LANES Int bf16_bits(Float value) {
    const Int raw = bits(value);
    const Int odd = _mm512_and_si512(_mm512_srli_epi32(raw, 16), set(1));
    const Int rounded = _mm512_add_epi32(_mm512_add_epi32(raw, set(0x7FFF)), odd);
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_srli_epi32(_mm512_mask_or_epi32(rounded, nan, raw, set(0x400000)), 16);
  }
};

}  // namespace lgreco::kernels::avx512
