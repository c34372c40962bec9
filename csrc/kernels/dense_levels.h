// The dense kernels of each instruction set level, all to the contract of dense.h.
#pragma once

#include "kernels/dense.h"

namespace lgreco::kernels {

#define LGRECO_DENSE_LEVEL(level)                                                                      \
  namespace level {                                                                                    \
  Findings dense_encode(DType wire_dtype, const void* gradient, DType dtype, int64_t numel,            \
                        const Feedback& feedback, uint8_t* wire);                                      \
  Findings dense_reduce(DType wire_dtype, const uint8_t* const* wires, int count, float factor,        \
                        int64_t numel, const Feedback& feedback, uint8_t* out);                        \
  Findings dense_decode(DType wire_dtype, const uint8_t* wire, int64_t numel, void* out, DType dtype); \
  }

LGRECO_DENSE_LEVEL(scalar)
LGRECO_DENSE_LEVEL(avx2)
LGRECO_DENSE_LEVEL(avx512)
#undef LGRECO_DENSE_LEVEL

}  // namespace lgreco::kernels
