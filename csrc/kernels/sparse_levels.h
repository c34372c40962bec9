// The sparse encoders of each instruction set level, all to the contract of sparse.h.
#pragma once

#include "kernels/sparse_scratch.h"

namespace lgreco::kernels {

#define LGRECO_SPARSE_LEVEL(level)                                                                     \
  namespace level {                                                                                    \
  Findings sparse_encode(const SparseSpec& spec, const void* gradient, DType dtype, int64_t numel,     \
                         const Feedback& feedback, const Noise& noise, uint8_t* wire);                 \
  Findings sparse_reduce(const SparseSpec& spec, const uint8_t* const* wires, int count, float factor, \
                         int64_t numel, const Feedback& feedback, const Noise& noise, uint8_t* out);   \
  }

LGRECO_SPARSE_LEVEL(scalar)
LGRECO_SPARSE_LEVEL(avx2)
LGRECO_SPARSE_LEVEL(avx512)
#undef LGRECO_SPARSE_LEVEL

/// Adds what a block decodes to, to scratch.sum. For every level.
void sparse_add(const SparseSpec& spec, const SparseShape& shape, const Noise& noise, uint32_t block,
                const uint8_t* wire, SparseScratch& scratch);

}  // namespace lgreco::kernels
