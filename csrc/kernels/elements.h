// Reading and writing single elements of any type, shared by the scalar CPU kernels and CUDA.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "core/types.h"

namespace lgreco::kernels {

LGRECO_HD float load_element(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kFloat32) {
    float value;
    memcpy(&value, static_cast<const char*>(data) + 4 * i, 4);
    return value;
  }
  uint16_t half;
  memcpy(&half, static_cast<const char*>(data) + 2 * i, 2);
  return dtype == DType::kBFloat16 ? bf16_to_float(half) : fp16_to_float(half);
}

/// Rounds to nearest even and returns what the stored element reads as.
LGRECO_HD float store_element(void* data, DType dtype, int64_t i, float value) {
  if (dtype == DType::kFloat32) {
    memcpy(static_cast<char*>(data) + 4 * i, &value, 4);
    return value;
  }
  const uint16_t half = dtype == DType::kBFloat16 ? float_to_bf16(value) : float_to_fp16(value);
  memcpy(static_cast<char*>(data) + 2 * i, &half, 2);
  return dtype == DType::kBFloat16 ? bf16_to_float(half) : fp16_to_float(half);
}

/// Whether an element differs from +0 and -0.
LGRECO_HD bool has_nonzero(const void* data, int64_t bytes, int numel) {
  uint32_t seen = 0;
  const auto* at = static_cast<const char*>(data);
  for (int i = 0; i < numel; ++i) {
    uint32_t bits = 0;
    memcpy(&bits, at + i * bytes, bytes == 4 ? 4 : 2);
    seen |= bits & (bytes == 4 ? 0x7FFFFFFFU : 0x7FFFU);
  }
  return seen != 0;
}

}  // namespace lgreco::kernels
