// What the kernel tests share: levels to try, elements of any type, values of many kinds, and buffers
// that notice a write beyond their end.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "core/cpu_dispatch.h"
#include "core/half.h"
#include "core/types.h"
#include "kernels/elements.h"

namespace lgreco::kernels {

/// Uses a level while it lives.
class WithLevel {
 public:
  explicit WithLevel(CpuLevel level) : before_(cpu_level()) { set_cpu_level(level); }
  ~WithLevel() { set_cpu_level(before_); }
  WithLevel(const WithLevel&) = delete;
  WithLevel& operator=(const WithLevel&) = delete;

 private:
  CpuLevel before_;
};

inline std::vector<CpuLevel> available_levels() {
  std::vector<CpuLevel> levels;
  for (const CpuLevel level : {CpuLevel::kBaseline, CpuLevel::kAvx2, CpuLevel::kAvx512}) {
    if (level <= best_cpu_level()) levels.push_back(level);
  }
  return levels;
}

/// The levels that are compared with the baseline.
inline std::vector<CpuLevel> faster_levels() {
  std::vector<CpuLevel> levels = available_levels();
  levels.erase(levels.begin());
  return levels;
}

/// Bytes at a chosen distance from a cache line, with guards on both sides.
class Buffer {
 public:
  static constexpr size_t kGuard = 64;
  static constexpr uint8_t kGuardByte = 0xA5, kFill = 0x5A;

  explicit Buffer(int64_t bytes, size_t misalignment = 0) : bytes_(static_cast<size_t>(bytes)) {
    storage_.assign(bytes_ + 3 * kGuard, kGuardByte);
    const auto address = reinterpret_cast<uintptr_t>(storage_.data());
    begin_ = (64 - address % 64) % 64 + kGuard + misalignment % kGuard;
    std::fill_n(data(), bytes_, kFill);
  }
  Buffer(Buffer&&) = default;

  uint8_t* data() { return storage_.data() + begin_; }
  const uint8_t* data() const { return storage_.data() + begin_; }
  int64_t bytes() const { return static_cast<int64_t>(bytes_); }
  void take(const Buffer& other) { memcpy(data(), other.data(), bytes_); }
  bool guards_hold() const {
    for (size_t i = 0; i < storage_.size(); ++i) {
      const bool inside = i >= begin_ && i < begin_ + bytes_;
      if (!inside && storage_[i] != kGuardByte) return false;
    }
    return true;
  }
  bool operator==(const Buffer& other) const {
    return bytes_ == other.bytes_ && memcmp(data(), other.data(), bytes_) == 0;
  }

 private:
  size_t bytes_, begin_ = 0;
  std::vector<uint8_t> storage_;
};

/// Finite values of a kind: 0 normal, 1 zeros of both signs, 2 constant, 3 denormal, 4 wide range of
/// exponents, 5 all positive, 6 mostly zero.
inline constexpr int kValueKinds = 7;
inline std::vector<float> make_values(int kind, int64_t numel, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(numel));
  for (float& value : values) {
    const float x = normal(random);
    const uint32_t r = random();
    switch (kind) {
      case 1: value = (r & 1U) != 0 ? 0.0F : -0.0F; break;
      case 2: value = -1.3F; break;
      case 3: value = float_of((r & 0x800FFFFFU)); break;
      case 4: value = x * std::ldexp(1.0F, static_cast<int>(r % 40) - 25); break;
      case 5: value = std::fabs(x) + 0.25F; break;
      case 6: value = r % 16 == 0 ? x : 0.0F; break;
      default: value = x; break;
    }
  }
  return values;
}

inline void fill(Buffer& buffer, DType dtype, const std::vector<float>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    store_element(buffer.data(), dtype, static_cast<int64_t>(i), values[i]);
  }
}

inline std::vector<float> read(const Buffer& buffer, DType dtype) {
  std::vector<float> values(static_cast<size_t>(buffer.bytes() / element_bytes(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = load_element(buffer.data(), dtype, static_cast<int64_t>(i));
  }
  return values;
}

inline constexpr DType kAllDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
inline constexpr int64_t kSizes[] = {0, 1, 15, 16, 31, 33, 127, 512, 513, 1500, 4097, 9000};

}  // namespace lgreco::kernels
