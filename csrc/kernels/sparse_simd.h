// The sparse encoders over sixteen lanes, for any level that offers them (AVX2, AVX-512).
//
// Two passes over a block: gather (value = gradient + residual into a buffer, and the greatest magnitude
// of each vector of 16) and settle (what is left out into the residual). Between them the few candidates
// are found and coded. Settling block b and gathering block b + 1 are one pass over memory and the
// buffer.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/elements.h"
#include "kernels/rest.h"
#include "kernels/sparse_code.h"
#include "kernels/sparse_levels.h"

namespace lgreco::kernels {

/// `Level` adds to Lanes what picking needs: see sparse_avx512.cpp.
template <class Level>
class SimdSparse {
 public:
  static Findings encode(const SparseSpec& spec, const void* gradient, DType dtype, int64_t numel,
                         const Feedback& feedback, const Noise& noise, uint8_t* wire) {
    GradientSource source{static_cast<const char*>(gradient), dtype};
    return code_run(spec, source, numel, feedback, noise, wire);
  }

  static Findings reduce(const SparseSpec& spec, const uint8_t* const* wires, int count, float factor,
                         int64_t numel, const Feedback& feedback, const Noise& noise, uint8_t* out) {
    PayloadSource source{spec, noise, wires, count, factor};
    return code_run(spec, source, numel, feedback, noise, out);
  }

 private:
  using Float = typename Level::Float;
  using Int = typename Level::Int;

  static constexpr int kLanes = 16;
  static constexpr int kChunkVectors = 32;
  static constexpr int kChunkNumel = kChunkVectors * kLanes;
  static constexpr int kAheadBytes = 8192;

  static int vectors_of(int numel) { return (numel + kLanes - 1) / kLanes; }

  // --- chunks: up to 512 elements, as whole vectors of 16 ---

  /// Where a chunk comes from and where what is left out goes to.
  struct Turn {
    float factor;  ///< of a sum of payloads
    float scale;   ///< loss scale
    float inverse_scale;
    const char* input;  ///< of the next block: gradient, or a sum, which is cleared
    const char* owed;   ///< its residual
    char* left;         ///< where the residual of the last block goes
  };
  template <DType kInput, Rest kRest, bool kSummed, bool kSettle>
  static void turn_chunk(const Turn& turn, int vectors, float* values, uint16_t* tops);
  static void fetch(const char* from);
  static void find_tops(const float* values, int vectors, uint16_t* tops);
  template <Rest kRest>
  static void settle_vector(char* left, int v, Float inverse, const float* values);
  template <Rest kRest>
  static void settle_chunk(const Turn& turn, int vectors, const float* values);

  /// What is done with a chunk: only the next block's elements come, the last block's also go, or only
  /// that.
  struct Passes {
    void (*gather)(const Turn& turn, int vectors, float* values, uint16_t* tops);
    void (*turn)(const Turn& turn, int vectors, float* values, uint16_t* tops);
    void (*settle)(const Turn& turn, int vectors, const float* values);
  };
  template <DType kInput, Rest kRest, bool kSummed>
  static Passes passes_of();
  template <DType kInput, bool kSummed>
  static Passes passes_for(const Feedback& feedback);
  static Passes passes_for(DType input, const Feedback& feedback);

  static constexpr DType residual_type(Rest rest) {
    return rest == Rest::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
  }
  static constexpr int residual_bytes_of(Rest rest) { return rest == Rest::kBFloat16 ? 2 : 4; }

  // --- blocks ---

  /// Where the search for the next block's threshold begins; it only saves time.
  struct Hint {
    uint32_t top = 0, magnitude = 0;
  };

  /// Between what is known: at least as many as wanted reach `low`, fewer reach `high`.
  struct Bounds {
    uint32_t low, high;
    int low_count, high_count;
  };
  template <typename Count>
  static Bounds search(Bounds bounds, int wanted, int most, uint32_t guess, uint32_t step,
                       const Count& count);
  struct Candidates {
    int found;
    uint32_t least;  ///< magnitude that they all reach, and no other element
  };
  static Candidates find_candidates(const SparseShape& shape, uint32_t highest, Hint& hint,
                                    SparseScratch& scratch);
  static void pick_largest(const SparseShape& shape, uint32_t highest, Hint& hint,
                           SparseScratch& scratch);

  // --- runs ---

  struct Tail {
    alignas(64) char bytes[kLanes * sizeof(float)];
  };
  static const char* padded(const char* from, int64_t bytes, int first, int end, Tail& tail);

  struct GradientSource;
  struct PayloadSource;
  struct Coder;
  template <class Source>
  static Findings code_run(const SparseSpec& spec, Source& source, int64_t numel,
                           const Feedback& feedback, const Noise& noise, uint8_t* wire);
};

}  // namespace lgreco::kernels

#include "kernels/sparse_simd_chunks.h"
#include "kernels/sparse_simd_picks.h"
#include "kernels/sparse_simd_runs.h"
