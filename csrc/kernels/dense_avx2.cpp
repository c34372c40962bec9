// The AVX2 level of the dense kernels: sixteen lanes in two 256-bit registers.
#include "kernels/dense_simd.h"
#include "kernels/lanes_avx2.h"

namespace lgreco::kernels::avx2 {

Findings dense_encode(DType wire_dtype, const void* gradient, DType dtype, int64_t numel,
                      const Feedback& feedback, uint8_t* wire) {
  return SimdDense<Lanes>::encode(wire_dtype, gradient, dtype, numel, feedback, wire);
}

Findings dense_reduce(DType wire_dtype, const uint8_t* const* wires, int count, float factor,
                      int64_t numel, const Feedback& feedback, uint8_t* out) {
  return SimdDense<Lanes>::reduce(wire_dtype, wires, count, factor, numel, feedback, out);
}

Findings dense_decode(DType wire_dtype, const uint8_t* wire, int64_t numel, void* out, DType dtype) {
  return SimdDense<Lanes>::decode(wire_dtype, wire, numel, out, dtype);
}

}  // namespace lgreco::kernels::avx2
