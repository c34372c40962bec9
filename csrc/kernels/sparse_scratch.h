// Memory that a thread reuses for every sparse block that it codes.
#pragma once

#include "kernels/sparse.h"

namespace lgreco::kernels {

/// Vectors of up to 16 elements may be read and written beyond the last element of each array.
struct alignas(64) SparseScratch {
  static constexpr int kNumel = kMaxSparseBlockNumel + 16;
  static constexpr int kCodeWords = kMaxSparseBlockNumel / 64 + 2;

  float values[kNumel];                         ///< of a block; once coded, what is left out
  float sum[kNumel] = {};                       ///< of payloads; zeros between blocks
  alignas(64) uint32_t index[kNumel];           ///< of candidates, then of the kept elements
  alignas(64) float picked[kNumel];             ///< their values; once coded, what is left out
  alignas(64) uint16_t tops[kNumel / 16 + 32];  ///< greatest magnitude of 16 elements, its high half
  alignas(64) uint32_t rows[kNumel / 16 + 32];  ///< vectors of 16 that hold candidates
  alignas(64) uint64_t code[kCodeWords];        ///< bits of an index code
};

/// This thread's own, allocated at its first call.
SparseScratch& sparse_scratch();

}  // namespace lgreco::kernels
