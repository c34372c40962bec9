// The AVX2 level of the sparse encoders: greatest magnitudes, counts and candidates in pairs of 256-bit
// registers.
#include "kernels/pick_lanes_avx2.h"
#include "kernels/sparse_simd.h"

namespace lgreco::kernels::avx2 {
namespace {

struct Level : PickLanes {
  // --- tops: the high halves of magnitudes ---

  /// Of lane i of both vectors, side by side.
  LGRECO_LANES Int tops(Int first, Int second) {
    return {tops_half(first.low, second.low), tops_half(first.high, second.high)};
  }

  LGRECO_LANES uint16_t top(Int values) {
    const __m256i sign = _mm256_set1_epi32(0x7FFFFFFF);
    const __m256i most =
        _mm256_max_epu16(_mm256_and_si256(values.low, sign), _mm256_and_si256(values.high, sign));
    return highest_of(_mm256_srli_epi32(most, 16));
  }

  /// The greatest top of each of 32 vectors, given pairwise. Each step halves what is left of a pair.
  LGRECO_LANES void store_row_maxima(const Int (&rows)[16], uint16_t* to) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Int* const own = rows + 8 * half;
      const __m256i first = quarter_of(own), second = quarter_of(own + 4);
      const __m256i most = _mm256_max_epu16(_mm256_permute2x128_si256(first, second, 0x20),
                                            _mm256_permute2x128_si256(first, second, 0x31));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 16 * half), most);
    }
  }

  LGRECO_LANES uint32_t highest_top(const uint16_t* tops, int count) {
    __m256i most = _mm256_setzero_si256();
    for (int i = 0; i < count; i += 16) most = _mm256_max_epu16(most, load_half(tops + i));
    return highest_of(most);
  }

  LGRECO_LANES int count_tops(const uint16_t* tops, int count, uint32_t least) {
    int found = 0;
    for (int i = 0; i < count; i += 32) found += __builtin_popcount(tops_reaching(tops + i, least));
    return found;
  }

  /// Where tops are at least `least`. Returns how many.
  LGRECO_LANES int list_tops(const uint16_t* tops, int count, uint32_t least, uint32_t* list) {
    int found = 0;
    for (int i = 0; i < count; i += 32) {
      for (uint32_t mask = tops_reaching(tops + i, least); mask != 0; mask &= mask - 1) {
        list[found++] = static_cast<uint32_t>(i + __builtin_ctz(mask));
      }
    }
    return found;
  }

  LGRECO_LANES int count_reaching(const float* values, int vectors, uint32_t least) {
    const Int wanted = set(static_cast<int>(least));
    int found = 0;
    for (int v = 0; v < vectors; ++v) {
      found += __builtin_popcount(reaching(load_bits(values + 16 * v), wanted));
    }
    return found;
  }

 private:
  LGRECO_LANES __m256i load_half(const void* at) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(at));
  }

  LGRECO_LANES __m256i tops_half(__m256i first, __m256i second) {
    const __m256i both = _mm256_blend_epi16(_mm256_srli_epi32(first, 16), second, 0xAA);
    return _mm256_and_si256(both, _mm256_set1_epi32(0x7FFF7FFF));
  }

  /// Tops of 32 vectors as bits; unsigned comparison is equality with the greater one.
  LGRECO_LANES uint32_t tops_reaching(const uint16_t* tops, uint32_t least) {
    const __m256i wanted = _mm256_set1_epi16(static_cast<short>(least));
    const __m256i low = load_half(tops), high = load_half(tops + 16);
    const __m256i low_reach = _mm256_cmpeq_epi16(_mm256_max_epu16(low, wanted), low);
    const __m256i high_reach = _mm256_cmpeq_epi16(_mm256_max_epu16(high, wanted), high);
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(low_reach, high_reach), 0xD8);
    return static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
  }

  LGRECO_LANES uint16_t highest_of(__m256i tops) {
    __m128i most = _mm_max_epu16(_mm256_castsi256_si128(tops), _mm256_extracti128_si256(tops, 1));
    // The only horizontal instruction finds the least.
    most = _mm_minpos_epu16(_mm_xor_si128(most, _mm_set1_epi32(-1)));
    return static_cast<uint16_t>(~_mm_cvtsi128_si32(most));
  }

  /// Four pairs' maxima within each 128-bit lane.
  LGRECO_LANES __m256i quarter_of(const Int* rows) {
    const __m256i low = halve_32(max_half(rows[0]), max_half(rows[1]));
    const __m256i high = halve_32(max_half(rows[2]), max_half(rows[3]));
    return _mm256_max_epu16(_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
  }
  LGRECO_LANES __m256i max_half(const Int& row) { return _mm256_max_epu16(row.low, row.high); }
  LGRECO_LANES __m256i halve_32(__m256i a, __m256i b) {
    return _mm256_max_epu16(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  }
};

}  // namespace

Findings sparse_encode(const SparseSpec& spec, const void* gradient, DType dtype, int64_t numel,
                       const Feedback& feedback, const Noise& noise, uint8_t* wire) {
  return SimdSparse<Level>::encode(spec, gradient, dtype, numel, feedback, noise, wire);
}

Findings sparse_reduce(const SparseSpec& spec, const uint8_t* const* wires, int count, float factor,
                       int64_t numel, const Feedback& feedback, const Noise& noise, uint8_t* out) {
  return SimdSparse<Level>::reduce(spec, wires, count, factor, numel, feedback, noise, out);
}

}  // namespace lgreco::kernels::avx2
