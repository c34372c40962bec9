// The element type of a tensor, from torch's.
#pragma once

#include <ATen/core/Tensor.h>

#include "core/types.h"

namespace lgreco::engine {

/// Throws ValueError for what is not fp32, bf16 or fp16; `what` names the tensor in the message.
inline DType dtype_of(const at::Tensor& tensor, const std::string& what = "gradients") {
  switch (tensor.scalar_type()) {
    case at::kFloat: return DType::kFloat32;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kHalf: return DType::kFloat16;
    default: break;
  }
  throw ValueError(concat(what, " must be fp32, bf16 or fp16, got ", tensor.scalar_type()));
}

}  // namespace lgreco::engine
