// The quantise kernels over sixteen lanes, for any level that offers them (AVX2, AVX-512).
//
// Two passes over a block: gather (value = gradient + residual, the block's extremes) and code (grid,
// codes, residual). Gathering block b + 1 alternates with coding block b in groups of 128 elements, so
// that memory streams while the core computes. Only packing knows the number of bits.
#pragma once

#include <cstring>

#include "kernels/elements.h"
#include "kernels/quantize_levels.h"
#include "kernels/quantize_math.h"
#include "kernels/rest.h"

namespace lgreco::kernels {

inline constexpr int kLanes = 16;
inline constexpr int kMaxBlockNumel = 4096;
inline constexpr int kDrawGroups = 2;  ///< groups whose draws are made at once

/// Philox's key of each round, once for a run.
struct PhiloxKeys {
  explicit LGRECO_HD PhiloxKeys(uint64_t seed) {
    for (uint32_t round = 0; round < 10; ++round) {
      word[round][0] = static_cast<uint32_t>(seed) + round * 0x9E3779B9U;
      word[round][1] = static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85U;
    }
  }
  uint64_t word[10][2];  ///< as wide as the lanes that they are broadcast to
};

/// Which draws of a run: Philox's counters but for the lane.
struct DrawPlace {
  int group;
  uint32_t block, step, stream;
};

/// `Level` adds to Lanes what coding needs: see quantize_avx512.cpp.
template <class Level>
class SimdQuantizer {
 public:
  static Findings encode(const QuantizeSpec& spec, const void* gradient, DType dtype, int64_t numel,
                         const Feedback& feedback, const Noise& noise, uint8_t* wire) {
    GradientSource source(spec, gradient, dtype, feedback);
    code_run(spec, source, numel, feedback, noise, wire);
    return source.findings;
  }

  static Findings reduce(const QuantizeSpec& spec, const uint8_t* const* wires, int count, float factor,
                         int64_t numel, const Feedback& feedback, const Noise& noise, uint8_t* out) {
    PayloadSource source(spec, wires, count, factor, numel, feedback);
    code_run(spec, source, numel, feedback, noise, out);
    return source.findings;
  }

  template <bool kAdd>
  static Findings decode(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel, void* out,
                         DType dtype);

 private:
  using Float = typename Level::Float;
  using Int = typename Level::Int;

  // --- groups: up to 128 elements, as whole vectors of 16 ---

  /// What pass one learns of a block.
  struct Extent {
    Float lo = Level::set(__builtin_inff());
    Float hi = Level::set(-__builtin_inff());
    Int flaws = Level::zero();  ///< any bit set: an inf or NaN
  };

  using Gather = void (*)(const void* input, const void* residual, float scale, int vectors,
                          float* values, Extent& extent);
  /// `kFetch`: the input comes from memory, not from a cache.
  template <DType kInput, Rest kRest, bool kFetch = true>
  static void gather_group(const void* input, const void* residual, float scale, int vectors,
                           float* values, Extent& extent);

  /// What pass two needs to know of a block.
  struct Coding {
    Grid grid;
    float top;  ///< the greatest code
    float inverse_scale;
  };

  using Code = void (*)(const float* values, int numel, const Coding& coding, const uint32_t* draws,
                        uint8_t* wire, void* residual);
  template <int bits, bool kStochastic, Rest kRest>
  static void code_group(const float* values, int numel, const Coding& coding, const uint32_t* draws,
                         uint8_t* wire, void* residual);

  /// Where the sum of one group of several payloads comes from.
  struct Payloads {
    const QuantizeSpec& spec;
    const uint8_t* const* wires;
    int count;
    float factor;
    int64_t block_offset, codes_offset;  ///< bytes from a wire's begin: the block, the group's codes
    int64_t readable_bytes;              ///< of each wire, from codes_offset to its end
  };

  using Sum = void (*)(const Payloads& payloads, int vectors, float* values);
  template <int bits>
  static void sum_group(const Payloads& payloads, int vectors, float* values);
  template <int bits, int kVectors>
  static void sum_vectors(const Payloads& payloads, int first_vector, float* values);

  using Decode = void (*)(const uint8_t* codes, const Grid& grid, int vectors, void* out);
  template <int bits, DType kOut, bool kAdd>
  static void decode_group(const uint8_t* codes, const Grid& grid, int vectors, void* out);

  // --- runs ---

  /// A group within a run.
  struct Place {
    int64_t begin;  ///< its first element
    int64_t block;  ///< index of its block
    int group;      ///< index within the block
    int numel;
  };

  struct GradientSource;
  struct PayloadSource;
  struct Coder;
  template <class Source>
  static void code_run(const QuantizeSpec& spec, Source& source, int64_t numel, const Feedback& feedback,
                       const Noise& noise, uint8_t* wire);

  static bool is_deliverable(const QuantizeSpec& spec, const Grid& grid, const uint8_t* wire,
                             int block_numel, DType dtype);
  template <DType kInput, bool kFetch>
  static Gather gather_for(const Feedback& feedback);
  static Gather gather_for(DType input, const Feedback& feedback);
  static Sum sum_for(int bits);
  static Code code_for(const QuantizeSpec& spec, const Feedback& feedback);
  template <bool kStochastic, Rest kRest>
  static Code code_for(int bits);
  template <bool kAdd>
  static Decode decode_for(int bits, DType out);
  template <DType kOut, bool kAdd>
  static Decode decode_for(int bits);

  static int vectors_of(int numel) { return (numel + kLanes - 1) / kLanes; }
  static int groups_of(int numel) { return (numel + kGroupNumel - 1) / kGroupNumel; }
  static int group_numel(int block_numel, int group) {
    const int left = block_numel - group * kGroupNumel;
    return left < kGroupNumel ? left : kGroupNumel;
  }
  static int block_numel_at(const QuantizeSpec& spec, int64_t begin, int64_t numel) {
    const int64_t left = numel - begin;
    return static_cast<int>(left < spec.block_numel ? left : spec.block_numel);
  }
};

}  // namespace lgreco::kernels

#include "kernels/quantize_simd_groups.h"
#include "kernels/quantize_simd_picks.h"
#include "kernels/quantize_simd_runs.h"
