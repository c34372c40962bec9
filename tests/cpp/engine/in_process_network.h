// A network between ranks that are threads: moves bytes straight from the sender's memory, like Gloo.
//
// Its own thread does the moving, after send and receive have met, in an order made random on
// purpose. So memory that is touched too early is seen by ThreadSanitizer, or by what arrives.
#pragma once

#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <tuple>
#include <vector>

#include "transports/transport.h"

namespace lgreco::engine::testing {

class Network {
 public:
  /// `disorder`: messages that are ready are moved in random order, with pauses of up to 200 us.
  explicit Network(int world_size, bool disorder = true)
      : disorder_(disorder), lost_(world_size), held_(world_size), mover_([this] { move(); }) {}
  ~Network() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    mover_.join();
  }

  /// Destroying it closes the rank's connections, as lose() does.
  std::unique_ptr<transports::Transport> transport(int rank);

  /// Whatever is posted from or to the rank, now or later, fails.
  void lose(int rank) {
    const std::lock_guard lock(mutex_);
    lost_[rank] = true;
    for (auto place = waiting_.begin(); place != waiting_.end();) {
      const auto [from, to, tag] = place->first;
      if (from == rank || to == rank) {
        place->second->state = State::kFailed;
        place = waiting_.erase(place);
      } else {
        ++place;
      }
    }
    std::erase_if(ready_, [rank](const Pair& pair) {
      if (pair.from != rank && pair.to != rank) return false;
      pair.sender->state = pair.receiver->state = State::kFailed;
      return true;
    });
    changed_.notify_all();
  }

  /// What the rank sends stays where it is until it is let go.
  void hold(int rank, bool held = true) {
    const std::lock_guard lock(mutex_);
    held_[rank] = held;
    changed_.notify_all();
  }

  /// By all ranks together so far.
  int64_t moved_bytes() {
    const std::lock_guard lock(mutex_);
    return moved_bytes_;
  }

 private:
  enum class State { kIdle, kPosted, kMoving, kDone, kFailed };
  struct End {
    uint8_t* data = nullptr;
    int64_t bytes = 0;
    State state = State::kIdle;
    bool aborted = false;
  };
  struct Pair {
    End* sender;
    End* receiver;
    int from, to;
  };
  using Key = std::tuple<int, int, int32_t>;  // from, to, tag
  class InProcessMessage;
  class InProcessTransport;

  bool is_idle(const End& end) {
    const std::lock_guard lock(mutex_);
    return end.state == State::kIdle;
  }

  void post(End& end, bool sends, int from, int to, int32_t tag) {
    const std::lock_guard lock(mutex_);
    const int peer = sends ? to : from;
    if (lost_[from] || lost_[to]) throw transports::PeerError("connection closed", peer);
    ensure(end.state == State::kIdle, "a message was posted twice");
    end.state = State::kPosted;
    auto& side = waiting_[{from, to, tag}];
    if (side == nullptr) {
      side = &end;
      return;
    }
    ready_.push_back(sends ? Pair{&end, side, from, to} : Pair{side, &end, from, to});
    waiting_.erase({from, to, tag});
    changed_.notify_all();
  }

  void wait(End& end, int peer, std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    const auto over = [&end] {
      return end.aborted || (end.state != State::kPosted && end.state != State::kMoving);
    };
    const bool in_time = changed_.wait_for(lock, timeout, over);
    if (end.aborted || !in_time) {
      end.aborted = false;
      throw transports::PeerError(in_time ? "the wait was aborted" : "timed out", peer);
    }
    const bool failed = end.state == State::kFailed;
    end.state = State::kIdle;
    if (failed) throw transports::PeerError("connection closed by peer", peer);
  }

  void withdraw(End& end) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&end] { return end.state != State::kMoving; });
    std::erase_if(waiting_, [&end](const auto& place) { return place.second == &end; });
    std::erase_if(ready_, [&end](const Pair& pair) {
      if (pair.sender != &end && pair.receiver != &end) return false;
      pair.sender->state = pair.receiver->state = State::kFailed;
      return true;
    });
    changed_.notify_all();
  }

  void move() {
    std::mt19937 random(1);
    std::unique_lock lock(mutex_);
    while (true) {
      std::vector<size_t> free;
      const auto any_free = [&] {
        free.clear();
        for (size_t i = 0; i < ready_.size(); ++i) {
          if (!held_[ready_[i].from]) free.push_back(i);
        }
        return !free.empty();
      };
      changed_.wait(lock, [&] { return stopping_ || any_free(); });
      if (stopping_) return;
      const size_t chosen = free[disorder_ ? random() % free.size() : 0];
      const Pair pair = ready_[chosen];
      ready_.erase(ready_.begin() + static_cast<int64_t>(chosen));
      if (pair.sender->bytes != pair.receiver->bytes) {
        pair.sender->state = pair.receiver->state = State::kFailed;
        changed_.notify_all();
        continue;
      }
      pair.sender->state = pair.receiver->state = State::kMoving;
      lock.unlock();
      if (disorder_ && random() % 4 == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
      }
      std::memcpy(pair.receiver->data, pair.sender->data, pair.sender->bytes);
      lock.lock();
      moved_bytes_ += pair.sender->bytes;
      pair.sender->state = pair.receiver->state = State::kDone;
      changed_.notify_all();
    }
  }

  const bool disorder_;
  int64_t moved_bytes_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Key, End*> waiting_;
  std::vector<Pair> ready_;
  std::vector<bool> lost_, held_;
  bool stopping_ = false;
  std::thread mover_;
};

class Network::InProcessMessage final : public transports::Message {
 public:
  InProcessMessage(Network& network, int rank, int peer, uint8_t* data, int64_t bytes)
      : network_(network), rank_(rank), peer_(peer), end_{.data = data, .bytes = bytes}, again_(end_) {}
  ~InProcessMessage() override {
    for (End* end : {&end_, &again_}) network_.withdraw(*end);
  }
  void send(int32_t tag) override {
    network_.post(network_.is_idle(end_) ? end_ : again_, true, rank_, peer_, tag);
  }
  void receive(int32_t tag) override { network_.post(end_, false, peer_, rank_, tag); }
  void wait(std::chrono::milliseconds timeout) override { network_.wait(end_, peer_, timeout); }
  void abort() override {
    const std::lock_guard lock(network_.mutex_);
    if (end_.state == State::kIdle) return;
    end_.aborted = true;
    network_.changed_.notify_all();
  }

 private:
  Network& network_;
  const int rank_, peer_;
  End end_;
  End again_;
};

class Network::InProcessTransport final : public transports::Transport {
 public:
  InProcessTransport(Network& network, int rank) : network_(network), rank_(rank) {}
  ~InProcessTransport() override { network_.lose(rank_); }
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(network_.lost_.size()); }
  std::unique_ptr<transports::Message> message(int peer, uint8_t* data, int64_t bytes) override {
    return std::make_unique<InProcessMessage>(network_, rank_, peer, data, bytes);
  }

 private:
  Network& network_;
  const int rank_;
};

inline std::unique_ptr<transports::Transport> Network::transport(int rank) {
  return std::make_unique<InProcessTransport>(*this, rank);
}

}  // namespace lgreco::engine::testing
