// The AVX-512 level of selection.
#include "kernels/pick_lanes_avx512.h"
#include "pruning/select_simd.h"

namespace lgreco::pruning::avx512 {
namespace {

struct Level : kernels::avx512::PickLanes {
  LGRECO_LANES Int magnitudes(Int bits) { return _mm512_and_si512(bits, set(0x7FFFFFFF)); }
  LGRECO_LANES Int value_keys(Int raw) {
    const Int one_zero = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(raw), set(0.0F)));
    const Int flip = magnitudes(_mm512_srai_epi32(one_zero, 31));
    return _mm512_xor_si512(one_zero, flip);
  }
  LGRECO_LANES Int greatest(Int a, Int b) { return _mm512_max_epi32(a, b); }
  LGRECO_LANES uint32_t greater(Int a, Int b) { return _mm512_cmpgt_epi32_mask(a, b); }
  LGRECO_LANES uint32_t any_bit(Int a) { return _mm512_test_epi32_mask(a, a); }
  LGRECO_LANES Int only(uint32_t mask, Int a) {
    return _mm512_maskz_mov_epi32(static_cast<__mmask16>(mask), a);
  }
  LGRECO_LANES uint32_t kept_mask(const uint8_t* kept) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kept));
    return _mm_test_epi8_mask(bytes, bytes);
  }
  LGRECO_LANES void store_kept(uint8_t* kept, uint32_t mask) {
    const __m128i bytes = _mm_maskz_set1_epi8(static_cast<__mmask16>(mask), 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(kept), bytes);
  }
};

}  // namespace

void scan(const Scores& scores, Order order, const Bracket& bracket, Seen& seen, Collected& inside) {
  SimdSelect<Level>::scan(scores, order, bracket, seen, inside);
}

int64_t mark_kept(const Scores& scores, Order order, int32_t key, int64_t ties, uint8_t* kept,
                  float* weights) {
  return SimdSelect<Level>::mark_kept(scores, order, key, ties, kept, weights);
}

void hold(const uint8_t* kept, int64_t numel, float* weights) {
  SimdSelect<Level>::hold(kept, numel, weights);
}

}  // namespace lgreco::pruning::avx512
