// How long something took.
#pragma once

#include <chrono>
#include <cstdint>

namespace lgreco::engine {

inline int64_t nanoseconds_since(std::chrono::steady_clock::time_point began) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - began)
      .count();
}

}  // namespace lgreco::engine
