// How the sixteen-lane quantise kernels go through a run: sources, pipeline, tails. Part of
// quantize_simd.h.
#pragma once

namespace lgreco::kernels {

/// Copies the last elements of a run to where whole vectors may be read. After them come repetitions of
/// the last one, so that extremes stay as they are, or zeros, so that all lanes' magnitudes do.
LGRECO_HD void pad_tail(const void* from, int64_t bytes, int numel, int padded_numel, bool zeros,
                        void* to) {
  memcpy(to, from, numel * bytes);
  char* const rest = static_cast<char*>(to) + numel * bytes;
  if (zeros) {
    memset(rest, 0, (padded_numel - numel) * bytes);
    return;
  }
  const char* last = static_cast<const char*>(from) + (numel - 1) * bytes;
  for (int i = 0; i < padded_numel - numel; ++i) memcpy(rest + i * bytes, last, bytes);
}

template <class Level>
struct SimdQuantizer<Level>::GradientSource {
  GradientSource(const QuantizeSpec& spec, const void* gradient, DType dtype, const Feedback& feedback)
      : pads_zeros(has_one_number(spec)),
        input(static_cast<const char*>(gradient)),
        input_bytes(element_bytes(dtype)),
        residual(static_cast<const char*>(feedback.in)),
        residual_bytes(feedback.in == nullptr ? 0 : element_bytes(feedback.dtype)),
        scale(feedback.scale),
        gather(gather_for(dtype, feedback)) {}

  void take(const Place& place, float* values, Extent& extent) {
    const char* from = input + place.begin * input_bytes;
    take_from(from, place, values, extent);
    if (!findings.nonzero) [[unlikely]]
      findings.nonzero = has_nonzero(from, input_bytes, place.numel);
  }

  void take_from(const char* from, const Place& place, float* values, Extent& extent) {
    const char* left = residual + place.begin * residual_bytes;
    const int numel = place.numel;
    if (numel % kLanes == 0) [[likely]] {
      gather(from, left, scale, numel / kLanes, values, extent);
    } else {
      const int vectors = vectors_of(numel);
      alignas(64) char padded[2][kGroupNumel * 4];
      pad_tail(from, input_bytes, numel, vectors * kLanes, pads_zeros, padded[0]);
      if (residual != nullptr)
        pad_tail(left, residual_bytes, numel, vectors * kLanes, pads_zeros, padded[1]);
      gather(padded[0], padded[1], scale, vectors, values, extent);
    }
  }

  bool pads_zeros;
  const char* input;
  int64_t input_bytes;
  const char* residual;
  int64_t residual_bytes;
  float scale;
  Gather gather;
  Findings findings;
};

template <class Level>
struct SimdQuantizer<Level>::PayloadSource {
  PayloadSource(const QuantizeSpec& spec, const uint8_t* const* wires, int count, float factor,
                int64_t numel, const Feedback& feedback)
      : spec(spec),
        wires(wires),
        count(count),
        factor(factor),
        wire_bytes(quantize_wire_bytes(spec, numel)),
        block_bytes(quantize_block_bytes(spec, spec.block_numel)),
        sum(sum_for(spec.bits)),
        rest(spec, nullptr, DType::kFloat32, feedback) {
    rest.gather = gather_for<DType::kFloat32, false>(feedback);
  }

  void take(const Place& place, float* values, Extent& extent) {
    const int64_t block_offset = place.block * block_bytes;
    const int64_t codes_offset =
        block_offset + quantize_metadata_bytes(spec) + place.group * (kGroupNumel / 8) * spec.bits;
    sum({spec, wires, count, factor, block_offset, codes_offset, wire_bytes - codes_offset},
        vectors_of(place.numel), values);
    rest.take_from(reinterpret_cast<const char*>(values), place, values, extent);
  }

  const QuantizeSpec& spec;
  const uint8_t* const* wires;
  int count;
  float factor;
  int64_t wire_bytes, block_bytes;
  Sum sum;
  GradientSource rest;
  Findings findings;
};

/// Pass two: codes blocks into the wire.
template <class Level>
struct SimdQuantizer<Level>::Coder {
  Coder(const QuantizeSpec& spec, const Feedback& feedback, const Noise& noise)
      : spec(spec),
        noise(noise),
        residual(static_cast<char*>(feedback.out)),
        residual_bytes(feedback.out == nullptr ? 0 : element_bytes(feedback.dtype)),
        group_bytes(kGroupNumel / 8 * spec.bits),
        code(code_for(spec, feedback)),
        keys(noise.seed) {
    coding.top = static_cast<float>(max_code(spec));
    coding.inverse_scale = feedback.inverse_scale;
  }

  /// Returns whether the block can be delivered.
  bool begin_block(const Extent& extent, int numel, uint8_t* wire) {
    const bool finite = !Level::any(extent.flaws);
    coding.grid = finite ? make_grid(spec, spread_of(extent), numel) : broken_grid();
    write_grid(spec, coding.grid, wire);
    return is_finite(coding.grid.step);
  }

  void put(const Place& place, const float* values, uint8_t* wire) {
    if (spec.stochastic && place.group % kDrawGroups == 0) {
      const auto block = noise.first_block + static_cast<uint32_t>(place.block);
      Level::fill_draws(keys, {place.group, block, noise.step, noise.stream}, draws);
    }
    const uint32_t* const drawn = draws + place.group % kDrawGroups * (kGroupNumel / 2);
    uint8_t* const codes = wire + quantize_metadata_bytes(spec) + place.group * group_bytes;
    char* const left = residual + place.begin * residual_bytes;
    const int numel = place.numel;
    if (numel % kLanes == 0) [[likely]] {
      code(values, numel, coding, drawn, codes, left);
    } else {
      alignas(64) char padded[kGroupNumel * 4];
      code(values, numel, coding, drawn, codes, padded);
      if (residual != nullptr) memcpy(left, padded, numel * residual_bytes);
    }
  }

  /// Zeros after the codes; for a block that cannot be delivered also the codes and the residual.
  void end_block(bool sound, int numel, int64_t begin, uint8_t* wire) const {
    const int64_t written = quantize_metadata_bytes(spec) + (sound ? (numel * spec.bits + 7) / 8 : 0);
    const int64_t left = quantize_block_bytes(spec, numel) - written;
    if (left > 0) memset(wire + written, 0, left);
    if (!sound && residual != nullptr)
      memset(residual + begin * residual_bytes, 0, numel * residual_bytes);
  }

  Spread spread_of(const Extent& extent) const {
    Spread spread{Level::lowest(extent.lo), Level::highest(extent.hi), 0.0F};
    if (spec.grid == GridKind::kClipped) {
      const Float largest = Level::max(Level::sub(Level::set(0.0F), extent.lo), extent.hi);
      spread.mean_of_largest = Level::sum(largest) * (1.0F / kSpreadLanes);
    }
    return spread;
  }

  const QuantizeSpec& spec;
  const Noise& noise;
  char* residual;
  int64_t residual_bytes;
  int64_t group_bytes;
  Code code;
  PhiloxKeys keys;
  alignas(64) uint32_t draws[kDrawGroups * kGroupNumel / 2];
  Coding coding;
};

template <class Level>
template <class Source>
void SimdQuantizer<Level>::code_run(const QuantizeSpec& spec, Source& source, int64_t numel,
                                    const Feedback& feedback, const Noise& noise, uint8_t* wire) {
  if (numel == 0) return;
  Coder coder(spec, feedback, noise);
  // The second half stands off by two lines, so that loads and stores of the two passes never lie a
  // multiple of 4096 bytes apart.
  alignas(64) float buffer[2 * kMaxBlockNumel + 6 * kLanes];  // coding reads up to three vectors beyond
  float* values = buffer;
  float* next_values = buffer + spec.block_numel + 2 * kLanes;

  int block_numel = block_numel_at(spec, 0, numel);
  Extent extent;
  for (int group = 0; group < groups_of(block_numel); ++group) {
    const Place place{group * kGroupNumel, 0, group, group_numel(block_numel, group)};
    source.take(place, values + place.begin, extent);
  }
  int64_t block = 0;
  for (int64_t begin = 0; begin < numel; ++block) {
    const bool sound = coder.begin_block(extent, block_numel, wire);
    source.findings.nonfinite |= !sound;
    const int64_t next = begin + block_numel;
    const int next_numel = block_numel_at(spec, next, numel);
    extent = Extent();
    for (int group = 0; group < groups_of(block_numel); ++group) {
      const int first = group * kGroupNumel;
      if (first < next_numel) {
        source.take({next + first, block + 1, group, group_numel(next_numel, group)},
                    next_values + first, extent);
      }
      if (sound) {
        coder.put({begin + first, block, group, group_numel(block_numel, group)}, values + first, wire);
      }
    }
    coder.end_block(sound, block_numel, begin, wire);
    wire += quantize_block_bytes(spec, block_numel);
    float* const done = values;
    values = next_values;
    next_values = done;
    begin = next;
    block_numel = next_numel;
  }
  Level::fence();
}

template <class Level>
template <bool kAdd>
Findings SimdQuantizer<Level>::decode(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel,
                                      void* out, DType dtype) {
  Findings findings;
  const Decode decode_some = decode_for<kAdd>(spec.bits, dtype);
  const uint8_t* const end = wire + quantize_wire_bytes(spec, numel);
  const int64_t bytes = element_bytes(dtype);
  auto* to = static_cast<char*>(out);
  for (int64_t begin = 0; begin < numel; begin += spec.block_numel) {
    const int block_numel = block_numel_at(spec, begin, numel);
    const Grid grid = read_grid(spec, wire);
    findings.nonfinite |= !is_deliverable(spec, grid, wire, block_numel, dtype);
    const uint8_t* codes = wire + quantize_metadata_bytes(spec);
    for (int group = 0; group < groups_of(block_numel); ++group) {
      const int some = group_numel(block_numel, group);
      uint8_t copy[kGroupNumel + kOverread];
      const uint8_t* readable = make_readable(codes, end - codes, copy);
      if (some % kLanes == 0) {
        decode_some(readable, grid, vectors_of(some), to);
      } else {
        alignas(64) char padded[kGroupNumel * 4];
        if constexpr (kAdd) memcpy(padded, to, some * bytes);
        decode_some(readable, grid, vectors_of(some), padded);
        memcpy(to, padded, some * bytes);
      }
      to += some * bytes;
      codes += kGroupNumel / 8 * spec.bits;
    }
    wire += quantize_block_bytes(spec, block_numel);
  }
  return findings;
}

/// Whether a block's elements are finite in the type that they are decoded to.
template <class Level>
bool SimdQuantizer<Level>::is_deliverable(const QuantizeSpec& spec, const Grid& grid,
                                          const uint8_t* wire, int block_numel, DType dtype) {
  const int max = max_code(spec);
  if (!is_sound(grid, max)) return false;
  if (dtype != DType::kFloat16) return true;
  constexpr float kOverflow = 65520.0F;
  if (grid.lo > -kOverflow && decode_code(grid, max) < kOverflow) return true;
  // Some code overflows; the scalar level looks whether the block has it.
  uint16_t decoded[kMaxBlockNumel];
  return !scalar::quantize_decode(spec, wire, block_numel, decoded, dtype).nonfinite;
}

}  // namespace lgreco::kernels
