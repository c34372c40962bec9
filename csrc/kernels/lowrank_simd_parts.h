// What the low-rank kernels over sixteen lanes share: places in memory, sixteen elements of any type and
// fewer at a row's end.
#pragma once

#include <cstring>

#include "kernels/lowrank.h"
#include "kernels/lowrank_math.h"

namespace lgreco::kernels {

/// `Lanes`: see lanes_avx512.h.
template <class Lanes>
struct LowRankParts {
  using Float = typename Lanes::Float;
  using Int = typename Lanes::Int;

  static constexpr int kLanes = 16;
  static constexpr int64_t kLeastStreamed = int64_t{1} << 20;

  LGRECO_HD static int least(int64_t a, int64_t b) { return static_cast<int>(a < b ? a : b); }
  LGRECO_HD static const void* at(const void* data, int64_t i, DType dtype) {
    return static_cast<const uint8_t*>(data) + i * element_bytes(dtype);
  }
  LGRECO_HD static void* at(void* data, int64_t i, DType dtype) {
    return static_cast<uint8_t*>(data) + i * element_bytes(dtype);
  }

  /// Elements [i, i + count), `count` 1 to 16, and zeros after them.
  template <DType dtype>
  LGRECO_HD static Float load(const void* data, int64_t i, int count) {
    if (count == kLanes) return Lanes::template load<dtype>(at(data, i, dtype));
    if constexpr (dtype == DType::kFloat32) {
      return Lanes::load_first(static_cast<const float*>(data) + i, count);
    } else {
      uint16_t halves[kLanes] = {};
      memcpy(halves, at(data, i, dtype), 2 * static_cast<size_t>(count));
      return Lanes::template load<dtype>(halves);
    }
  }

  /// Stores elements [i, i + count) to nearest even and returns what they read as.
  template <DType dtype>
  LGRECO_HD static Float store(void* data, int64_t i, int count, Float value) {
    if (count == kLanes) return Lanes::template store<dtype>(at(data, i, dtype), value);
    if constexpr (dtype == DType::kFloat32) {
      Lanes::store_first(static_cast<float*>(data) + i, count, value);
      return value;
    } else {
      uint16_t halves[kLanes];
      const Float stored = Lanes::template store<dtype>(halves, value);
      memcpy(at(data, i, dtype), halves, 2 * static_cast<size_t>(count));
      return stored;
    }
  }

  /// Whether so much fp32 memory is written that caches would not keep it, at places that can be
  /// streamed to. `pitch`: elements between places where a row may begin.
  static bool may_stream(const void* data, int64_t numel, int64_t pitch) {
    return numel >= kLeastStreamed && pitch % kLanes == 0 &&
           reinterpret_cast<uintptr_t>(data) % Lanes::kStreamAlignment == 0;
  }

  LGRECO_HD static Float load(const float* data, int count) {
    return load<DType::kFloat32>(data, 0, count);
  }
  LGRECO_HD static void store(float* data, int count, Float value) {
    store<DType::kFloat32>(data, 0, count, value);
  }
};

}  // namespace lgreco::kernels
