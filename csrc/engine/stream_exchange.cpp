// The exchange on CUDA: all kernels and collectives of a bucket enqueued on a side stream.
//
// The host never waits: whether a step is committed is decided on the device (DeviceTransaction), and
// the future carries the side stream's event. So nothing here reads a result back but settle().
#include "engine/stream_exchange.h"

#include <ATen/core/jit_type.h>
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "core/error.h"
#include "engine/replicas.h"
#include "engine/stream_job.h"
#include "engine/tensor_dtype.h"
#include "transports/c10d_stream.h"

namespace lgreco::engine {
namespace {

class StreamExchange final : public Exchange {
 public:
  StreamExchange(c10::intrusive_ptr<c10d::Backend> backend, const ExchangeOptions& options,
                 std::vector<at::Tensor> parameters, std::shared_ptr<const Plan> plan)
      : backend_(std::move(backend)),
        options_(options),
        parameters_(std::move(parameters)),
        device_(parameters_[0].device()),
        rank_(backend_->getRank()),
        side_(c10::cuda::getStreamFromPool(/*isHighPriority=*/true, device_.index())),
        plan_(std::move(plan)) {
    const c10::cuda::CUDAStreamGuard guard(side_);
    transaction_ = at::zeros({static_cast<int64_t>(sizeof(kernels::DeviceTransaction))},
                             at::TensorOptions().dtype(at::kByte).device(device_));
    residuals_ = new_residuals();
  }

  void begin_step(std::shared_ptr<const Plan> plan, std::optional<at::Tensor> scale) override {
    ensure(!closed_, "the compressed exchange was closed (state.close()); no backward may follow");
    if (plan != plan_) {
      settle();
      const c10::cuda::CUDAStreamGuard guard(side_);
      jobs_.clear();
      const std::shared_ptr<const Plan> old_plan = std::exchange(plan_, std::move(plan));
      std::unique_ptr<Residuals> moved = new_residuals();
      moved->take_over(*plan_, *residuals_, *old_plan, rank_);
      residuals_ = std::move(moved);
      adopt_committed_half();
    }
    scale_ = std::move(scale);
    const int every = options_.check_replicas_every;
    if (every > 0 && steps_begun_ % every == 0) check_replicas();
    ++steps_begun_;
    after_current_stream();
    kernels::transaction_begin(transaction(), side_.stream());
  }

  FuturePtr run(const BucketCall& call) override {
    StreamJob& job = job_for(call);
    ensure(call.buffer.numel() == job.layout.numel(), "bucket ", call.index, " has ",
           call.buffer.numel(), " elements, its layers have ", job.layout.numel());
    after_current_stream();
    const c10::cuda::CUDAStreamGuard guard(side_);
    call.buffer.record_stream(side_);
    exchange(job, call.buffer);
    if (call.index == 0) sent_bytes_ = 0;
    sent_bytes_ += 2 * (plan_->world_size() - 1) * job.section_bytes;
    auto future = c10::make_intrusive<c10::ivalue::Future>(c10::TensorType::get(),
                                                           std::vector<c10::Device>{device_});
    future->markCompleted(call.buffer);  // records the side stream's event
    return future;
  }

  void settle() override {
    kernels::transaction_settle(transaction(), side_.stream());
    const kernels::DeviceTransaction now = read_transaction();
    residuals_->set_committed(static_cast<int>(now.committed));
    committed_steps_ = step_base_ + now.step;
  }

  void discard() override { kernels::transaction_discard(transaction(), side_.stream()); }

  void close() override {
    if (closed_) return;
    closed_ = true;
    side_.synchronize();
    jobs_.clear();
  }

  void restart(std::shared_ptr<const Plan> plan) override {
    const c10::cuda::CUDAStreamGuard guard(side_);
    jobs_.clear();
    plan_ = std::move(plan);
    residuals_ = new_residuals();
    adopt_committed_half();
  }

  const Plan& plan() const override { return *plan_; }
  uint64_t steps_so_far() override { return steps_begun_; }
  uint64_t committed_steps() override {
    settle();
    return committed_steps_;
  }
  void set_committed_steps(uint64_t steps) override {
    kernels::DeviceTransaction now = read_transaction();
    now.step = static_cast<uint32_t>(steps);
    write_transaction(now);
    step_base_ = steps - now.step;
    committed_steps_ = steps_begun_ = steps;
  }
  Residuals& residuals() override { return *residuals_; }

  ExchangeStats stats() const override {
    ExchangeStats stats;
    stats.steps = static_cast<int64_t>(steps_begun_);
    stats.wire_bytes = sent_bytes_;
    for (const auto& job : jobs_) stats.buffer_bytes += job->wire.numel() + job->inbox.numel();
    return stats;
  }

 private:
  kernels::DeviceTransaction* transaction() {
    return static_cast<kernels::DeviceTransaction*>(transaction_.mutable_data_ptr());
  }

  std::unique_ptr<Residuals> new_residuals() const {
    return std::make_unique<Residuals>(*plan_, rank_, options_.residual_dtype, device_);
  }

  kernels::DeviceTransaction read_transaction() {
    side_.synchronize();
    const at::Tensor host = transaction_.cpu();
    return *static_cast<const kernels::DeviceTransaction*>(host.const_data_ptr());
  }

  void write_transaction(const kernels::DeviceTransaction& value) {
    at::Tensor host = at::empty({static_cast<int64_t>(sizeof(value))}, at::kByte);
    *static_cast<kernels::DeviceTransaction*>(host.mutable_data_ptr()) = value;
    transaction_.copy_(host);
    c10::cuda::getCurrentCUDAStream(device_.index()).synchronize();
  }

  // New residuals begin with half 0 committed; the device must read the same one.
  void adopt_committed_half() {
    kernels::DeviceTransaction now = read_transaction();
    now.committed = 0;
    write_transaction(now);
  }

  // What autograd has put into its stream so far comes before what is put into the side stream next.
  void after_current_stream() {
    ready_.record(c10::cuda::getCurrentCUDAStream(device_.index()));
    ready_.block(side_);
  }

  StreamJob& job_for(const BucketCall& call) {
    const auto index = static_cast<size_t>(call.index);
    ensure(index <= jobs_.size(), "bucket ", index, " came before bucket ", jobs_.size());
    const c10::cuda::CUDAStreamGuard guard(side_);
    if (index < jobs_.size() && jobs_[index]->layers != call.layers) jobs_.resize(index);  // rebuilt
    if (call.last) jobs_.resize(std::min(jobs_.size(), index + 1));
    if (index == jobs_.size()) {
      jobs_.push_back(std::make_unique<StreamJob>(*plan_, call.layers, rank_, device_));
      side_.synchronize();  // the arrays' host copies go away
    }
    return *jobs_[index];
  }

  void exchange(StreamJob& job, const at::Tensor& buffer) {
    const kernels::CudaStream stream = side_.stream();
    const DType dtype = dtype_of(buffer);
    const float* scale = scale_ ? scale_->const_data_ptr<float>() : nullptr;
    void* gradient = buffer.mutable_data_ptr();
    auto* wire = job.wire.mutable_data_ptr<uint8_t>();
    uint8_t* own = wire + rank_ * job.section_bytes;
    const float factor = 1.0F / static_cast<float>(plan_->world_size());
    for (const CodecBatch& part : job.coded) {
      kernels::batch_clear_bits(part.batch, wire, stream);
      part.codec->encode_batch(part.batch, gradient, dtype, residuals_->sender_batch(scale),
                               transaction(), options_.seed, wire, stream);
    }
    transports::all_to_all(*backend_, job.inbox, job.wire);
    kernels::BatchPayloads payloads;
    payloads.inbox = job.inbox.const_data_ptr<uint8_t>();
    payloads.stride_bytes = job.section_bytes;
    payloads.count = plan_->world_size();
    for (const CodecBatch& part : job.reduced) {
      kernels::batch_clear_bits(part.batch, own, stream);
      part.codec->reduce_batch(part.batch, payloads, factor, residuals_->owner_batch(scale),
                               transaction(), options_.seed, own, stream);
    }
    at::Tensor section = job.wire.narrow(0, rank_ * job.section_bytes, job.section_bytes);
    transports::all_gather(*backend_, job.wire, section);
    for (const CodecBatch& part : job.coded) {
      part.codec->decode_batch(part.batch, wire, gradient, dtype, residuals_->sender_batch(scale),
                               transaction(), options_.seed, stream);
    }
    kernels::transaction_poison(transaction(), gradient, dtype, buffer.numel(), stream);
  }

  // Rare and asked for, so it may wait: the parameters are hashed on the host.
  void check_replicas() {
    std::vector<at::Tensor> copies;
    for (const at::Tensor& parameter : parameters_) copies.push_back(parameter.cpu());
    at::Tensor mine = at::empty({1}, at::kLong);
    *mine.mutable_data_ptr<int64_t>() = static_cast<int64_t>(hash_of(copies));
    at::Tensor all = at::empty({plan_->world_size()}, mine.options().device(device_));
    at::Tensor own = mine.to(device_);
    transports::all_gather(*backend_, all, own);
    const at::Tensor host = all.cpu();
    for (int rank = 0; rank < plan_->world_size(); ++rank) {
      ensure(host.const_data_ptr<int64_t>()[rank] == *mine.const_data_ptr<int64_t>(), "rank ", rank,
             " holds other parameters than rank ", rank_,
             " (check_replicas_every): replicas have diverged");
    }
  }

  const c10::intrusive_ptr<c10d::Backend> backend_;
  const ExchangeOptions options_;
  const std::vector<at::Tensor> parameters_;
  const at::Device device_;
  const int rank_;
  const c10::cuda::CUDAStream side_;
  at::cuda::CUDAEvent ready_;
  at::Tensor transaction_;  ///< a kernels::DeviceTransaction
  std::shared_ptr<const Plan> plan_;
  std::unique_ptr<Residuals> residuals_;
  std::vector<std::unique_ptr<StreamJob>> jobs_;  ///< by bucket
  std::optional<at::Tensor> scale_;
  uint64_t steps_begun_ = 0;
  uint64_t committed_steps_ = 0;
  uint64_t step_base_ = 0;  ///< the device counts in 32 bits
  int64_t sent_bytes_ = 0;
  bool closed_ = false;
};

}  // namespace

std::unique_ptr<Exchange> make_stream_exchange(c10::intrusive_ptr<c10d::Backend> backend,
                                               const ExchangeOptions& options,
                                               std::vector<at::Tensor> parameters,
                                               std::shared_ptr<const Plan> plan) {
  return std::make_unique<StreamExchange>(std::move(backend), options, std::move(parameters),
                                          std::move(plan));
}

}  // namespace lgreco::engine
