// The exchange on CPU: a codec lane, a receive lane for each round, tagged messages.
//
//   run():        post the receives of the scatter, queue an encode task per chunk, return
//   encode:       gradient + residual -> wire; to the chunk's owner; then expect the averages
//   scatter lane: a peer's payload of an own chunk has come; the last one queues reduce
//   reduce:       sum in rank order, average, encode again; to every peer
//   gather lane:  an owner's average has come; queues decode
//   decode:       over the bucket; the last one of a bucket completes it, in bucket order
//
// Layers of which factors travel take three more tasks each (engine/factors.h): project before their
// first factor is encoded, advance between the stages, finish after the last decode. The second stage
// has receive lanes of its own, so that no bucket's first stage waits behind another's second.
//
// An inf or NaN needs no message of its own: it is coded as such, so the owner's average, and with
// it what every rank decodes, holds it too. A rank that gives up sends, in place of every message
// it still owes, a header that says because of whom: so the news needs no third party.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <string>

#include "engine/exchange.h"
#include "engine/job.h"
#include "engine/lanes.h"
#include "engine/relay.h"

namespace lgreco::engine {

class LaneExchange final : public Exchange {
 public:
  LaneExchange(std::unique_ptr<transports::Transport> transport, const ExchangeOptions& options,
               std::vector<at::Tensor> parameters, std::shared_ptr<const Plan> plan);
  ~LaneExchange() override { close(); }

  void begin_step(std::shared_ptr<const Plan> plan, std::optional<at::Tensor> scale) override;
  FuturePtr run(const BucketCall& call) override;
  void settle() override;
  void discard() override { dropped_ = true; }
  void close() override;
  void restart(std::shared_ptr<const Plan> plan) override;
  void change_plan(std::shared_ptr<const Plan> plan) override;
  const Plan& plan() const override { return *plan_; }
  uint64_t steps_so_far() override { return committed_steps_ + (complete_ && !dropped_ ? 1 : 0); }
  uint64_t committed_steps() override { return committed_steps_; }
  void set_steps(uint64_t committed, uint64_t so_far) override;
  Residuals& residuals() override { return *residuals_; }
  ExchangeStats stats() const override { return stats(/*dropped_elsewhere=*/false); }

  // For a hierarchical exchange, which is made of two of these.

  /// Averages go out when the relay has released them. Before the first step.
  void set_relay(Relay relay) { relay_ = std::move(relay); }
  /// Waits until all buckets that were started are complete.
  void wait();
  /// Whether the last step will be dropped; once all its buckets are complete.
  bool dropped() const { return dropped_; }
  /// The averages that this rank owns of a bucket, one after the other in bucket order; out: [numel of
  /// them], fp32. For Relay::averaged.
  void take_averages(Job& job, float* out);
  /// Sends out `averages`, laid out the same way, in their place. They must stay until the step's end.
  void release(Job& job, const float* averages);
  /// Ends it because of something that went wrong elsewhere; `culprit`: that rank's name.
  void give_up(const std::string& message, int culprit) { fail(message, culprit); }
  /// Why it ended and whose fault it seems to be: that rank's name.
  std::pair<std::string, int> failure();
  /// As stats(), where it has been decided elsewhere that the last step will be dropped.
  ExchangeStats stats(bool dropped_elsewhere) const;
  /// The snapshot of the step that ends is complete. For those whose options say that others decide.
  void finish_watch(bool dropped);

 private:
  enum Round : uint8_t { kScatter = 0, kGather = 1 };

  struct LastWord {
    transports::Message* message;
    int32_t peer;  ///< its name
  };

  struct Lanes {
    std::unique_ptr<ReceiveLane> scatter, gather;
  };

  Lanes make_lanes();
  template <typename Call>
  void for_each_lane(const Call& call) {
    for (const Lanes& lanes : receive_lanes_) {
      call(*lanes.scatter);
      call(*lanes.gather);
    }
  }
  void clear_jobs(size_t keep);
  void drain();
  void end_step();
  void follow(std::shared_ptr<const Plan> plan);
  Job& job_for(const BucketCall& call);
  void expect_scatter(Job& job, uint8_t stage);
  void expect_gather(Job& job, uint8_t stage, int32_t index);
  void queue_encodes(Job& job, uint8_t stage);
  void work(const Task& task);
  void begin();
  void encode(Job& job, int32_t chunk, bool last_of_index);
  const uint8_t* gathered(const Job& job, const Piece& piece);
  kernels::MaskSpan span_of(const Piece& piece) const;
  void arrived(Job& job, int32_t chunk);
  void send_averages(Job& job, int32_t chunk);
  void release_averages(Job& job);
  void reduce(Job& job, int32_t chunk);
  void decode(Job& job, int32_t chunk);
  bool decode_piece(Job& job, const Piece& piece, const uint8_t* wire, bool nonzero);
  void end_stage(Job& job, uint8_t stage);
  void finish(Job& job, int32_t factored);
  void complete(Job& job);
  void adopt(std::shared_ptr<const Plan> plan, std::unique_ptr<Residuals> residuals);
  void watch(const Job& job, bool delivered);
  void watch_run(const PlannedLayer& planned, const uint8_t* gradient, DType dtype, bool delivered,
                 float* out);
  codecs::Feedback watched(const PlannedLayer& planned, bool delivered) const;
  void watch_owed(int32_t layer, int32_t slot);
  void complete_in_order();

  void write_header(Job& job, int32_t chunk, Round round);
  void check_header(const Job& job, int32_t chunk, Round round, int peer, const uint8_t* payload);
  void check_replicas(Job& job, int32_t chunk);
  void send(transports::Message& message, uint8_t& sent, const Job& job, int32_t chunk, Round round);
  int32_t tag_of(const Job& job, int32_t chunk, Round round) const;
  /// What a rank of this exchange is called.
  int32_t name_of(int rank) const {
    return options_.rank_names.empty() ? rank : options_.rank_names[rank];
  }
  Noise noise_of(const Tile& tile, Round round) const;
  FactorStep factor_step() const;

  void fail(const std::string& message, int culprit);
  void send_failure();
  void send_failure_of(Job& job, int32_t chunk);
  void linger();
  void throw_if_failed();

  const ExchangeOptions options_;
  std::unique_ptr<transports::Transport> transport_;  ///< none once closed
  const int rank_, world_size_;
  const std::vector<at::Tensor> parameters_;

  Relay relay_;  ///< empty: averages go out at once
  std::shared_ptr<const Plan> plan_;
  std::unique_ptr<Residuals> residuals_;
  std::vector<std::unique_ptr<Job>> jobs_;  ///< by bucket
  std::vector<Expected> expected_;          ///< scratch of run()
  std::vector<Expected> expected_answers_;  ///< scratch of expect_gather()
  std::vector<const uint8_t*> payloads_;    ///< scratch of reduce()
  /// One tile's part of a masked layer's run each: gradients, and residuals for a watch. A tile is
  /// gathered when it is encoded and scattered when it is decoded, so that it stays in the cache
  /// between.
  std::vector<uint8_t> run_, run_residual_;

  /// Held by whoever uses jobs_, plan_ and residuals_ from outside the lanes: the training thread,
  /// and close(), which may come from another.
  std::mutex calls_;

  // The transaction: what the step under way, or the last one, will become. Written with mutex_ held,
  // for the sake of stats().
  uint64_t committed_steps_ = 0;
  uint64_t attempted_steps_ = 0;
  bool complete_ = false;             ///< the last bucket was started
  std::atomic<size_t> begun_{0};      ///< buckets of the step under way
  std::atomic<bool> dropped_{false};  ///< nonfinite, or discarded by the user
  float scale_ = 1.0F;
  uint64_t replicas_hash_ = 0;
  std::atomic<int64_t> sent_bytes_{0};
  int64_t last_sent_bytes_ = 0;
  std::atomic<int64_t> codec_ns_{0}, exposed_ns_{0}, busy_ns_{0};
  int64_t last_codec_ns_ = 0;
  std::chrono::steady_clock::time_point last_bucket_began_;
  std::shared_ptr<Snapshot> snapshot_;  ///< to fill in this step; null: none is wanted

  mutable std::mutex mutex_;
  std::condition_variable progress_;
  size_t next_to_complete_ = 0;
  int active_jobs_ = 0;
  std::chrono::steady_clock::time_point busy_since_;  ///< while jobs are active
  int64_t step_busy_ns_ = 0;                          ///< of the step under way
  bool failed_ = false;
  bool closed_ = false;
  std::string failure_, why_;  ///< for users; what happened, without the rank that says so
  int culprit_ = -1;
  bool told_ = false;  ///< every peer has been sent word of the failure
  std::vector<LastWord> last_words_;

  // Last, so that they stop before what they use goes away.
  std::unique_ptr<CodecLane> codec_lane_;
  Lanes receive_lanes_[kStages];
  std::unique_ptr<Watchdog> watchdog_;
};

}  // namespace lgreco::engine
