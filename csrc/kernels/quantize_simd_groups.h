// The inner loops of the sixteen-lane quantise kernels, one group at a time. Part of quantize_simd.h.
#pragma once

namespace lgreco::kernels {

/// Elements ahead of the gather that are fetched: a few blocks, across the page ends where the
/// processor's own prefetching stops.
inline constexpr int kFetchAheadBytes = 4096;

/// How far beyond sixteen codes a level may read.
inline constexpr int kOverread = 8;

/// Codes that may be read beyond their end: themselves, or a copy where fewer bytes than the copy holds
/// are left of their wire.
template <int kBytes>
LGRECO_HD const uint8_t* make_readable(const uint8_t* codes, int64_t readable_bytes, uint8_t (&copy)[kBytes]) {
  if (readable_bytes >= kBytes) return codes;
  memcpy(copy, codes, readable_bytes);
  memset(copy + readable_bytes, 0, kBytes - readable_bytes);
  return copy;
}

template <class Level>
template <DType kInput, Rest kRest>
void SimdQuantizer<Level>::gather_group(const void* input, float factor, const void* residual, float scale,
                                        int vectors, float* values, Extent& extent) {
  constexpr bool kWide = kRest == Rest::kFloat32 || kRest == Rest::kStreamedFloat32;
  constexpr DType kResidual = kWide ? DType::kFloat32 : DType::kBFloat16;
  const auto* from = static_cast<const char*>(input);
  const auto* left = static_cast<const char*>(residual);
  const Float factors = Level::set(factor), scales = Level::set(scale);
  Extent seen = extent;
  for (int v = 0; v < vectors; ++v) {
    __builtin_prefetch(from + kFetchAheadBytes);
    Float value = Level::mul(Level::template load<kInput>(from), factors);
    from += kLanes * element_bytes(kInput);
    if constexpr (kRest != Rest::kNone) {
      __builtin_prefetch(left + kFetchAheadBytes);
      const Float owed = Level::template load<kResidual>(left);
      value = Level::add(value, Level::mul(owed, scales));
      left += kLanes * element_bytes(kResidual);
    }
    Level::template store<DType::kFloat32>(values + v * kLanes, value);
    seen.lo = Level::min(seen.lo, value);
    seen.hi = Level::max(seen.hi, value);
    // 0 for a finite value, NaN otherwise.
    seen.flaws = Level::bit_or(seen.flaws, Level::bits(Level::sub(value, value)));
  }
  extent = seen;
}

template <class Level>
template <bool kStochastic, Rest kRest>
void SimdQuantizer<Level>::code_group(const float* values, int vectors, const Grid& grid, float top,
                                      const uint32_t* draws, float inverse_scale, uint8_t* codes,
                                      void* residual) {
  const Float lo = Level::set(grid.lo), step = Level::set(grid.step), inverse = Level::set(grid.inverse);
  const Float inverse_scales = Level::set(inverse_scale), tops = Level::set(top);
  const Float magic = Level::set(12582912.0F);  // as in nearest_code()
  auto* left = static_cast<char*>(residual);
  // Four vectors at a time, because their codes fill 64 bytes. Those beyond the group's end are coded
  // too (whatever they hold) and never stored.
  for (int first = 0; first < vectors; first += 4) {
    Int quad[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Float value = Level::template load<DType::kFloat32>(values + (first + v) * kLanes);
      const Float scaled = Level::mul(Level::sub(value, lo), inverse);
      Float point;
      if constexpr (kStochastic) {
        const Int drawn = Level::draw(draws + (first + v) / 2 * kLanes, v % 2);
        const Float uniform = Level::mul(Level::to_float(drawn), Level::set(0x1p-16F));
        quad[v] = Level::truncate(Level::min(Level::add(scaled, uniform), tops));
        point = Level::to_float(quad[v]);
      } else {
        const Float lifted = Level::add(scaled, magic);
        quad[v] = Level::bits(lifted);  // the code is the low byte
        point = Level::sub(lifted, magic);
      }
      if (kRest == Rest::kNone || first + v >= vectors) continue;
      const Float decoded = Level::add(lo, Level::mul(point, step));
      const Float error = Level::mul(Level::sub(value, decoded), inverse_scales);
      if constexpr (kRest == Rest::kStreamedFloat32) {
        Level::stream(reinterpret_cast<float*>(left), error);
      } else if constexpr (kRest == Rest::kFloat32) {
        Level::template store<DType::kFloat32>(left, error);
      } else {
        Level::template store<DType::kBFloat16>(left, error);
      }
      left += kLanes * (kRest == Rest::kBFloat16 ? 2 : 4);
    }
    Level::narrow(quad, codes + first * kLanes);
  }
}

template <class Level>
template <int bits>
void SimdQuantizer<Level>::sum_group(const Payloads& payloads, int vectors, float* values) {
  constexpr int kWhole = kGroupNumel / kLanes;
  if (vectors == kWhole) return sum_vectors<bits, kWhole>(payloads, 0, values);
  for (int v = 0; v < vectors; ++v) sum_vectors<bits, 1>(payloads, v, values);
}

template <class Level>
template <int bits, int kVectors>
void SimdQuantizer<Level>::sum_vectors(const Payloads& payloads, int first_vector, float* values) {
  constexpr int kVectorBytes = 2 * bits;
  Float sums[kVectors];
  for (int k = 0; k < payloads.count; ++k) {
    const Grid grid = read_grid(payloads.spec, payloads.wires[k] + payloads.block_offset);
    const auto points = Level::template points<bits>(grid);
    const uint8_t* codes = payloads.wires[k] + payloads.codes_offset + first_vector * kVectorBytes;
    uint8_t copy[kVectors * kVectorBytes + kOverread];
    codes = make_readable(codes, payloads.readable_bytes - first_vector * kVectorBytes, copy);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Float decoded = Level::template decode<bits>(codes + v * kVectorBytes, points);
      sums[v] = k == 0 ? decoded : Level::add(sums[v], decoded);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    Level::template store<DType::kFloat32>(values + (first_vector + v) * kLanes, sums[v]);
  }
}

template <class Level>
template <int bits, DType kOut, bool kAdd>
void SimdQuantizer<Level>::decode_group(const uint8_t* codes, const Grid& grid, int vectors, void* out) {
  const auto points = Level::template points<bits>(grid);
  auto* to = static_cast<char*>(out);
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    Float value = Level::template decode<bits>(codes + v * 2 * bits, points);
    if constexpr (kAdd) {
      __builtin_prefetch(to + kFetchAheadBytes, 1);
      value = Level::add(Level::template load<kOut>(to), value);
    }
    Level::template store<kOut>(to, value);
    to += kLanes * element_bytes(kOut);
  }
}

}  // namespace lgreco::kernels
