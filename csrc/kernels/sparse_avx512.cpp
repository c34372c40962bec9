// The AVX-512 level of the sparse encoders: greatest magnitudes, counts and candidates in 512-bit
// registers.
#include "kernels/pick_lanes_avx512.h"
#include "kernels/sparse_simd.h"

namespace lgreco::kernels::avx512 {
namespace {

struct Level : PickLanes {
  // --- tops: the high halves of magnitudes ---

  /// Of lane i of both vectors, side by side.
  LGRECO_LANES Int tops(Int first, Int second) {
    const Int both = _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(first, 16), second);
    return _mm512_and_si512(both, set(0x7FFF7FFF));
  }

  LGRECO_LANES uint16_t top(Int values) {
    return static_cast<uint16_t>(_mm512_reduce_max_epu32(_mm512_and_si512(values, set(0x7FFFFFFF))) >>
                                 16);
  }

  /// The greatest top of each of 32 vectors, given pairwise. Each step halves what is left of a pair.
  LGRECO_LANES void store_row_maxima(const Int (&rows)[16], uint16_t* to) {
    Int quarter[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Int low = halve_32(rows[4 * i], rows[4 * i + 1]);
      const Int high = halve_32(rows[4 * i + 2], rows[4 * i + 3]);
      quarter[i] = _mm512_max_epu16(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
    }
    const Int low = halve_128(quarter[0], quarter[1]), high = halve_128(quarter[2], quarter[3]);
    store_bits(to, halve_128(low, high));
  }

  LGRECO_LANES uint32_t highest_top(const uint16_t* tops, int count) {
    Int most = zero();
    for (int i = 0; i < count; i += 32) most = _mm512_max_epu16(most, load_bits(tops + i));
    most = _mm512_max_epu16(_mm512_srli_epi32(most, 16), _mm512_and_si512(most, set(0xFFFF)));
    return _mm512_reduce_max_epu32(most);
  }

  LGRECO_LANES int count_tops(const uint16_t* tops, int count, uint32_t least) {
    const Int wanted = _mm512_set1_epi16(static_cast<short>(least));
    int found = 0;
    for (int i = 0; i < count; i += 32) {
      found += __builtin_popcount(_mm512_cmpge_epu16_mask(load_bits(tops + i), wanted));
    }
    return found;
  }

  /// Where tops are at least `least`. Returns how many.
  LGRECO_LANES int list_tops(const uint16_t* tops, int count, uint32_t least, uint32_t* list) {
    const Int wanted = _mm512_set1_epi16(static_cast<short>(least));
    int found = 0;
    for (int i = 0; i < count; i += 32) {
      const uint32_t mask = _mm512_cmpge_epu16_mask(load_bits(tops + i), wanted);
      append(list + found, mask & 0xFFFF, add(lanes(), set(i)));
      found += __builtin_popcount(mask & 0xFFFF);
      append(list + found, mask >> 16, add(lanes(), set(i + 16)));
      found += __builtin_popcount(mask >> 16);
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
  LGRECO_LANES Int halve_32(Int a, Int b) {
    return _mm512_max_epu16(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  }
  LGRECO_LANES Int halve_128(Int a, Int b) {
    return _mm512_max_epu16(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD));
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

}  // namespace lgreco::kernels::avx512
