// The exchange on CUDA: all kernels and collectives of a bucket enqueued on a side stream.
//
// The host never waits: whether a step is committed is decided on the device (DeviceTransaction), and
// the future carries the side stream's event. So nothing here reads a result back but settle().
#include "engine/stream_exchange.h"

#include <ATen/core/jit_type.h>
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <atomic>

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
    count_memory();
  }

  void begin_step(std::shared_ptr<const Plan> plan, std::optional<at::Tensor> scale) override {
    ensure(!closed_, "the compressed exchange was closed (state.close()); no backward may follow");
    if (plan != plan_) change_plan(std::move(plan));
    scale_ = std::move(scale);
    snapshot_ = options_.watches ? options_.watches->begin(steps_begun_) : nullptr;
    const int every = options_.check_replicas_every;
    if (every > 0 && steps_begun_ % every == 0) check_replicas();
    ++steps_begun_;
    after_current_stream();
    kernels::transaction_begin(transaction(), side_.stream());
  }

  void change_plan(std::shared_ptr<const Plan> plan) override {
    settle();
    const c10::cuda::CUDAStreamGuard guard(side_);
    jobs_.clear();
    const std::shared_ptr<const Plan> old_plan = std::exchange(plan_, std::move(plan));
    std::unique_ptr<Residuals> moved = new_residuals();
    moved->take_over(*plan_, *residuals_, *old_plan, rank_);
    residuals_ = std::move(moved);
    count_memory();
    adopt_committed_half();
  }

  FuturePtr run(const BucketCall& call) override {
    StreamJob& job = job_for(call);
    ensure(call.buffer.numel() == job.layout.numel(), "bucket ", call.index, " has ",
           call.buffer.numel(), " elements, its layers have ", job.layout.numel());
    after_current_stream();
    const c10::cuda::CUDAStreamGuard guard(side_);
    call.buffer.record_stream(side_);
    if (call.index == 0) sent_bytes_ = 0;
    if (snapshot_) watch(job, call.buffer, /*delivered=*/false);
    exchange(job, call.buffer);
    if (snapshot_) watch(job, call.buffer, /*delivered=*/true);
    if (snapshot_ && call.last) hand_over();
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
    count_memory();
    adopt_committed_half();
  }

  const Plan& plan() const override { return *plan_; }
  uint64_t steps_so_far() override { return steps_begun_; }
  uint64_t committed_steps() override {
    settle();
    return committed_steps_;
  }
  void set_steps(uint64_t committed, uint64_t so_far) override {
    kernels::DeviceTransaction now = read_transaction();
    now.step = static_cast<uint32_t>(committed);
    write_transaction(now);
    step_base_ = committed - now.step;
    committed_steps_ = committed;
    steps_begun_ = so_far;
  }
  Residuals& residuals() override { return *residuals_; }

  ExchangeStats stats() const override {
    ExchangeStats stats;
    stats.steps = static_cast<int64_t>(steps_begun_.load());
    stats.wire_bytes = sent_bytes_;
    stats.residual_bytes = residual_bytes_;
    stats.buffer_bytes = buffer_bytes_;
    return stats;
  }

 private:
  kernels::DeviceTransaction* transaction() {
    return static_cast<kernels::DeviceTransaction*>(transaction_.mutable_data_ptr());
  }

  // For stats(), which any thread may call.
  void count_memory() {
    int64_t bytes = 0;
    for (const auto& job : jobs_) bytes += job->buffer_bytes();
    buffer_bytes_ = bytes;
    residual_bytes_ = residuals_->bytes();
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
      count_memory();
    }
    return *jobs_[index];
  }

  StreamStep step() {
    return {.residuals = *residuals_,
            .scale = scale_ ? scale_->const_data_ptr<float>() : nullptr,
            .transaction = transaction(),
            .steps_begun = steps_begun_ - 1,
            .seed = options_.seed,
            .stream = side_.stream()};
  }

  void exchange(StreamJob& job, const at::Tensor& buffer) {
    void* gradient = buffer.mutable_data_ptr();
    const DType dtype = dtype_of(buffer);
    job.masks.gather(gradient, dtype, side_.stream());
    const StreamElements elements{gradient, job.masks.runs(), dtype};
    if (!job.factors.empty()) job.factors.project(elements, step());
    uint8_t stage = 0;
    for (StreamGroup& group : job.groups) {
      if (!takes_part(group.turn, steps_begun_ - 1)) continue;
      if (group.stage != stage) job.factors.advance(step());
      stage = group.stage;
      exchange_group(job, group, gradient, dtype);
    }
    if (!job.factors.empty()) job.factors.finish(elements, step());
    job.masks.scatter(gradient, dtype, residuals_->sender_batch(step().scale), transaction(),
                      side_.stream());
    kernels::transaction_poison(transaction(), gradient, dtype, buffer.numel(), side_.stream());
  }

  void exchange_group(StreamJob& job, StreamGroup& group, void* gradient, DType dtype) {
    const StreamFactors& factors = job.factors;
    const StreamStep now = step();
    const kernels::CudaStream stream = now.stream;
    auto* wire = group.wire.mutable_data_ptr<uint8_t>();
    uint8_t* own = wire + rank_ * group.section_bytes;
    const float factor = 1.0F / static_cast<float>(plan_->world_size());
    for (const CodecBatch& part : group.coded) {
      kernels::batch_clear_bits(part.batch, wire, stream);
      const bool factor = part.source == Source::kFactors;
      const void* source = factor ? factors.values() : memory_of(job, part, gradient);
      part.codec->encode_batch(part.batch, source, factor ? DType::kFloat32 : dtype,
                               factor ? factors.sender_error() : residuals_->sender_batch(now.scale),
                               transaction(), options_.seed, wire, stream);
    }
    const LayerBits& bits = group.bits;
    kernels::copy_bits(bits.to_wire.data(), bits.to_wire.count, factors.bits(), wire, stream);
    transports::all_to_all(*backend_, group.inbox, group.wire);
    kernels::BatchPayloads payloads;
    payloads.inbox = group.inbox.const_data_ptr<uint8_t>();
    payloads.stride_bytes = group.section_bytes;
    payloads.count = plan_->world_size();
    for (const CodecBatch& part : group.reduced) {
      kernels::batch_clear_bits(part.batch, own, stream);
      part.codec->reduce_batch(
          part.batch, payloads, factor,
          part.source == Source::kFactors ? factors.owner_error() : residuals_->owner_batch(now.scale),
          transaction(), options_.seed, own, stream);
    }
    at::Tensor section = group.wire.narrow(0, rank_ * group.section_bytes, group.section_bytes);
    transports::all_gather(*backend_, group.wire, section);
    for (const CodecBatch& part : group.coded) {
      const bool factor = part.source == Source::kFactors;
      void* target = factor ? factors.means() : memory_of(job, part, gradient);
      part.codec->decode_batch(part.batch, wire, target, factor ? DType::kFloat32 : dtype,
                               factor ? factors.sender_error() : residuals_->sender_batch(now.scale),
                               transaction(), options_.seed, stream);
    }
    kernels::copy_bits(bits.agreed.data(), bits.agreed.count, wire, factors.bits(), stream);
    sent_bytes_ += 2 * (plan_->world_size() - 1) * group.section_bytes;
  }

  static void* memory_of(StreamJob& job, const CodecBatch& part, void* gradient) {
    return part.source == Source::kRuns ? job.masks.runs() : gradient;
  }

  // Copies what the watched layers of a bucket hold, before the exchange or after it; stays on the
  // device.
  void watch(const StreamJob& job, const at::Tensor& bucket, bool delivered) {
    int64_t offset = 0;
    for (const int32_t layer : job.layers) {
      const int64_t numel = plan_->layers()[layer].numel;
      const int32_t slot = snapshot_->slots[layer];
      if (slot >= 0) {
        at::Tensor value = bucket.narrow(0, offset, numel).to(at::kFloat, false, /*copy=*/true);
        if (scale_) value.div_(*scale_);
        const bool run = plan_->planned()[layer].run_mask() != nullptr;
        if (!delivered && !run) add_residual(value, layer);
        value = job.masks.kept_of(layer, value, side_.stream());
        if (!delivered && run) add_residual(value, layer);
        if (!delivered) watch_owed(layer, slot);
        (delivered ? snapshot_->delivered : snapshot_->values)[slot] = value;
      }
      offset += numel;
    }
  }

  // Only the device knows which half is committed.
  at::Tensor committed_of(const at::Tensor& first, const at::Tensor& second) {
    return at::where(transaction_.view(at::kInt)[0] == 0, first, second);
  }

  void add_residual(at::Tensor& value, int32_t layer) {
    const auto [first, second] = residuals_->halves_of_layer(*plan_, layer);
    if (first.defined()) value.add_(committed_of(first, second));
  }

  // What an owner still owes is part of what it averages, so it belongs to the exact result.
  void watch_owed(int32_t layer, int32_t slot) {
    const auto [first, offset] = residuals_->of_owner(*plan_, layer, rank_, 0);
    const at::Tensor second = residuals_->of_owner(*plan_, layer, rank_, 1).first;
    snapshot_->owed[slot] = first.defined() ? committed_of(first, second).to(at::kFloat) : first;
    snapshot_->owed_offsets[slot] = offset;
  }

  // The slow path's thread fetches the copies when the device has made them.
  void hand_over() {
    auto made = std::make_shared<at::cuda::CUDAEvent>();
    made->record(side_);
    snapshot_->fetch = [made](Snapshot& snapshot) {
      made->synchronize();
      for (auto* tensors : {&snapshot.values, &snapshot.delivered, &snapshot.owed}) {
        for (at::Tensor& tensor : *tensors) {
          if (tensor.defined()) tensor = tensor.cpu();
        }
      }
      for (const at::Tensor& tensor : snapshot.delivered) {
        snapshot.dropped |= !at::isfinite(tensor).all().item<bool>();
      }
    };
    options_.watches->finish(snapshot_, /*repeated=*/false);
    snapshot_ = nullptr;
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
  std::atomic<uint64_t> steps_begun_{0};
  uint64_t committed_steps_ = 0;
  uint64_t step_base_ = 0;  ///< the device counts in 32 bits
  std::atomic<int64_t> sent_bytes_{0}, buffer_bytes_{0}, residual_bytes_{0};
  std::shared_ptr<Snapshot> snapshot_;  ///< to fill in this step; null: none is wanted
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
