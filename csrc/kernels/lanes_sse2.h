// Sixteen fp32 lanes in four SSE2 registers, which every x86-64 processor has.
#pragma once

#include <emmintrin.h>

#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "core/types.h"

namespace lgreco::kernels::sse2 {

#define LGRECO_LANES static inline __attribute__((always_inline))

/// Every operation rounds each lane as its scalar twin does, so lanes and scalars agree bit for bit.
struct Lanes {
  struct Float {
    __m128 part[4];
  };
  struct Int {
    __m128i part[4];
  };
  static constexpr int kRegisters = 4;  ///< Floats that the processor holds

  LGRECO_LANES Float set(float value) {
    const __m128 all = _mm_set1_ps(value);
    return {{all, all, all, all}};
  }
  LGRECO_LANES Int zero() {
    const __m128i none = _mm_setzero_si128();
    return {{none, none, none, none}};
  }

  LGRECO_LANES Float add(Float a, Float b) {
    return each(a, b,
                [](__m128 x, __m128 y) __attribute__((always_inline)) { return _mm_add_ps(x, y); });
  }
  LGRECO_LANES Float sub(Float a, Float b) {
    return each(a, b,
                [](__m128 x, __m128 y) __attribute__((always_inline)) { return _mm_sub_ps(x, y); });
  }
  LGRECO_LANES Float mul(Float a, Float b) {
    return each(a, b,
                [](__m128 x, __m128 y) __attribute__((always_inline)) { return _mm_mul_ps(x, y); });
  }
  /// a * b + c, in one rounding or in two.
  LGRECO_LANES Float mul_add(Float a, Float b, Float c) { return add(mul(a, b), c); }
  LGRECO_LANES Float max(Float a, Float b) {
    return each(a, b,
                [](__m128 x, __m128 y) __attribute__((always_inline)) { return _mm_max_ps(x, y); });
  }
  LGRECO_LANES Int bit_or(Int a, Int b) {
    Int both;
    for (int i = 0; i < 4; ++i) both.part[i] = _mm_or_si128(a.part[i], b.part[i]);
    return both;
  }
  LGRECO_LANES Int bits(Float a) {
    Int raw;
    for (int i = 0; i < 4; ++i) raw.part[i] = _mm_castps_si128(a.part[i]);
    return raw;
  }

  LGRECO_LANES float highest(Float a) {
    __m128 most = _mm_max_ps(_mm_max_ps(a.part[0], a.part[1]), _mm_max_ps(a.part[2], a.part[3]));
    most = _mm_max_ps(most, _mm_movehl_ps(most, most));
    return _mm_cvtss_f32(_mm_max_ss(most, _mm_shuffle_ps(most, most, 1)));
  }
  /// Sum in a fixed order: halves, quarters, ... of the lanes.
  LGRECO_LANES float sum(Float a) {
    __m128 some = _mm_add_ps(_mm_add_ps(a.part[0], a.part[2]), _mm_add_ps(a.part[1], a.part[3]));
    some = _mm_add_ps(some, _mm_movehl_ps(some, some));
    return _mm_cvtss_f32(_mm_add_ss(some, _mm_shuffle_ps(some, some, 1)));
  }
  LGRECO_LANES bool any(Int a) { return any_of(a, _mm_set1_epi32(-1)); }
  /// Whether a lane has a bit besides the sign: whether a float is not zero.
  LGRECO_LANES bool any_magnitude(Int a) { return any_of(a, _mm_set1_epi32(0x7FFFFFFF)); }

  template <DType dtype>
  LGRECO_LANES Float load(const void* at) {
    Float value;
    if constexpr (dtype == DType::kFloat32) {
      const auto* floats = static_cast<const float*>(at);
      for (int i = 0; i < 4; ++i) value.part[i] = _mm_loadu_ps(floats + 4 * i);
    } else if constexpr (dtype == DType::kBFloat16) {
      const auto* halves = static_cast<const __m128i*>(at);
      for (int i = 0; i < 4; i += 2) {
        const __m128i eight = _mm_loadu_si128(halves + i / 2);
        value.part[i] = _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), eight));
        value.part[i + 1] = _mm_castsi128_ps(_mm_unpackhi_epi16(_mm_setzero_si128(), eight));
      }
    } else {
      uint16_t halves[16];
      memcpy(halves, at, sizeof halves);
      alignas(16) float floats[16];
      for (int i = 0; i < 16; ++i) floats[i] = fp16_to_float(halves[i]);
      for (int i = 0; i < 4; ++i) value.part[i] = _mm_load_ps(floats + 4 * i);
    }
    return value;
  }

  /// The first `count` lanes (0 to 15); the others are zero.
  LGRECO_LANES Float load_first(const float* at, int count) {
    float floats[16] = {};
    memcpy(floats, at, sizeof(float) * static_cast<size_t>(count));
    return load<DType::kFloat32>(floats);
  }
  LGRECO_LANES void store_first(float* at, int count, Float value) {
    float floats[16];
    store<DType::kFloat32>(floats, value);
    memcpy(at, floats, sizeof(float) * static_cast<size_t>(count));
  }

  /// Stores to nearest even and returns what the stored elements read as.
  template <DType dtype>
  LGRECO_LANES Float store(void* at, Float value) {
    if constexpr (dtype == DType::kFloat32) {
      for (int i = 0; i < 4; ++i) _mm_storeu_ps(static_cast<float*>(at) + 4 * i, value.part[i]);
      return value;
    } else {
      alignas(16) float floats[16];
      for (int i = 0; i < 4; ++i) _mm_store_ps(floats + 4 * i, value.part[i]);
      uint16_t halves[16];
      for (int i = 0; i < 16; ++i) {
        halves[i] = dtype == DType::kBFloat16 ? float_to_bf16(floats[i]) : float_to_fp16(floats[i]);
      }
      memcpy(at, halves, sizeof halves);
      return load<dtype>(halves);
    }
  }

  /// Stores past the caches; `at` is on a kStreamAlignment boundary.
  static constexpr int kStreamAlignment = 64;  // whole cache lines
  LGRECO_LANES void stream(float* at, Float value) {
    for (int i = 0; i < 4; ++i) _mm_stream_ps(at + 4 * i, value.part[i]);
  }
  /// Makes what was streamed visible before what is stored next.
  LGRECO_LANES void fence() { _mm_sfence(); }

 private:
  template <typename Operation>
  LGRECO_LANES Float each(const Float& a, const Float& b, Operation operation) {
    Float result;
    for (int i = 0; i < 4; ++i) result.part[i] = operation(a.part[i], b.part[i]);
    return result;
  }
  LGRECO_LANES bool any_of(const Int& a, __m128i wanted) {
    const __m128i all =
        _mm_or_si128(_mm_or_si128(a.part[0], a.part[1]), _mm_or_si128(a.part[2], a.part[3]));
    const __m128i none = _mm_cmpeq_epi32(_mm_and_si128(all, wanted), _mm_setzero_si128());
    return _mm_movemask_epi8(none) != 0xFFFF;
  }
};

}  // namespace lgreco::kernels::sse2
