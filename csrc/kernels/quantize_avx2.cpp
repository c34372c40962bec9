// The quantise kernels of the avx2 level.
#include "kernels/quantize_levels.h"

namespace lgreco::kernels::avx2 {

Findings quantize_encode(const QuantizeSpec& spec, const void* gradient, DType dtype, int64_t numel,
                         const Feedback& feedback, const Noise& noise, uint8_t* wire) {
  return scalar::quantize_encode(spec, gradient, dtype, numel, feedback, noise, wire);
}

Findings quantize_reduce(const QuantizeSpec& spec, const uint8_t* const* wires, int count,
                         float factor, int64_t numel, const Feedback& feedback, const Noise& noise,
                         uint8_t* out) {
  return scalar::quantize_reduce(spec, wires, count, factor, numel, feedback, noise, out);
}

Findings quantize_decode(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel, void* out,
                         DType dtype) {
  return scalar::quantize_decode(spec, wire, numel, out, dtype);
}

Findings quantize_decode_add(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel,
                             float* sum) {
  return scalar::quantize_decode_add(spec, wire, numel, sum);
}

}  // namespace lgreco::kernels::avx2
