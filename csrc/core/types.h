// The plain types that every folder speaks: element types and layers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"

namespace lgreco {

/// Element type of gradients, residuals and dense wires.
enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16 };

constexpr int64_t element_bytes(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return "fp32";
    case DType::kBFloat16: return "bf16";
    case DType::kFloat16: return "fp16";
  }
  return "?";
}

inline DType dtype_from(const std::string& name) {
  if (name == "fp32") return DType::kFloat32;
  if (name == "bf16") return DType::kBFloat16;
  if (name == "fp16") return DType::kFloat16;
  throw ValueError(concat("dtype must be fp32, bf16 or fp16, got '", name, "'"));
}

/// The least multiple of `unit` that is not below `value`.
constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

/// One parameter tensor. Its index in the model's list of layers is its id everywhere below Python.
struct LayerSpec {
  std::string name;
  std::vector<int64_t> shape;
  int64_t numel = 0;
  DType dtype = DType::kFloat32;  ///< of the gradient
};

}  // namespace lgreco
