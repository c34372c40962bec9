// What a larger exchange does with the averages of a smaller one before their owners send them out.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace lgreco::engine {

struct Job;

/// Called by an exchange's lanes; must not wait for them.
struct Relay {
  /// All averages that this rank owns of a bucket are there; LaneExchange::release() sends them out.
  /// Called once for every bucket, also where this rank owns nothing of it, in no set order.
  std::function<void(Job&)> averaged;
  /// The last bucket of a step is complete, and whether the step is dropped.
  std::function<void(bool)> ended;
  /// The exchange has failed: why, and which rank's fault it seems to be.
  std::function<void(const std::string&, int)> failed;
};

}  // namespace lgreco::engine
