// Eight consecutive elements of a block: what one CUDA thread loads, codes and stores at a time.
//
// Eight codes of b bits are b whole bytes, so threads never share a byte of the wire, and every index
// here is plain arithmetic that the C++ tests run on the host.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "core/host_device.h"
#include "core/types.h"
#include "kernels/elements.h"
#include "kernels/quantize_math.h"

namespace lgreco::kernels {

inline constexpr int kOctet = 8;

/// How many of an octet's elements exist in a block of `numel`; 0 beyond the end.
LGRECO_HD int octet_count(int numel, int octet) {
  const int left = numel - octet * kOctet;
  return left < 0 ? 0 : left < kOctet ? left : kOctet;
}

/// element_bytes() for device code too.
LGRECO_HD int64_t stride_bytes_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

/// An element at its natural alignment: without saying so, CUDA would read and write byte by byte.
LGRECO_HD float load_aligned(const uint8_t* at, DType dtype) {
  if (dtype == DType::kFloat32) {
    return load_element(__builtin_assume_aligned(at, 4), DType::kFloat32, 0);
  }
  return load_element(__builtin_assume_aligned(at, 2), dtype, 0);
}
LGRECO_HD float store_aligned(uint8_t* at, DType dtype, float value) {
  if (dtype == DType::kFloat32) {
    return store_element(__builtin_assume_aligned(at, 4), DType::kFloat32, 0, value);
  }
  return store_element(__builtin_assume_aligned(at, 2), dtype, 0, value);
}

/// 16 bytes that go through memory in one instruction where their address allows it.
struct alignas(16) Wide {
  uint32_t word[4];
};

LGRECO_HD bool is_wide_aligned(const void* at) {
  return reinterpret_cast<uintptr_t>(at) % sizeof(Wide) == 0;
}

LGRECO_HD Wide load_wide(const void* at) {
  Wide wide;
  memcpy(&wide, __builtin_assume_aligned(at, sizeof(Wide)), sizeof(Wide));
  return wide;
}

LGRECO_HD void store_wide(void* at, const Wide& wide) {
  memcpy(__builtin_assume_aligned(at, sizeof(Wide)), &wide, sizeof(Wide));
}

/// Elements [first, first + count) as fp32, zeros up to eight. Layers lie in a bucket at any address.
LGRECO_HD void load_octet(const void* base, DType dtype, int64_t first, int count,
                          float (&out)[kOctet]) {
  const auto* at = static_cast<const uint8_t*>(base) + first * stride_bytes_of(dtype);
  if (count < kOctet || !is_wide_aligned(at)) {
    for (int e = 0; e < kOctet; ++e) {
      out[e] = e < count ? load_aligned(at + e * stride_bytes_of(dtype), dtype) : 0.0F;
    }
  } else if (dtype == DType::kFloat32) {
    const Wide low = load_wide(at), high = load_wide(at + sizeof(Wide));
    for (int e = 0; e < 4; ++e) out[e] = float_of(low.word[e]);
    for (int e = 0; e < 4; ++e) out[4 + e] = float_of(high.word[e]);
  } else {
    const Wide halves = load_wide(at);
    for (int e = 0; e < kOctet; ++e) {
      const auto half = static_cast<uint16_t>(halves.word[e / 2] >> (e % 2 * 16));
      out[e] = dtype == DType::kBFloat16 ? bf16_to_float(half) : fp16_to_float(half);
    }
  }
}

/// Rounds the first `count` values to elements [first, first + count) and leaves in `values` what the
/// stored elements read as.
LGRECO_HD void store_octet(void* base, DType dtype, int64_t first, int count, float (&values)[kOctet]) {
  auto* at = static_cast<uint8_t*>(base) + first * stride_bytes_of(dtype);
  if (count < kOctet || !is_wide_aligned(at)) {
    for (int e = 0; e < kOctet; ++e) {
      if (e < count) values[e] = store_aligned(at + e * stride_bytes_of(dtype), dtype, values[e]);
    }
  } else if (dtype == DType::kFloat32) {
    Wide low, high;
    for (int e = 0; e < 4; ++e) low.word[e] = bits_of(values[e]);
    for (int e = 0; e < 4; ++e) high.word[e] = bits_of(values[4 + e]);
    store_wide(at, low);
    store_wide(at + sizeof(Wide), high);
  } else {
    Wide halves{};
    for (int e = 0; e < kOctet; ++e) {
      const bool bf16 = dtype == DType::kBFloat16;
      const uint16_t half = bf16 ? float_to_bf16(values[e]) : float_to_fp16(values[e]);
      values[e] = bf16 ? bf16_to_float(half) : fp16_to_float(half);
      halves.word[e / 2] |= static_cast<uint32_t>(half) << (e % 2 * 16);
    }
    store_wide(at, halves);
  }
}

/// Words of 4 bytes of a block's wire: metadata, codes, zeros.
LGRECO_HD int quantized_block_words(int metadata_bytes, int bits, int numel) {
  return (metadata_bytes + (numel * bits + 7) / 8 + 3) / 4;
}

/// read_grid() of quantize_math.h from a block's first two words, because blocks lie on words.
LGRECO_HD Grid grid_of_words(const QuantizeSpec& spec, uint32_t first, uint32_t second) {
  const float number = float_of(spec.bf16_scales ? first << 16 : first);
  if (has_one_number(spec)) return {low_of(spec, number), number, 0.0F};
  return {number, float_of(spec.bf16_scales ? first & 0xFFFF0000U : second), 0.0F};
}

/// write_grid() as the block's first bytes; those beyond its metadata are not to be written.
LGRECO_HD uint64_t words_of_grid(const QuantizeSpec& spec, const Grid& grid) {
  const uint64_t first = bits_of(has_one_number(spec) ? grid.step : grid.lo);
  const uint64_t second = has_one_number(spec) ? 0U : bits_of(grid.step);
  return spec.bf16_scales ? first >> 16 | (second & 0xFFFF0000U) : first | second << 32;
}

LGRECO_HD uint64_t pack_codes(const uint32_t (&code)[kOctet], int bits) {
  uint64_t packed = 0;
  for (int e = 0; e < kOctet; ++e) packed |= static_cast<uint64_t>(code[e]) << (bits * e);
  return packed;
}

LGRECO_HD uint32_t unpack_code(uint64_t packed, int bits, int e) {
  return static_cast<uint32_t>(packed >> (bits * e)) & ((1U << bits) - 1);
}

/// Writes an octet's codes at `at`, which is even where `bits` is, and `padding_bytes` zeros after
/// them (only a block's last octet has any).
LGRECO_HD void store_codes(uint8_t* at, uint64_t packed, int bits, int count, int padding_bytes) {
  const bool whole = count == kOctet && padding_bytes == 0;
  if (whole && bits % 4 == 0 && reinterpret_cast<uintptr_t>(at) % 4 == 0) {
    for (int i = 0; i < bits; i += 4, packed >>= 32) {
      const auto word = static_cast<uint32_t>(packed);
      memcpy(__builtin_assume_aligned(at + i, 4), &word, 4);
    }
  } else if (whole && bits % 2 == 0) {
    for (int i = 0; i < bits; i += 2, packed >>= 16) {
      const auto word = static_cast<uint16_t>(packed);
      memcpy(__builtin_assume_aligned(at + i, 2), &word, 2);
    }
  } else {
    const int bytes = (count * bits + 7) / 8 + padding_bytes;
    for (int i = 0; i < bytes; ++i, packed >>= 8) at[i] = static_cast<uint8_t>(packed);
  }
}

/// Reads an octet's codes, which begin `first_byte` bytes into a block of `words` words. What lies
/// beyond the octet's own bits is not zero.
LGRECO_HD uint64_t load_codes(const uint32_t* block, int words, int first_byte, int bits) {
  const int first = first_byte / 4, shift = first_byte % 4 * 8;
  const int last_bit = shift + kOctet * bits;
  const uint64_t low = block[first];
  const uint64_t middle = (last_bit > 32 && first + 1 < words) ? block[first + 1] : 0U;
  const uint64_t high = (last_bit > 64 && first + 2 < words) ? block[first + 2] : 0U;
  const uint64_t both = (low | middle << 32) >> shift;
  return shift == 0 ? both : both | high << (64 - shift);
}

/// The draws of a block in the order of quantize_math.h: lane i % 16, slot i / 16 % 8 and group i / 128
/// of element i. Here a lane is numbered over the whole block: group * 16 + lane.
LGRECO_HD int draw_lane(int octet, int e) { return octet / 16 * 16 + octet % 2 * kOctet + e; }
LGRECO_HD uint32_t draw_slot(int octet) { return static_cast<uint32_t>(octet) / 2 % 8; }

/// A warp's table of draws, one place a lane, where `kWidth` threads hold neighbouring octets of a
/// block. The thread of octet o computes lane o, and lane o + 8 where half the lanes would else be
/// missing.
template <int kWidth>
struct DrawTable {
  static constexpr int kSpan = kWidth < 16 ? 16 : kWidth;  ///< lanes that the kWidth threads need
  static constexpr int kPlaces = 32 / kWidth * kSpan;

  /// Turned by one place every eight lanes, so that threads that read the draws of 32 octets meet
  /// different banks of shared memory.
  static LGRECO_HD int place(int thread, int lane) {
    const int i = thread / kWidth * kSpan + lane % kSpan;
    return i / 8 * 8 + (i + i / 8) % 8;
  }
};

}  // namespace lgreco::kernels
