// The exchange on CPU: steps, buckets and their completion. The lanes' work is in lane_work.cpp.
#include "engine/lane_exchange.h"

#include <ATen/core/jit_type.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "core/error.h"
#include "engine/clock.h"
#include "engine/tensor_dtype.h"

namespace lgreco::engine {
LaneExchange::LaneExchange(std::unique_ptr<transports::Transport> transport,
                           const ExchangeOptions& options, std::vector<at::Tensor> parameters,
                           std::shared_ptr<const Plan> plan)
    : options_(options),
      transport_(std::move(transport)),
      rank_(transport_->rank()),
      world_size_(transport_->size()),
      parameters_(std::move(parameters)),
      payloads_(world_size_) {
  auto residuals = std::make_unique<Residuals>(*plan, rank_, options.residual_dtype, at::kCPU);
  adopt(std::move(plan), std::move(residuals));
  codec_lane_ = std::make_unique<CodecLane>([this](const Task& task) { work(task); });
  for (Lanes& lanes : receive_lanes_) lanes = make_lanes();
  const auto share_of_timeout = [&](double share) {
    return std::chrono::milliseconds(static_cast<int64_t>(share * options.timeout.count()));
  };
  const auto period = std::clamp(share_of_timeout(0.018), std::chrono::milliseconds(20),
                                 std::chrono::milliseconds(1000));
  const auto scatter = share_of_timeout(options.scatter_patience);
  const auto gather = share_of_timeout(options.gather_patience);
  watchdog_ = std::make_unique<Watchdog>(period, [this, scatter, gather] {
    for (const Lanes& lanes : receive_lanes_) {
      lanes.scatter->check_deadline(scatter);
      lanes.gather->check_deadline(gather);
    }
  });
}

LaneExchange::Lanes LaneExchange::make_lanes() {
  const auto lost = [this](const Expected& expected, const std::string& error) {
    const int32_t name = name_of(expected.peer);
    fail(concat("step ", attempted_steps_, ", bucket ", expected.job->bucket, ": rank ", name,
                " is lost: ", error),
         name);
  };
  const auto summand = [this](const Expected& expected) { arrived(*expected.job, expected.chunk); };
  const auto average = [this](const Expected& expected) {
    codec_lane_->post({Task::Kind::kDecode, expected.job, expected.chunk});
  };
  return {std::make_unique<ReceiveLane>(options_.window_bytes, summand, lost),
          std::make_unique<ReceiveLane>(options_.window_bytes, average, lost)};
}

void LaneExchange::wait() {
  const std::lock_guard call(calls_);
  drain();
}

void LaneExchange::finish_watch(bool dropped) {
  if (snapshot_) options_.watches->finish(snapshot_, dropped);
}

void LaneExchange::settle() {
  const std::lock_guard call(calls_);
  end_step();
}

void LaneExchange::end_step() {
  drain();
  const std::lock_guard lock(mutex_);
  if (complete_ && !dropped_) {
    residuals_->commit();
    ++committed_steps_;
  }
  if (complete_) {
    last_sent_bytes_ = sent_bytes_;
    last_codec_ns_ = codec_ns_;
  }
  complete_ = false;
  dropped_ = false;
}

void LaneExchange::begin_step(std::shared_ptr<const Plan> plan, std::optional<at::Tensor> scale) {
  const std::lock_guard call(calls_);
  end_step();
  follow(std::move(plan));
  {
    const std::lock_guard lock(mutex_);
    next_to_complete_ = 0;
    begun_ = 0;
    for (const auto& job : jobs_) job->done = false;
  }
  scale_ = scale ? *scale->const_data_ptr<float>() : 1.0F;
  ++attempted_steps_;
  sent_bytes_ = 0;
  codec_ns_ = 0;
  snapshot_ = options_.watches ? options_.watches->begin(committed_steps_) : nullptr;
  codec_lane_->post({Task::Kind::kBegin});
}

void LaneExchange::change_plan(std::shared_ptr<const Plan> plan) {
  const std::lock_guard call(calls_);
  end_step();
  follow(std::move(plan));
}

void LaneExchange::follow(std::shared_ptr<const Plan> plan) {
  if (plan == plan_) return;
  clear_jobs(0);
  auto moved = std::make_unique<Residuals>(*plan, rank_, options_.residual_dtype, at::kCPU);
  moved->take_over(*plan, *residuals_, *plan_, rank_);
  adopt(std::move(plan), std::move(moved));
}

void LaneExchange::clear_jobs(size_t keep) {
  for (size_t i = keep; i < jobs_.size(); ++i) jobs_[i]->finish_sends(options_.timeout);
  std::vector<std::unique_ptr<Job>> gone;  // after the lock: their tensors may wait for Python's
  const std::lock_guard lock(mutex_);
  while (jobs_.size() > keep) {
    gone.push_back(std::move(jobs_.back()));
    jobs_.pop_back();
  }
}

void LaneExchange::restart(std::shared_ptr<const Plan> plan) {
  const std::lock_guard call(calls_);
  clear_jobs(0);
  auto residuals = std::make_unique<Residuals>(*plan, rank_, options_.residual_dtype, at::kCPU);
  adopt(std::move(plan), std::move(residuals));
}

void LaneExchange::adopt(std::shared_ptr<const Plan> plan, std::unique_ptr<Residuals> residuals) {
  const std::lock_guard lock(mutex_);  // of stats(), which others may ask for at any moment
  plan_ = std::move(plan);
  residuals_ = std::move(residuals);
  const auto bytes = static_cast<size_t>(plan_->has_masks() ? kMostTileNumel * 4 : 0);
  run_.resize(bytes);
  run_residual_.resize(bytes);
}

Job& LaneExchange::job_for(const BucketCall& call) {
  const auto index = static_cast<size_t>(call.index);
  ensure(index <= jobs_.size(), "bucket ", index, " came before bucket ", jobs_.size());
  if (index < jobs_.size() && jobs_[index]->layers != call.layers) clear_jobs(index);  // rebuilt
  if (call.last) clear_jobs(index + 1);  // fewer buckets than before
  if (index == jobs_.size()) {
    auto job = std::make_unique<Job>(*plan_, call.layers, options_, *transport_);
    ensure(index < (1U << 12) && job->layout.largest_chunk_count() < (1 << 14),
           "a bucket may have at most 16383 chunks and a model at most 4095 buckets");
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  return *jobs_[index];
}

FuturePtr LaneExchange::run(const BucketCall& call) {
  const std::lock_guard lock_call(calls_);
  throw_if_failed();
  Job& job = job_for(call);
  ensure(call.buffer.numel() == job.layout.numel(), "bucket ", call.index, " has ", call.buffer.numel(),
         " elements, its layers have ", job.layout.numel());
  job.buffer = call.buffer;
  job.gradient = static_cast<uint8_t*>(call.buffer.mutable_data_ptr());
  job.dtype = dtype_of(call.buffer);
  job.bucket = call.index;
  job.last = call.last;
  job.future = c10::make_intrusive<c10::ivalue::Future>(c10::TensorType::get());
  job.committed_steps = committed_steps_;
  for (int32_t& left : job.decodes_left) left = 0;
  for (size_t id = 0; id < job.layout.chunks().size(); ++id) {
    if (job.active_chunk(static_cast<int32_t>(id))) ++job.decodes_left[job.layout.chunks()[id].stage];
  }
  job.finishes_left = job.factors.count();
  job.nonfinite = false;
  std::fill(job.sent.begin(), job.sent.end(), 0);
  job.reduces_left = job.layout.chunk_count_of(rank_);
  for (int i = 0; i < job.reduces_left; ++i) job.arrivals[i] = 0;
  const FuturePtr future = job.future;
  {
    const std::lock_guard lock(mutex_);
    ensure(!failed_, failure_);  // or nobody would ever complete this future
    job.active = true;
    begun_ = static_cast<size_t>(call.index) + 1;
    if (active_jobs_++ == 0) busy_since_ = std::chrono::steady_clock::now();
    if (call.last) {
      complete_ = true;
      last_bucket_began_ = std::chrono::steady_clock::now();
    }
  }
  if (snapshot_) codec_lane_->post({Task::Kind::kWatch, &job, 0});
  if (relay_.averaged && job.reduces_left == 0) codec_lane_->post({Task::Kind::kRelay, &job});
  if (job.decodes_left[0] == 0) {  // nothing but zero-element layers
    codec_lane_->post({Task::Kind::kDecode, &job, -1});
    return future;
  }
  for (uint8_t stage = 0; stage < kStages; ++stage) {
    if (job.decodes_left[stage] > 0) expect_scatter(job, stage);
  }
  for (int i = 0; i < job.factors.count(); ++i) codec_lane_->post({Task::Kind::kProject, &job, i});
  queue_encodes(job, 0);
  return future;
}

int32_t LaneExchange::tag_of(const Job& job, int32_t chunk, Round round) const {
  const auto step = static_cast<uint32_t>(attempted_steps_ & 0xFU);
  const auto index = static_cast<uint32_t>(job.layout.chunks()[chunk].index);
  return static_cast<int32_t>(step << 27 | static_cast<uint32_t>(job.bucket) << 15 |
                              static_cast<uint32_t>(round) << 14 | index);
}

// Pairwise schedule: in turn d every rank sends to the rank d after it and receives from the rank d
// before it, so each link carries one stream each way.
void LaneExchange::expect_scatter(Job& job, uint8_t stage) {
  expected_.clear();
  for (int index = 0; index < job.layout.chunk_count_of(rank_); ++index) {
    const int32_t chunk = job.first_own + index;
    if (!job.travels(chunk, stage)) continue;
    for (int turn = 1; turn < world_size_; ++turn) {
      const int peer = (rank_ - turn + world_size_) % world_size_;
      expected_.push_back({&job.scatter_in(peer, chunk), &job, chunk, peer, tag_of(job, chunk, kScatter),
                           job.layout.chunks()[chunk].bytes});
    }
  }
  receive_lanes_[stage].scatter->expect(expected_.data(), expected_.size());
}

// Averages arrive where this rank encodes for their owner. An owner that gives up says so at once,
// before it has what this rank owes it: so nothing is received there until that is encoded.
void LaneExchange::expect_gather(Job& job, uint8_t stage, int32_t index) {
  expected_answers_.clear();
  for (int turn = 1; turn < world_size_; ++turn) {
    const int owner = (rank_ - turn + world_size_) % world_size_;
    if (index >= job.layout.chunk_count_of(owner)) continue;
    const int32_t chunk = job.layout.first_chunk_of(owner) + index;
    if (!job.travels(chunk, stage)) continue;
    expected_answers_.push_back({job.gather_in[chunk].get(), &job, chunk, owner,
                                 tag_of(job, chunk, kGather), job.layout.chunks()[chunk].bytes});
  }
  receive_lanes_[stage].gather->expect(expected_answers_.data(), expected_answers_.size());
}

void LaneExchange::queue_encodes(Job& job, uint8_t stage) {
  for (int index = 0; index < job.layout.largest_chunk_count(); ++index) {
    Task task;
    for (int turn = 1; turn <= world_size_; ++turn) {
      const int owner = (rank_ + turn) % world_size_;
      if (index >= job.layout.chunk_count_of(owner)) continue;
      const int32_t chunk = job.layout.first_chunk_of(owner) + index;
      if (!job.travels(chunk, stage)) continue;
      if (task.job != nullptr) codec_lane_->post(task);
      task = {Task::Kind::kEncode, &job, chunk};
    }
    if (task.job == nullptr) continue;
    task.last_of_index = true;
    codec_lane_->post(task);
  }
}

void LaneExchange::complete_in_order() {
  while (true) {
    FuturePtr future;
    at::Tensor buffer;
    Job* completed = nullptr;
    bool last = false;
    {
      const std::lock_guard lock(mutex_);
      if (failed_ || next_to_complete_ >= jobs_.size() || !jobs_[next_to_complete_]->done) return;
      Job& job = *jobs_[next_to_complete_++];
      completed = &job;
      last = job.last;
      job.done = false;
      if (job.nonfinite) dropped_ = true;
      future = std::move(job.future);
      buffer = job.buffer;
    }
    if (snapshot_ && !dropped_) watch(*completed, /*delivered=*/true);
    if (last && !options_.part_of_step) finish_watch(dropped_);
    if (last && relay_.ended) relay_.ended(dropped_);
    if (last) exposed_ns_ = nanoseconds_since(last_bucket_began_);
    if (dropped_) buffer.fill_(std::numeric_limits<double>::infinity());
    {
      const std::lock_guard lock(mutex_);
      jobs_[next_to_complete_ - 1]->active = false;
      if (--active_jobs_ == 0) step_busy_ns_ += nanoseconds_since(busy_since_);
      if (last) busy_ns_ = std::exchange(step_busy_ns_, 0);
    }
    progress_.notify_all();
    future->markCompleted(buffer);
  }
}

void LaneExchange::drain() {
  std::unique_lock lock(mutex_);
  progress_.wait(lock, [this] { return active_jobs_ == 0 || failed_ || closed_; });
  lock.unlock();
  throw_if_failed();
}

void LaneExchange::throw_if_failed() {
  const std::lock_guard lock(mutex_);
  ensure(!closed_, "the compressed exchange was closed (state.close()); no backward may follow");
  ensure(!failed_, failure_);
}

void LaneExchange::set_steps(uint64_t committed, uint64_t /*so_far*/) {
  const std::lock_guard lock(mutex_);
  committed_steps_ = committed;
}

ExchangeStats LaneExchange::stats(bool dropped_elsewhere) const {
  const std::lock_guard lock(mutex_);
  const bool kept = complete_ && !dropped_ && !dropped_elsewhere;
  ExchangeStats stats;
  stats.steps = static_cast<int64_t>(committed_steps_) + (kept ? 1 : 0);
  stats.wire_bytes = complete_ ? sent_bytes_.load() : last_sent_bytes_;
  stats.codec_ms = static_cast<double>(complete_ ? codec_ns_.load() : last_codec_ns_) * 1e-6;
  stats.exposed_ms = static_cast<double>(exposed_ns_) * 1e-6;
  stats.residual_bytes = residuals_->bytes();
  stats.buffer_bytes = static_cast<int64_t>(run_.size() + run_residual_.size());
  stats.busy_ms = static_cast<double>(busy_ns_) * 1e-6;
  for (const auto& job : jobs_) stats.buffer_bytes += job->buffer_bytes();
  return stats;
}

}  // namespace lgreco::engine
