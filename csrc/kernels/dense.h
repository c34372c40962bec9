// The dense wire (fp32, bf16 or fp16 elements): encode with residual, reduce, decode.
#pragma once

#include <cstdint>

#include "kernels/run.h"

namespace lgreco::kernels {

/// Casts gradient + residual to `wire_dtype` (nearest even) and leaves the error in the residual.
Findings dense_encode(DType wire_dtype, const void* gradient, DType dtype, int64_t numel,
                      const Feedback& feedback, uint8_t* wire);

/// Casts factor * (sum of the `wires`, in order, fp32) + owner residual into `out`, which may be
/// one of the wires.
Findings dense_reduce(DType wire_dtype, const uint8_t* const* wires, int count, float factor,
                      int64_t numel, const Feedback& feedback, uint8_t* out);

/// Decodes a run over `out`.
Findings dense_decode(DType wire_dtype, const uint8_t* wire, int64_t numel, void* out, DType dtype);

}  // namespace lgreco::kernels
