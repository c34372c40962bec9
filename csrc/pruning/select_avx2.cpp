// The AVX2 level of selection.
#include <cstring>

#include "kernels/pick_lanes_avx2.h"
#include "pruning/select_simd.h"

namespace lgreco::pruning::avx2 {
namespace {

struct Level : kernels::avx2::PickLanes {
  LGRECO_LANES Int magnitudes(Int bits) {
    const __m256i sign = _mm256_set1_epi32(0x7FFFFFFF);
    return {_mm256_and_si256(bits.low, sign), _mm256_and_si256(bits.high, sign)};
  }
  LGRECO_LANES Int value_keys(Int raw) { return {value_keys_half(raw.low), value_keys_half(raw.high)}; }
  LGRECO_LANES Int greatest(Int a, Int b) {
    return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
  }
  LGRECO_LANES uint32_t greater(Int a, Int b) {
    return lanes_of(_mm256_cmpgt_epi32(a.low, b.low)) | lanes_of(_mm256_cmpgt_epi32(a.high, b.high))
                                                            << 8;
  }
  LGRECO_LANES uint32_t any_bit(Int a) {
    const __m256i none = _mm256_setzero_si256();
    return 0xFFFFU ^
           (lanes_of(_mm256_cmpeq_epi32(a.low, none)) | lanes_of(_mm256_cmpeq_epi32(a.high, none)) << 8);
  }
  LGRECO_LANES Int only(uint32_t mask, Int a) {
    return {only_half(mask & 0xFF, a.low), only_half(mask >> 8, a.high)};
  }
  LGRECO_LANES uint32_t kept_mask(const uint8_t* kept) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(kept));
    return 0xFFFFU ^
           static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128())));
  }
  LGRECO_LANES void store_kept(uint8_t* kept, uint32_t mask) {
    const uint64_t halves[2] = {_pdep_u64(mask & 0xFF, 0x0101010101010101U),
                                _pdep_u64(mask >> 8, 0x0101010101010101U)};
    memcpy(kept, halves, sizeof halves);
  }

 private:
  LGRECO_LANES uint32_t lanes_of(__m256i comparison) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(comparison)));
  }
  LGRECO_LANES __m256i value_keys_half(__m256i raw) {
    const __m256i one_zero =
        _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(raw), _mm256_setzero_ps()));
    const __m256i flip =
        _mm256_and_si256(_mm256_srai_epi32(one_zero, 31), _mm256_set1_epi32(0x7FFFFFFF));
    return _mm256_xor_si256(one_zero, flip);
  }
  LGRECO_LANES __m256i only_half(uint32_t mask, __m256i a) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i picked = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bit);
    return _mm256_and_si256(a, _mm256_cmpeq_epi32(picked, bit));
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

}  // namespace lgreco::pruning::avx2
