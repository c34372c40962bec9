// Lanes: worker threads that run tasks, or wait for messages, in order. CPU only.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "transports/transport.h"

namespace lgreco::engine {

/// A first-in first-out queue that keeps its memory, so that a steady state allocates nothing.
template <typename T>
class Ring {
 public:
  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return slots_[(head_ + i) % slots_.size()]; }
  void push(const T& value) {
    if (size_ == slots_.size()) grow();
    slots_[(head_ + size_++) % slots_.size()] = value;
  }
  T pop() {
    const T value = slots_[head_];
    head_ = (head_ + 1) % slots_.size();
    --size_;
    return value;
  }
  void clear() { head_ = size_ = 0; }

 private:
  void grow() {
    std::vector<T> larger(slots_.empty() ? 64 : 2 * slots_.size());
    for (size_t i = 0; i < size_; ++i) larger[i] = (*this)[i];
    slots_ = std::move(larger);
    head_ = 0;
  }
  std::vector<T> slots_;
  size_t head_ = 0;
  size_t size_ = 0;
};

struct Job;

/// A piece of codec work: what to do with which chunk, or factored layer, of which bucket.
struct Task {
  enum class Kind : uint8_t {
    kBegin,
    kWatch,
    kProject,
    kEncode,
    kReduce,
    kRelay,
    kRelease,
    kDecode,
    kAdvance,
    kFinish,
    kFail
  };
  Kind kind = Kind::kEncode;
  Job* job = nullptr;
  int32_t index = 0;
  bool last_of_index = false;  ///< of kEncode: of the stage's chunks with this index
};

/// Runs tasks one at a time. What others wait for (encode, reduce) goes before decoding.
class CodecLane {
 public:
  explicit CodecLane(std::function<void(const Task&)> run);
  ~CodecLane() { stop(); }
  void post(const Task& task);
  /// Drops what is queued, lets the running task end, joins.
  void stop();

 private:
  void loop();
  std::function<void(const Task&)> run_;
  std::mutex mutex_;
  std::condition_variable wake_;
  Ring<Task> urgent_, patient_;
  bool stopping_ = false;
  std::thread thread_;
};

/// A message that will come: where it goes and whom to tell.
struct Expected {
  transports::Message* message = nullptr;
  Job* job = nullptr;
  int32_t chunk = 0;
  int32_t peer = 0;
  int32_t tag = 0;
  int64_t bytes = 0;
};

/// Receives messages in the order expected; only the next few are posted at a time, so that a rank
/// pulls from few peers at once (the exchange's pairwise schedule) and the link does not see incast.
class ReceiveLane {
 public:
  using Arrived = std::function<void(const Expected&)>;
  using Failed = std::function<void(const Expected&, const std::string&)>;

  ReceiveLane(int64_t window_bytes, Arrived arrived, Failed failed);
  ~ReceiveLane() { stop(); }
  void expect(const Expected* first, size_t count);
  /// Wakes the lane out of its wait; nothing more is received after it.
  void abort();
  void stop();
  /// After abort(): takes whatever else was expected, unseen, so that who sends it need not stay for it.
  void take_all();
  /// Aborts the present wait if it began more than `limit` ago.
  void check_deadline(std::chrono::milliseconds limit);

 private:
  void loop();
  /// Posts the next receives, with mutex_ held; returns why one was refused, or nothing.
  std::string post_up_to_window();
  int64_t window_bytes_;
  Arrived arrived_;
  Failed failed_;
  std::mutex mutex_;
  std::condition_variable wake_;
  Ring<Expected> queue_;
  size_t posted_ = 0;
  int64_t posted_bytes_ = 0;
  std::chrono::steady_clock::time_point waiting_since_{};
  bool waiting_ = false;
  bool late_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

/// Calls `check` every `period` until stopped: the clock behind time limits. (A timed wait inside
/// Gloo would close the connections to every peer, and with them the way to say who is missing.)
class Watchdog {
 public:
  Watchdog(std::chrono::milliseconds period, std::function<void()> check);
  ~Watchdog() { stop(); }
  void stop();

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace lgreco::engine
