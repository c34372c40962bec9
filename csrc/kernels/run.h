// What every codec kernel is told about one run of elements, and what it reports back.
//
// A run is a contiguous piece of one layer that begins at a block boundary. Kernels never allocate
// and never throw; sizes are checked when a plan is made.
#pragma once

#include <cstdint>

#include "core/types.h"

namespace lgreco::kernels {

/// Error feedback of a run: value = gradient + in * scale, out = (value - decoded) / scale.
/// `in` and `out` may be the same memory, or both null (no error feedback).
struct Feedback {
  const void* in = nullptr;       ///< committed residual
  void* out = nullptr;            ///< the step's shadow
  DType dtype = DType::kFloat32;  ///< fp32 or bf16
  float scale = 1.0F;             ///< loss scale of the gradients
  float inverse_scale = 1.0F;     ///< 1 / scale
};

/// What a kernel saw. Facts of several runs are or-ed.
struct Findings {
  bool nonfinite = false;  ///< an inf or NaN in the input, the value or the decoded result
  bool nonzero = false;    ///< the input (gradient without residual) had a nonzero element

  Findings& operator|=(const Findings& other) {
    nonfinite |= other.nonfinite;
    nonzero |= other.nonzero;
    return *this;
  }
};

}  // namespace lgreco::kernels
