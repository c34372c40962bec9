// The dense kernels of the avx2 level.
#include "kernels/dense_levels.h"

namespace lgreco::kernels::avx2 {

Findings dense_encode(DType wire_dtype, const void* gradient, DType dtype, int64_t numel,
                      const Feedback& feedback, uint8_t* wire) {
  return scalar::dense_encode(wire_dtype, gradient, dtype, numel, feedback, wire);
}

Findings dense_reduce(DType wire_dtype, const uint8_t* const* wires, int count, float factor,
                      int64_t numel, const Feedback& feedback, uint8_t* out) {
  return scalar::dense_reduce(wire_dtype, wires, count, factor, numel, feedback, out);
}

Findings dense_decode(DType wire_dtype, const uint8_t* wire, int64_t numel, void* out,
                      DType dtype) {
  return scalar::dense_decode(wire_dtype, wire, numel, out, dtype);
}

}  // namespace lgreco::kernels::avx2
