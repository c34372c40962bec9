// The inner loops of the sixteen-lane quantise kernels, one group at a time. Part of quantize_simd.h.
#pragma once

namespace lgreco::kernels {

/// How far ahead of the gather memory is fetched: across the page ends where the processor's own
/// prefetching stops, and no further than the first cache has room for.
inline constexpr int kFetchAheadBytes = 4096;

/// How far beyond sixteen codes a level may read.
inline constexpr int kOverread = 8;

/// Codes that may be read beyond their end: themselves, or a copy where fewer bytes than the copy holds
/// are left of their wire.
template <int kBytes>
LGRECO_HD const uint8_t* make_readable(const uint8_t* codes, int64_t readable_bytes,
                                       uint8_t (&copy)[kBytes]) {
  if (readable_bytes >= kBytes) return codes;
  memcpy(copy, codes, readable_bytes);
  memset(copy + readable_bytes, 0, kBytes - readable_bytes);
  return copy;
}

template <class Level>
template <DType kInput, Rest kRest, bool kFetch>
void SimdQuantizer<Level>::gather_group(const void* input, const void* residual, float scale,
                                        int vectors, float* values, Extent& extent) {
  constexpr DType kResidual = kRest == Rest::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
  const auto* from = static_cast<const char*>(input);
  const auto* left = static_cast<const char*>(residual);
  const Float scales = Level::set(scale);
  Extent seen = extent;
  constexpr int64_t kInputBytes = kLanes * element_bytes(kInput);
  constexpr int64_t kResidualBytes = kLanes * element_bytes(kResidual);
#pragma GCC unroll 2
  for (int v = 0; v < vectors; ++v) {
    if constexpr (kFetch) __builtin_prefetch(from + v * kInputBytes + kFetchAheadBytes);
    Float value = Level::template load<kInput>(from + v * kInputBytes);
    if constexpr (kRest != Rest::kNone) {
      __builtin_prefetch(left + v * kResidualBytes + kFetchAheadBytes);
      const Float owed = Level::template load<kResidual>(left + v * kResidualBytes);
      value = Level::add(value, Level::mul(owed, scales));
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
template <int bits, bool kStochastic, Rest kRest>
void SimdQuantizer<Level>::code_group(const float* values, int numel, const Coding& coding,
                                      const uint32_t* draws, uint8_t* wire, void* residual) {
  constexpr int64_t kRestBytes = kLanes * (kRest == Rest::kBFloat16 ? 2 : 4);
  const Float lo = Level::set(coding.grid.lo), step = Level::set(coding.grid.step);
  const Float inverse = Level::set(coding.grid.inverse),
              inverse_scale = Level::set(coding.inverse_scale);
  const Float top = Level::set(coding.top), zero = Level::set(0.0F);
  const Float magic = Level::set(12582912.0F);  // as in nearest_code()
  auto* left = static_cast<char*>(residual);
  // Four vectors at a time, because their codes fill 64 bytes. Those beyond the group's end are coded
  // too (whatever they hold) and never stored.
  const auto code_quad = [&](int first) __attribute__((always_inline)) {
    Int quad[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const Float value = Level::template load<DType::kFloat32>(values + (first + v) * kLanes);
      Float scaled = Level::mul(Level::sub(value, lo), inverse);
      Float point;
      if constexpr (kStochastic) {
        const Int drawn = Level::draw(draws + (first + v) / 2 * kLanes, v % 2);
        const Float uniform = Level::mul(Level::to_float(drawn), Level::set(0x1p-16F));
        scaled = Level::max(Level::add(scaled, uniform), zero);
        quad[v] = Level::truncate(Level::min(scaled, top));
        point = Level::to_float(quad[v]);
      } else {
        const Float lifted = Level::add(Level::min(Level::max(scaled, zero), top), magic);
        quad[v] = Level::bits(lifted);  // the code is the low byte
        point = Level::sub(lifted, magic);
      }
      if (kRest == Rest::kNone || (first + v) * kLanes >= numel) continue;
      const Float decoded = Level::add(lo, Level::mul(point, step));
      const Float error = Level::mul(Level::sub(value, decoded), inverse_scale);
      char* const at = left + (first + v) * kRestBytes;
      if constexpr (kRest == Rest::kStreamedFloat32) {
        Level::stream(reinterpret_cast<float*>(at), error);
      } else if constexpr (kRest == Rest::kFloat32) {
        Level::template store<DType::kFloat32>(at, error);
      } else {
        Level::template store<DType::kBFloat16>(at, error);
      }
    }
    Level::template pack<bits>(quad, numel - first * kLanes, wire + first * 2 * bits);
  };
  for (int first = 0; first * kLanes < numel; first += 4) code_quad(first);
}

template <class Level>
template <int bits>
void SimdQuantizer<Level>::sum_group(const Payloads& payloads, int vectors, float* values) {
  int v = 0;
  for (; v + Level::kSumVectors <= vectors; v += Level::kSumVectors) {
    sum_vectors<bits, Level::kSumVectors>(payloads, v, values);
  }
  for (; v < vectors; ++v) sum_vectors<bits, 1>(payloads, v, values);
}

template <class Level>
template <int bits, int kVectors>
void SimdQuantizer<Level>::sum_vectors(const Payloads& payloads, int first_vector, float* values) {
  constexpr int kVectorBytes = 2 * bits;
  Float sums[kVectors];
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) sums[v] = Level::set(-0.0F);  // -0 + x is x, also where x is -0
  for (int k = 0; k < payloads.count; ++k) {
    const Grid grid = read_grid(payloads.spec, payloads.wires[k] + payloads.block_offset);
    const auto points = Level::template points<bits>(grid);
    const uint8_t* codes = payloads.wires[k] + payloads.codes_offset + first_vector * kVectorBytes;
    uint8_t copy[kVectors * kVectorBytes + kOverread];
    codes = make_readable(codes, payloads.readable_bytes - first_vector * kVectorBytes, copy);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      sums[v] = Level::add(sums[v], Level::template decode<bits>(codes + v * kVectorBytes, points));
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < kVectors; ++v) {
    const Float scaled = Level::mul(sums[v], Level::set(payloads.factor));
    Level::template store<DType::kFloat32>(values + (first_vector + v) * kLanes, scaled);
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
