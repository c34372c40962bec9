// A transport with faults made on purpose, for tests: a gate that holds messages back, and delays.
#include "transports/faulty.h"

#include <thread>

#include "core/error.h"

namespace lgreco::transports {
namespace {

class FaultyMessage final : public Message {
 public:
  FaultyMessage(std::unique_ptr<Message> inner, std::shared_ptr<Faults> faults)
      : inner_(std::move(inner)), faults_(std::move(faults)) {}

  void send(int32_t tag) override {
    while (faults_->gate_closed && !aborted_) pause(1);
    ensure(!aborted_, "message was aborted");
    pause(faults_->send_delay_ms);
    inner_->send(tag);
  }
  void receive(int32_t tag) override {
    receiving_ = true;
    inner_->receive(tag);
  }
  void wait(std::chrono::milliseconds timeout) override {
    inner_->wait(timeout);
    if (receiving_) pause(faults_->receive_delay_ms);
    receiving_ = false;
  }
  void abort() override {
    aborted_ = true;
    inner_->abort();
  }

 private:
  static void pause(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

  std::unique_ptr<Message> inner_;
  std::shared_ptr<Faults> faults_;
  std::atomic<bool> aborted_{false};
  bool receiving_ = false;
};

class FaultyTransport final : public Transport {
 public:
  FaultyTransport(std::unique_ptr<Transport> inner, std::shared_ptr<Faults> faults)
      : inner_(std::move(inner)), faults_(std::move(faults)) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  std::unique_ptr<Message> message(int peer, uint8_t* data, int64_t bytes) override {
    return std::make_unique<FaultyMessage>(inner_->message(peer, data, bytes), faults_);
  }

 private:
  std::unique_ptr<Transport> inner_;
  std::shared_ptr<Faults> faults_;
};

}  // namespace

std::unique_ptr<Transport> make_faulty(std::unique_ptr<Transport> inner,
                                       std::shared_ptr<Faults> faults) {
  return std::make_unique<FaultyTransport>(std::move(inner), std::move(faults));
}

}  // namespace lgreco::transports
