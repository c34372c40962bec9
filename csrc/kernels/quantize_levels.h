// The quantise kernels of each instruction set level, all to the contract of quantize.h.
#pragma once

#include "kernels/quantize.h"

namespace lgreco::kernels {

#define LGRECO_QUANTIZE_LEVEL(level)                                                                   \
  namespace level {                                                                                    \
  Findings quantize_encode(const QuantizeSpec& spec, const void* gradient, DType dtype, int64_t numel, \
                           const Feedback& feedback, const Noise& noise, uint8_t* wire);               \
  Findings quantize_reduce(const QuantizeSpec& spec, const uint8_t* const* wires, int count,           \
                           float factor, int64_t numel, const Feedback& feedback, const Noise& noise,  \
                           uint8_t* out);                                                              \
  Findings quantize_decode(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel, void* out,    \
                           DType dtype);                                                               \
  Findings quantize_decode_add(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel,           \
                               float* sum);                                                            \
  }

LGRECO_QUANTIZE_LEVEL(scalar)
LGRECO_QUANTIZE_LEVEL(avx2)
LGRECO_QUANTIZE_LEVEL(avx512)
#undef LGRECO_QUANTIZE_LEVEL

}  // namespace lgreco::kernels
