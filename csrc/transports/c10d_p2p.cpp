// Messages over a c10d backend with tagged point-to-point operations (Gloo).
#include "transports/c10d_p2p.h"

#include <ATen/ops/from_blob.h>

#include <mutex>
#include <string>

namespace lgreco::transports {
namespace {

class C10dMessage final : public Message {
 public:
  C10dMessage(c10::intrusive_ptr<c10d::Backend> backend, int peer, uint8_t* data, int64_t bytes)
      : backend_(std::move(backend)), peer_(peer), tensors_{at::from_blob(data, {bytes}, at::kByte)} {}

  void send(int32_t tag) override {
    blaming_peer([&] { set(backend_->send(tensors_, peer_, tag)); });
  }
  void receive(int32_t tag) override {
    blaming_peer([&] { set(backend_->recv(tensors_, peer_, tag)); });
  }

  void wait(std::chrono::milliseconds timeout) override {
    const auto work = get();
    if (!work) return;
    bool done = false;
    blaming_peer([&] { done = work->wait(timeout); });
    if (!done) throw PeerError("the wait was aborted", peer_);
    set(nullptr);
  }

  void abort() override {
    if (const auto work = get()) work->abort();
  }

 private:
  template <typename Call>
  void blaming_peer(const Call& call) {
    try {
      call();
    } catch (const std::exception& error) {
      const std::string text = error.what();
      throw PeerError(text.substr(0, text.find('\n')), peer_);  // without c10d's stack trace
    }
  }

  void set(c10::intrusive_ptr<c10d::Work> work) {
    const std::lock_guard lock(mutex_);
    work_ = std::move(work);
  }
  c10::intrusive_ptr<c10d::Work> get() {
    const std::lock_guard lock(mutex_);
    return work_;
  }

  c10::intrusive_ptr<c10d::Backend> backend_;
  int peer_;
  std::vector<at::Tensor> tensors_;  // made once: the backend's calls take tensors by vector
  std::mutex mutex_;
  c10::intrusive_ptr<c10d::Work> work_;
};

class C10dTransport final : public Transport {
 public:
  explicit C10dTransport(c10::intrusive_ptr<c10d::Backend> backend) : backend_(std::move(backend)) {}
  int rank() const override { return backend_->getRank(); }
  int size() const override { return backend_->getSize(); }
  std::unique_ptr<Message> message(int peer, uint8_t* data, int64_t bytes) override {
    return std::make_unique<C10dMessage>(backend_, peer, data, bytes);
  }

 private:
  c10::intrusive_ptr<c10d::Backend> backend_;
};

}  // namespace

std::unique_ptr<Transport> make_c10d_p2p(c10::intrusive_ptr<c10d::Backend> backend) {
  return std::make_unique<C10dTransport>(std::move(backend));
}

}  // namespace lgreco::transports
