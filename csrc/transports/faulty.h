// A transport with faults made on purpose, for tests: a gate that holds messages back, and delays.
#pragma once

#include <atomic>
#include <memory>

#include "transports/transport.h"

namespace lgreco::transports {

/// Shared by the test and the transport; may be changed while running.
struct Faults {
  std::atomic<bool> gate_closed{false};  ///< no message is handed to the network while closed
  std::atomic<int> send_delay_ms{0};     ///< before each send
  std::atomic<int> receive_delay_ms{0};  ///< after each completed receive
};

std::unique_ptr<Transport> make_faulty(std::unique_ptr<Transport> inner, std::shared_ptr<Faults> faults);

}  // namespace lgreco::transports
