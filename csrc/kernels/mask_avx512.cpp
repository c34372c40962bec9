// The AVX-512 level of the mask kernels: sixteen lanes compressed or expanded in a register. (To memory
// the same instructions take a hundred cycles on some processors.)
#include <immintrin.h>

#include "kernels/mask_levels.h"
#include "kernels/mask_words.h"

namespace lgreco::kernels::avx512 {
namespace {

struct Pack {
  static constexpr bool kPacks = true;

  static void compress(const uint32_t* from, uint32_t bits, uint32_t* to) {
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(lanes_of(bits), _mm512_loadu_si512(from)));
  }
  static void expand(const uint32_t* from, uint32_t bits, uint32_t* to) {
    _mm512_storeu_si512(to, _mm512_maskz_expand_epi32(lanes_of(bits), _mm512_loadu_si512(from)));
  }
  static void compress(const uint16_t* from, uint32_t bits, uint16_t* to) {
    store(to, _mm512_maskz_compress_epi32(lanes_of(bits), load(from)));
  }
  static void expand(const uint16_t* from, uint32_t bits, uint16_t* to) {
    store(to, _mm512_maskz_expand_epi32(lanes_of(bits), load(from)));
  }

 private:
  static constexpr __mmask16 kAll = 0xFFFF;  // masked forms: GCC takes the others for uninitialised

  static __mmask16 lanes_of(uint32_t bits) { return static_cast<__mmask16>(bits); }
  static __m512i load(const uint16_t* from) {
    return _mm512_maskz_cvtepu16_epi32(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static void store(uint16_t* to, __m512i lanes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtepi32_epi16(kAll, lanes));
  }
};

}  // namespace

void mask_gather(const MaskSpan& mask, const void* dense, int64_t element_bytes, void* run) {
  gather_words<Pack>(mask, dense, element_bytes, run);
}

void mask_scatter(const MaskSpan& mask, const void* run, int64_t element_bytes, void* dense) {
  scatter_words<Pack>(mask, run, element_bytes, dense);
}

}  // namespace lgreco::kernels::avx512
