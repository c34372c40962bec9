// What picking elements by magnitude adds to sixteen AVX-512 lanes: raw bits, comparison, compaction.
#pragma once

#include "kernels/lanes_avx512.h"

namespace lgreco::kernels::avx512 {

struct PickLanes : Lanes {
  using Lanes::add;
  LGRECO_LANES Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  LGRECO_LANES Int load_bits(const void* at) { return _mm512_loadu_si512(at); }
  LGRECO_LANES void store_bits(void* at, Int a) { _mm512_storeu_si512(at, a); }
  LGRECO_LANES Int lanes() {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }

  /// Lanes whose magnitude is at least `least`.
  LGRECO_LANES uint32_t reaching(Int values, Int least) {
    return _mm512_cmpge_epi32_mask(_mm512_and_si512(values, set(0x7FFFFFFF)), least);
  }

  /// Stores the lanes of `mask` one after the other; all 16 places may be overwritten.
  LGRECO_LANES void append(void* at, uint32_t mask, Int values) {
    _mm512_storeu_si512(at, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), values));
  }
};

}  // namespace lgreco::kernels::avx512
