// The AVX2 level of the quantise kernels: codes, bits and draws in pairs of 256-bit registers.
#include "kernels/lanes_avx2.h"
#include "kernels/quantize_simd.h"

namespace lgreco::kernels::avx2 {
namespace {

struct alignas(32) Bytes {
  uint8_t at[32];
};

struct alignas(32) Words {
  int32_t at[8];
};

/// Bytes of a shuffle that keeps the first `bits` bytes of both 64-bit words of a half register.
template <int bits>
constexpr Bytes kept_bytes() {
  Bytes bytes{};
  for (int i = 0; i < 32; ++i) {
    const int k = i % 16;
    bytes.at[i] = k < 2 * bits ? k / bits * 8 + k % bits : 0x80;
  }
  return bytes;
}

/// For each of 8 lanes the two bytes in which its code lies, out of the `bits` bytes of 8 codes.
template <int bits>
constexpr Bytes code_bytes() {
  Bytes bytes{};
  for (int i = 0; i < 32; ++i) bytes.at[i] = i % 4 < 2 ? i / 4 * bits / 8 + i % 4 : 0x80;
  return bytes;
}

/// The bit of those bytes at which the code begins.
template <int bits>
constexpr Words code_shifts() {
  Words words{};
  for (int lane = 0; lane < 8; ++lane) words.at[lane] = lane * bits % 8;
  return words;
}

LGRECO_LANES __m256i load_constant(const void* at) {
  return _mm256_load_si256(static_cast<const __m256i*>(at));
}

struct Level : Lanes {
  LGRECO_LANES Int truncate(Float a) {
    return {_mm256_cvttps_epi32(a.low), _mm256_cvttps_epi32(a.high)};
  }
  LGRECO_LANES Float to_float(Int a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }

  // --- packing ---

  /// Packs the low bytes of 64 lanes, of which only the first `numel` are there.
  template <int bits>
  LGRECO_LANES void pack(const Int (&quad)[4], int numel, uint8_t* wire) {
    __m256i low = narrow(quad[0], quad[1]), high = narrow(quad[2], quad[3]);
    if (numel >= 64) {
      pack_half<bits>(low, wire);
      pack_half<bits>(high, wire + 4 * bits);
      return;
    }
    uint8_t codes[64] = {}, packed[8 * bits];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + 32), high);
    memset(codes + numel, 0, 64 - numel);
    low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32));
    pack_half<bits>(low, packed);
    pack_half<bits>(high, packed + 4 * bits);
    memcpy(wire, packed, (numel * bits + 7) / 8);
  }

  // --- decoding ---

  /// How many sums fit in registers beside a payload's points.
  static constexpr int kSumVectors = 4;

  /// What codes decode to: for up to 3 bits all points of the grid (repeated, because the bits above a
  /// code are the next codes'), else its lo and step.
  struct Points {
    __m256 table_or_lo, step;
  };

  template <int bits>
  LGRECO_LANES Points points(const Grid& grid) {
    const __m256 lo = _mm256_set1_ps(grid.lo), step = _mm256_set1_ps(grid.step);
    if constexpr (bits > 3) return {lo, step};
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i code = _mm256_and_si256(lanes, _mm256_set1_epi32((1 << bits) - 1));
    return {_mm256_add_ps(lo, _mm256_mul_ps(_mm256_cvtepi32_ps(code), step)), step};
  }

  /// Sixteen codes, which begin at a whole byte.
  template <int bits>
  LGRECO_LANES Float decode(const uint8_t* codes, const Points& points) {
    return {decode_half<bits>(codes, points), decode_half<bits>(codes + bits, points)};
  }

  // --- draws ---

  /// The draws of the next groups: word w of lane l of group g at draws[(g * 4 + w) * 16 + l].
  ///
  /// Half of a group's lanes at a time; the counters of even and odd lanes each stand in the low halves
  /// of 64-bit words, which is what the multiplier reads.
  static void fill_draws(const PhiloxKeys& keys, const DrawPlace& place, uint32_t* draws) {
    for (int half = 0; half < 2 * kDrawGroups; ++half) {
      const int first = place.group * kLanes + half * 8;
      __m256i c[2][4];
#pragma GCC unroll 2
      for (int odd = 0; odd < 2; ++odd) {
        c[odd][0] = _mm256_add_epi64(_mm256_setr_epi64x(0, 2, 4, 6), _mm256_set1_epi64x(first + odd));
        c[odd][1] = _mm256_set1_epi64x(place.block);
        c[odd][2] = _mm256_set1_epi64x(place.step);
        c[odd][3] = _mm256_set1_epi64x(place.stream);
      }
      for (int round = 0; round < 10; ++round) {
        const __m256i key0 = _mm256_set1_epi64x(static_cast<int64_t>(keys.word[round][0]));
        const __m256i key1 = _mm256_set1_epi64x(static_cast<int64_t>(keys.word[round][1]));
        philox_round(c[0], key0, key1);
        philox_round(c[1], key0, key1);
      }
      uint32_t* const to = draws + half / 2 * 4 * kLanes + half % 2 * 8;
#pragma GCC unroll 4
      for (int w = 0; w < 4; ++w) {
        const __m256i word = _mm256_blend_epi32(c[0][w], _mm256_slli_epi64(c[1][w], 32), 0xAA);
        _mm256_store_si256(reinterpret_cast<__m256i*>(to + w * kLanes), word);
      }
    }
  }

  /// Sixteen lanes' draws: the low or high halves of one word each.
  LGRECO_LANES Int draw(const uint32_t* words, int half) {
    const __m128i count = _mm_cvtsi32_si128(16 * half);
    const __m256i mask = _mm256_set1_epi32(0xFFFF);
    return {_mm256_and_si256(_mm256_srl_epi32(load_constant(words), count), mask),
            _mm256_and_si256(_mm256_srl_epi32(load_constant(words + 8), count), mask)};
  }

 private:
  /// The low bytes of 32 lanes, in order.
  LGRECO_LANES __m256i narrow(Int a, Int b) {
    const __m256i mask = _mm256_set1_epi32(0xFF);
    const __m256i first =
        _mm256_packus_epi32(_mm256_and_si256(a.low, mask), _mm256_and_si256(a.high, mask));
    const __m256i second =
        _mm256_packus_epi32(_mm256_and_si256(b.low, mask), _mm256_and_si256(b.high, mask));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order);
  }

  template <int bits>
  LGRECO_LANES void pack_half(__m256i codes, uint8_t* wire) {
    if constexpr (bits < 8) {
      static constexpr Bytes kKept = kept_bytes<bits>();
      // Neighbours pairwise: 16, 32, then 64 bits hold 2, 4, 8 codes.
      codes = _mm256_maddubs_epi16(_mm256_set1_epi16(1 | 1 << (bits + 8)), codes);
      codes = _mm256_madd_epi16(codes, _mm256_set1_epi32(1 | 1 << (2 * bits + 16)));
      const __m256i lower = _mm256_set1_epi64x((1LL << 4 * bits) - 1);
      const __m256i upper = _mm256_andnot_si256(lower, _mm256_srli_epi64(codes, 32 - 4 * bits));
      codes = _mm256_or_si256(_mm256_and_si256(lower, codes), upper);
      codes = _mm256_shuffle_epi8(codes, load_constant(&kKept));
    }
    store_first<2 * bits>(wire, _mm256_castsi256_si128(codes));
    store_first<2 * bits>(wire + 2 * bits, _mm256_extracti128_si256(codes, 1));
  }

  /// Stores the first `bytes`, an even number.
  template <int bytes>
  LGRECO_LANES void store_first(uint8_t* at, __m128i data) {
    if constexpr (bytes == 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(at), data);
    } else if constexpr (bytes >= 8) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(at), data);
      store_first<bytes - 8>(at + 8, _mm_srli_si128(data, 8));
    } else if constexpr (bytes >= 4) {
      const int word = _mm_cvtsi128_si32(data);
      memcpy(at, &word, sizeof word);
      store_first<bytes - 4>(at + 4, _mm_srli_si128(data, 4));
    } else if constexpr (bytes >= 2) {
      const auto word = static_cast<uint16_t>(_mm_cvtsi128_si32(data));
      memcpy(at, &word, sizeof word);
    }
  }

  template <int bits>
  LGRECO_LANES __m256 decode_half(const uint8_t* codes, const Points& points) {
    long long word;
    memcpy(&word, codes, sizeof word);
    __m256i code;
    if constexpr (bits == 8) {
      code = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(word));
    } else {
      static constexpr Bytes kBytes = code_bytes<bits>();
      static constexpr Words kShifts = code_shifts<bits>();
      code = _mm256_shuffle_epi8(_mm256_set1_epi64x(word), load_constant(&kBytes));
      code = _mm256_srlv_epi32(code, load_constant(&kShifts));
      if constexpr (bits <= 3) return _mm256_permutevar8x32_ps(points.table_or_lo, code);
      code = _mm256_and_si256(code, _mm256_set1_epi32((1 << bits) - 1));
    }
    return _mm256_add_ps(points.table_or_lo, _mm256_mul_ps(_mm256_cvtepi32_ps(code), points.step));
  }

  LGRECO_LANES void philox_round(__m256i (&c)[4], __m256i key0, __m256i key1) {
    const __m256i product0 = _mm256_mul_epu32(c[0], _mm256_set1_epi64x(0xD2511F53U));
    const __m256i product1 = _mm256_mul_epu32(c[2], _mm256_set1_epi64x(0xCD9E8D57U));
    const __m256i high0 = _mm256_srli_epi64(product0, 32), high1 = _mm256_srli_epi64(product1, 32);
    c[0] = _mm256_xor_si256(_mm256_xor_si256(high1, c[1]), key0);
    c[2] = _mm256_xor_si256(_mm256_xor_si256(high0, c[3]), key1);
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

}  // namespace lgreco::kernels::avx2
