// The dense wire on the CPU: the choice of instruction set level, and the scalar level that runs
// anywhere and that the other levels are tested against.
#include "core/cpu_dispatch.h"
#include "kernels/dense_levels.h"
#include "kernels/elements.h"

namespace lgreco::kernels {
namespace scalar {
namespace {

/// Stores `value` + residual in the wire and its error in the residual; an element that cannot be
/// delivered leaves no residual. Returns whether it can.
bool send(DType wire_dtype, float value, int64_t i, const Feedback& feedback, uint8_t* wire) {
  if (feedback.in != nullptr) {
    value += load_element(feedback.in, feedback.dtype, i) * feedback.scale;
  }
  const float sent = store_element(wire, wire_dtype, i, value);
  const bool finite = is_finite(sent);
  if (feedback.out != nullptr) {
    const float error = finite ? (value - sent) * feedback.inverse_scale : 0.0F;
    store_element(feedback.out, feedback.dtype, i, error);
  }
  return finite;
}

}  // namespace

Findings dense_encode(DType wire_dtype, const void* gradient, DType dtype, int64_t numel,
                      const Feedback& feedback, uint8_t* wire) {
  Findings findings;
  for (int64_t i = 0; i < numel; ++i) {
    const float value = load_element(gradient, dtype, i);
    findings.nonzero |= value != 0.0F;
    findings.nonfinite |= !send(wire_dtype, value, i, feedback, wire);
  }
  return findings;
}

Findings dense_reduce(DType wire_dtype, const uint8_t* const* wires, int count, float factor,
                      int64_t numel, const Feedback& feedback, uint8_t* out) {
  Findings findings;
  for (int64_t i = 0; i < numel; ++i) {
    float sum = load_element(wires[0], wire_dtype, i);
    for (int k = 1; k < count; ++k) sum += load_element(wires[k], wire_dtype, i);
    findings.nonfinite |= !send(wire_dtype, sum * factor, i, feedback, out);
  }
  return findings;
}

Findings dense_decode(DType wire_dtype, const uint8_t* wire, int64_t numel, void* out, DType dtype) {
  Findings findings;
  for (int64_t i = 0; i < numel; ++i) {
    findings.nonfinite |= !is_finite(store_element(out, dtype, i, load_element(wire, wire_dtype, i)));
  }
  return findings;
}

}  // namespace scalar

Findings dense_encode(DType wire_dtype, const void* gradient, DType dtype, int64_t numel,
                      const Feedback& feedback, uint8_t* wire) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512:
      return avx512::dense_encode(wire_dtype, gradient, dtype, numel, feedback, wire);
    case CpuLevel::kAvx2: return avx2::dense_encode(wire_dtype, gradient, dtype, numel, feedback, wire);
    case CpuLevel::kBaseline: break;
  }
  return scalar::dense_encode(wire_dtype, gradient, dtype, numel, feedback, wire);
}

Findings dense_reduce(DType wire_dtype, const uint8_t* const* wires, int count, float factor,
                      int64_t numel, const Feedback& feedback, uint8_t* out) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512:
      return avx512::dense_reduce(wire_dtype, wires, count, factor, numel, feedback, out);
    case CpuLevel::kAvx2:
      return avx2::dense_reduce(wire_dtype, wires, count, factor, numel, feedback, out);
    case CpuLevel::kBaseline: break;
  }
  return scalar::dense_reduce(wire_dtype, wires, count, factor, numel, feedback, out);
}

Findings dense_decode(DType wire_dtype, const uint8_t* wire, int64_t numel, void* out, DType dtype) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512: return avx512::dense_decode(wire_dtype, wire, numel, out, dtype);
    case CpuLevel::kAvx2: return avx2::dense_decode(wire_dtype, wire, numel, out, dtype);
    case CpuLevel::kBaseline: break;
  }
  return scalar::dense_decode(wire_dtype, wire, numel, out, dtype);
}

}  // namespace lgreco::kernels
