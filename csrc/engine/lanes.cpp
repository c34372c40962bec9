// Lanes: worker threads that run tasks, or wait for messages, in order.
#include "engine/lanes.h"

#include <pthread.h>

#include "core/error.h"

namespace lgreco::engine {
namespace {

void name_thread(const char* name) { pthread_setname_np(pthread_self(), name); }

constexpr std::chrono::milliseconds kUntilWoken = std::chrono::hours(24 * 365);

}  // namespace

CodecLane::CodecLane(std::function<void(const Task&)> run)
    : run_(std::move(run)), thread_([this] { loop(); }) {}

void CodecLane::post(const Task& task) {
  {
    const std::lock_guard lock(mutex_);
    const bool patient = task.kind == Task::Kind::kDecode || task.kind == Task::Kind::kFinish;
    (patient ? patient_ : urgent_).push(task);
  }
  wake_.notify_one();
}

void CodecLane::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void CodecLane::loop() {
  name_thread("lgreco-codec");
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || !urgent_.empty() || !patient_.empty(); });
    if (stopping_) return;
    const Task task = urgent_.empty() ? patient_.pop() : urgent_.pop();
    lock.unlock();
    run_(task);
    lock.lock();
  }
}

ReceiveLane::ReceiveLane(int64_t window_bytes, Arrived arrived, Failed failed)
    : window_bytes_(window_bytes),
      arrived_(std::move(arrived)),
      failed_(std::move(failed)),
      thread_([this] { loop(); }) {}

void ReceiveLane::expect(const Expected* first, size_t count) {
  std::unique_lock lock(mutex_);
  if (stopping_) return;
  for (size_t i = 0; i < count; ++i) queue_.push(first[i]);
  const std::string error = post_up_to_window();
  const Expected refused = error.empty() ? Expected{} : queue_[posted_];
  lock.unlock();
  if (!error.empty()) failed_(refused, error);
  wake_.notify_one();
}

std::string ReceiveLane::post_up_to_window() {
  while (posted_ < queue_.size() && (posted_ == 0 || posted_bytes_ < window_bytes_)) {
    const Expected& next = queue_[posted_];
    try {
      next.message->receive(next.tag);
    } catch (const std::exception& error) {
      return error.what();
    }
    posted_bytes_ += next.bytes;
    ++posted_;
  }
  return {};
}

void ReceiveLane::abort() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  for (size_t i = 0; i < queue_.size(); ++i) queue_[i].message->abort();
  wake_.notify_one();
}

void ReceiveLane::take_all() {
  const std::lock_guard lock(mutex_);
  for (size_t i = posted_; i < queue_.size(); ++i) {
    try {
      queue_[i].message->receive(queue_[i].tag);
    } catch (const std::exception&) {
      continue;  // from the rank that is lost
    }
  }
}

void ReceiveLane::stop() {
  abort();
  if (thread_.joinable()) thread_.join();
  const std::lock_guard lock(mutex_);
  posted_ = 0;
  queue_.clear();  // from here on the messages may be gone
}

void ReceiveLane::check_deadline(std::chrono::milliseconds limit) {
  const std::lock_guard lock(mutex_);
  if (!waiting_ || stopping_ || std::chrono::steady_clock::now() - waiting_since_ < limit) return;
  late_ = true;
  queue_[0].message->abort();
}

void ReceiveLane::loop() {
  name_thread("lgreco-recv");
  std::unique_lock lock(mutex_);
  while (true) {
    wake_.wait(lock, [this] { return stopping_ || posted_ > 0; });
    if (stopping_) return;
    const Expected expected = queue_[0];
    waiting_since_ = std::chrono::steady_clock::now();
    waiting_ = true;
    lock.unlock();
    std::string error;
    try {
      expected.message->wait(kUntilWoken);
    } catch (const std::exception& caught) {
      error = caught.what();
    }
    lock.lock();
    waiting_ = false;
    if (stopping_) return;
    if (!error.empty()) {
      if (late_) error = "no answer within the time limit";
      lock.unlock();
      failed_(expected, error);
      return;
    }
    queue_.pop();
    --posted_;
    posted_bytes_ -= expected.bytes;
    late_ = false;
    error = post_up_to_window();
    if (!error.empty()) {
      const Expected refused = queue_[posted_];
      lock.unlock();
      failed_(refused, error);
      return;
    }
    lock.unlock();
    arrived_(expected);
    lock.lock();
  }
}

Watchdog::Watchdog(std::chrono::milliseconds period, std::function<void()> check)
    : thread_([this, period, check = std::move(check)] {
        name_thread("lgreco-clock");
        std::unique_lock lock(mutex_);
        while (!wake_.wait_for(lock, period, [this] { return stopping_; })) {
          lock.unlock();
          check();
          lock.lock();
        }
      }) {}

void Watchdog::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

}  // namespace lgreco::engine
