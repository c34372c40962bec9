// The AVX-512 level of the quantise kernels: codes, bits and draws in 512-bit registers.
#include "kernels/lanes_avx512.h"
#include "kernels/quantize_simd.h"

namespace lgreco::kernels::avx512 {
namespace {

constexpr int kWireAheadBytes = 1024;

constexpr uint64_t first_bits(int count) { return count >= 64 ? ~0ULL : (1ULL << count) - 1; }

struct alignas(64) Bytes {
  uint8_t at[64];
};

/// Bytes of a permutation that keeps the first `bits` bytes of each 64-bit word, one after the other.
template <int bits>
constexpr Bytes kept_bytes() {
  Bytes bytes{};
  for (int i = 0; i < 8 * bits; ++i) bytes.at[i] = i / bits * 8 + i % bits;
  return bytes;
}

/// Low bytes of the 16 lanes of two registers (the second one's count from 64), at 32 * half.
template <int half>
constexpr Bytes low_bytes() {
  Bytes bytes{};
  for (int i = 0; i < 32; ++i) bytes.at[32 * half + i] = 4 * i;
  return bytes;
}

/// Sixteen codes as 8 windows of 64 bits, each of which begins in the byte where its two codes begin.
template <int bits>
constexpr Bytes window_bytes() {
  Bytes bytes{};
  for (int i = 0; i < 64; ++i) {
    const int at = i / 8 * 2 * bits / 8 + i % 8;
    bytes.at[i] = at < 16 ? at : 0x80;
  }
  return bytes;
}

/// Bit offsets within its window for each lane's low byte. Up to 4 bits all windows are the whole word.
template <int bits>
constexpr Bytes code_offsets() {
  Bytes bytes{};
  for (int lane = 0; lane < 16; ++lane) {
    const int window_bit = bits <= 4 ? 0 : lane / 2 * 2 * bits / 8 * 8;
    bytes.at[4 * lane] = lane * bits - window_bit;
  }
  return bytes;
}

struct Level : Lanes {
  LGRECO_LANES Int truncate(Float a) { return _mm512_cvttps_epi32(a); }
  LGRECO_LANES Float to_float(Int a) { return _mm512_cvtepi32_ps(a); }

  // --- packing ---

  /// Packs the low bytes of 64 lanes, of which only the first `numel` are there.
  template <int bits>
  LGRECO_LANES void pack(const Int (&quad)[4], int numel, uint8_t* wire) {
    static constexpr Bytes kLow = low_bytes<0>(), kHigh = low_bytes<1>(), kKept = kept_bytes<bits>();
    const __m512i low = _mm512_permutex2var_epi8(quad[0], _mm512_load_si512(&kLow), quad[1]);
    const __m512i high = _mm512_permutex2var_epi8(quad[2], _mm512_load_si512(&kHigh), quad[3]);
    __m512i packed = _mm512_mask_blend_epi64(0xF0, low, high);
    if (numel < 64) packed = _mm512_maskz_mov_epi8(first_bits(numel), packed);
    if constexpr (bits < 8) {
      // Neighbours pairwise: 16, 32, then 64 bits hold 2, 4, 8 codes.
      packed = _mm512_maddubs_epi16(_mm512_set1_epi16(1 | 1 << (bits + 8)), packed);
      packed = _mm512_madd_epi16(packed, _mm512_set1_epi32(1 | 1 << (2 * bits + 16)));
      const __m512i upper = _mm512_srli_epi64(packed, 32 - 4 * bits);
      packed = _mm512_ternarylogic_epi64(_mm512_set1_epi64((1LL << 4 * bits) - 1), packed, upper, 0xCA);
      packed = _mm512_permutexvar_epi8(_mm512_load_si512(&kKept), packed);
    }
    if (numel >= 64) {
      __builtin_prefetch(wire + kWireAheadBytes, 1);
      store_first<8 * bits>(wire, packed);
    } else {
      _mm512_mask_storeu_epi8(wire, first_bits((numel * bits + 7) / 8), packed);
    }
  }

  /// Stores `bytes`, a multiple of 8, without a mask: masked stores that miss the cache are slow.
  template <int bytes>
  LGRECO_LANES void store_first(uint8_t* at, __m512i data) {
    if constexpr (bytes == 64) {
      _mm512_storeu_si512(at, data);
    } else if constexpr (bytes >= 32) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm512_castsi512_si256(data));
      store_first<bytes - 32>(at + 32, _mm512_castsi256_si512(_mm512_extracti64x4_epi64(data, 1)));
    } else if constexpr (bytes >= 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_castsi512_si128(data));
      store_first<bytes - 16>(at + 16, _mm512_castsi128_si512(_mm512_extracti32x4_epi32(data, 1)));
    } else if constexpr (bytes >= 8) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(at), _mm512_castsi512_si128(data));
    }
  }

  // --- decoding ---

  /// How many sums fit in registers beside a payload's points.
  static constexpr int kSumVectors = 8;

  /// What codes decode to: for up to 4 bits all points of the grid (repeated, because the bits above a
  /// code are the next codes'), else its lo and step.
  struct Points {
    Float table_or_lo, step;
  };

  template <int bits>
  LGRECO_LANES Points points(const Grid& grid) {
    const Float lo = set(grid.lo), step = set(grid.step);
    if constexpr (bits > 4) return {lo, step};
    const Int lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const Int code = _mm512_and_si512(lanes, set((1 << bits) - 1));
    return {add(lo, mul(to_float(code), step)), step};
  }

  /// Sixteen codes, which begin at a whole byte.
  template <int bits>
  LGRECO_LANES Float decode(const uint8_t* codes, const Points& points) {
    static constexpr Bytes kOffsets = code_offsets<bits>(), kWindows = window_bytes<bits>();
    if constexpr (bits <= 4) {
      long long word;
      memcpy(&word, codes, sizeof word);
      const Int code =
          _mm512_multishift_epi64_epi8(_mm512_load_si512(&kOffsets), _mm512_set1_epi64(word));
      return _mm512_permutexvar_ps(code, points.table_or_lo);
    } else {
      const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
      Int code;
      if constexpr (bits == 8) {
        code = _mm512_cvtepu8_epi32(packed);
      } else {
        code = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(packed), _mm512_load_si512(&kWindows));
        code = _mm512_multishift_epi64_epi8(_mm512_load_si512(&kOffsets), code);
        code = _mm512_and_si512(code, set((1 << bits) - 1));
      }
      return add(points.table_or_lo, mul(to_float(code), points.step));
    }
  }

  // --- draws ---

  /// The draws of the next groups: word w of lane l of group g at draws[(g * 4 + w) * 16 + l].
  ///
  /// The even and the odd lanes' counters each stand in the low halves of 64-bit words, which is what
  /// the multiplier reads. All chains advance together, because one alone waits for its multiplier.
  static void fill_draws(const PhiloxKeys& keys, const DrawPlace& place, uint32_t* draws) {
    constexpr int kChains = 2 * kDrawGroups;
    const __m512i lanes = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14);
    __m512i c[kChains][4];
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) {
      const int first = (place.group + chain / 2) * kLanes + chain % 2;
      c[chain][0] = _mm512_add_epi64(lanes, _mm512_set1_epi64(first));
      c[chain][1] = _mm512_set1_epi64(place.block);
      c[chain][2] = _mm512_set1_epi64(place.step);
      c[chain][3] = _mm512_set1_epi64(place.stream);
    }
    for (int round = 0; round < 10; ++round) {
      const __m512i key0 = _mm512_set1_epi64(static_cast<int64_t>(keys.word[round][0]));
      const __m512i key1 = _mm512_set1_epi64(static_cast<int64_t>(keys.word[round][1]));
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains; ++chain) philox_round(c[chain], key0, key1);
    }
#pragma GCC unroll 2
    for (int group = 0; group < kDrawGroups; ++group) {
#pragma GCC unroll 4
      for (int w = 0; w < 4; ++w) {
        const __m512i odd = _mm512_slli_epi64(c[2 * group + 1][w], 32);
        _mm512_store_si512(draws + (group * 4 + w) * kLanes,
                           _mm512_mask_blend_epi32(0xAAAA, c[2 * group][w], odd));
      }
    }
  }

  /// Sixteen lanes' draws: the low or high halves of one word each.
  LGRECO_LANES Int draw(const uint32_t* words, int half) {
    const Int word = _mm512_srl_epi32(_mm512_load_si512(words), _mm_cvtsi32_si128(16 * half));
    return _mm512_and_si512(word, set(0xFFFF));
  }

 private:
  LGRECO_LANES void philox_round(__m512i (&c)[4], __m512i key0, __m512i key1) {
    const __m512i product0 = _mm512_mul_epu32(c[0], _mm512_set1_epi64(0xD2511F53U));
    const __m512i product1 = _mm512_mul_epu32(c[2], _mm512_set1_epi64(0xCD9E8D57U));
    constexpr int kXor3 = 0x96;
    c[0] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product1, 32), c[1], key0, kXor3);
    c[2] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(product0, 32), c[3], key1, kXor3);
    c[1] = product1;
    c[3] = product0;
  }
};

}  // namespace

Findings quantize_encode(const QuantizeSpec& spec, const void* gradient, DType dtype, int64_t numel,
                         const Feedback& feedback, const Noise& noise, uint8_t* wire) {
  return SimdQuantizer<Level>::encode(spec, gradient, dtype, numel, feedback, noise, wire);
}

Findings quantize_reduce(const QuantizeSpec& spec, const uint8_t* const* wires, int count, float factor,
                         int64_t numel, const Feedback& feedback, const Noise& noise, uint8_t* out) {
  return SimdQuantizer<Level>::reduce(spec, wires, count, factor, numel, feedback, noise, out);
}

Findings quantize_decode(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel, void* out,
                         DType dtype) {
  return SimdQuantizer<Level>::template decode<false>(spec, wire, numel, out, dtype);
}

Findings quantize_decode_add(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel, float* sum) {
  return SimdQuantizer<Level>::template decode<true>(spec, wire, numel, sum, DType::kFloat32);
}

}  // namespace lgreco::kernels::avx512
