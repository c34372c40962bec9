// The mask kernels of each instruction set level, all to the contract of mask.h.
#pragma once

#include "kernels/mask.h"

namespace lgreco::kernels {

#define LGRECO_MASK_LEVEL(level)                                                                \
  namespace level {                                                                             \
  void mask_gather(const MaskSpan& mask, const void* dense, int64_t element_bytes, void* run);  \
  void mask_scatter(const MaskSpan& mask, const void* run, int64_t element_bytes, void* dense); \
  }

LGRECO_MASK_LEVEL(scalar)
LGRECO_MASK_LEVEL(avx2)
LGRECO_MASK_LEVEL(avx512)
#undef LGRECO_MASK_LEVEL

}  // namespace lgreco::kernels
