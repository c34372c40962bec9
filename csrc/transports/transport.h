// What the exchange asks of a network on CPU: tagged messages between two ranks.
//
// Sends and receives are matched by (peer, tag) alone, so the order in which threads post them does
// not matter. Posting never waits for the peer.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "core/error.h"

namespace lgreco::transports {

/// A message failed, and whose fault it seems to be.
class PeerError : public Error {
 public:
  PeerError(const std::string& what, int peer) : Error(what), peer_(peer) {}
  int peer() const { return peer_; }

 private:
  int peer_;
};

/// One place in memory that is sent to, or filled by, one peer again and again.
///
/// Posted at most once at a time, but that a send which is still under way may be followed by one of
/// other bytes, the last: word of a failure. wait() returns at once if nothing is posted. abort() may be
/// called from another thread and makes a waiting thread throw.
class Message {
 public:
  virtual ~Message() = default;
  virtual void send(int32_t tag) = 0;
  virtual void receive(int32_t tag) = 0;
  /// Throws PeerError when the peer is lost, the time is up or abort() was called.
  virtual void wait(std::chrono::milliseconds timeout) = 0;
  virtual void abort() = 0;
};

class Transport {
 public:
  virtual ~Transport() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// `data` must outlive the message.
  virtual std::unique_ptr<Message> message(int peer, uint8_t* data, int64_t bytes) = 0;
};

}  // namespace lgreco::transports
