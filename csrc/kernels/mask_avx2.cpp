// The AVX2 level of the mask kernels: eight lanes are permuted by indices that BMI2 makes of the bits.
#include <immintrin.h>

#include "kernels/mask_levels.h"
#include "kernels/mask_words.h"

namespace lgreco::kernels::avx2 {
namespace {

struct Pack {
  static constexpr bool kPacks = true;

  static void compress(const uint32_t* from, uint32_t bits, uint32_t* to) {
    const uint32_t low = bits & 0xFFU;
    store(to, packed(load(from), low));
    store(to + __builtin_popcount(low), packed(load(from + 8), bits >> 8));
  }
  static void expand(const uint32_t* from, uint32_t bits, uint32_t* to) {
    const uint32_t low = bits & 0xFFU;
    store(to, spread(load(from), low));
    store(to + 8, spread(load(from + __builtin_popcount(low)), bits >> 8));
  }
  static void compress(const uint16_t* from, uint32_t bits, uint16_t* to) {
    const uint32_t low = bits & 0xFFU;
    store(to, packed(load(from), low));
    store(to + __builtin_popcount(low), packed(load(from + 8), bits >> 8));
  }
  static void expand(const uint16_t* from, uint32_t bits, uint16_t* to) {
    const uint32_t low = bits & 0xFFU;
    store(to, spread(load(from), low));
    store(to + 8, spread(load(from + __builtin_popcount(low)), bits >> 8));
  }

 private:
  static constexpr uint64_t kLanes = 0x0706050403020100ULL;

  static __m256i load(const uint32_t* from) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  }
  static __m256i load(const uint16_t* from) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static void store(uint32_t* to, __m256i lanes) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), lanes);
  }
  static void store(uint16_t* to, __m256i lanes) {
    const __m128i halves =
        _mm_packus_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), halves);
  }
  /// A byte of ones for each bit.
  static uint64_t bytes_of(uint32_t bits) { return _pdep_u64(bits, 0x0101010101010101ULL) * 0xFFU; }
  static __m256i lanes_of(uint64_t bytes) {
    return _mm256_cvtepi8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(bytes)));
  }
  static __m256i packed(__m256i lanes, uint32_t bits) {
    return _mm256_permutevar8x32_epi32(lanes, lanes_of(_pext_u64(kLanes, bytes_of(bits))));
  }
  static __m256i spread(__m256i lanes, uint32_t bits) {
    const uint64_t bytes = bytes_of(bits);
    const __m256i moved = _mm256_permutevar8x32_epi32(lanes, lanes_of(_pdep_u64(kLanes, bytes)));
    return _mm256_and_si256(moved, lanes_of(bytes));
  }
};

}  // namespace

void mask_gather(const MaskSpan& mask, const void* dense, int64_t element_bytes, void* run) {
  gather_words<Pack>(mask, dense, element_bytes, run);
}

void mask_scatter(const MaskSpan& mask, const void* run, int64_t element_bytes, void* dense) {
  scatter_words<Pack>(mask, run, element_bytes, dense);
}

}  // namespace lgreco::kernels::avx2
