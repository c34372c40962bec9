// What the engine asks of an exchange: average one bucket after the other, whole steps at a time.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "engine/plan.h"
#include "engine/residuals.h"
#include "engine/watches.h"

namespace lgreco::engine {

using FuturePtr = c10::intrusive_ptr<c10::ivalue::Future>;

/// One call of the hook.
struct BucketCall {
  int32_t index = 0;
  bool last = false;
  at::Tensor buffer;                   ///< flat, [numel]; averaged in place
  const std::vector<int32_t>& layers;  ///< ids in bucket order
};

struct ExchangeOptions {
  uint64_t seed = 0;
  std::optional<DType> residual_dtype = DType::kFloat32;
  int64_t chunk_bytes = 256 * 1024;    ///< of one message
  int64_t window_bytes = 2048 * 1024;  ///< posted receives of one round
  std::chrono::milliseconds timeout{30 * 60 * 1000};
  /// What share of the timeout a silent peer is waited for. A summand comes straight from it; an average
  /// waits for others' summands: giving up on the first a little earlier lets the rank that knows who is
  /// silent be the first to say so.
  double scatter_patience = 0.72, gather_patience = 0.9;
  int check_replicas_every = 0;  ///< steps; 0: never
  std::shared_ptr<Watches> watches;
  bool part_of_step = false;  ///< others know whether a step is dropped: see LaneExchange::finish_watch
  /// What the ranks that exchange are called, where a larger group has other numbers; empty: as they
  /// are.
  std::vector<int32_t> rank_names;
};

/// Counters of the last step, and what is held.
struct ExchangeStats {
  int64_t steps = 0;         ///< committed
  int64_t wire_bytes = 0;    ///< sent by this rank; of a hierarchical exchange: between nodes
  int64_t node_bytes = 0;    ///< sent to ranks of the same node by a hierarchical exchange
  int64_t buffer_bytes = 0;  ///< wire buffers, inboxes and factors held
  int64_t residual_bytes = 0;
  double codec_ms = 0.0;    ///< what the codec lane worked
  double exposed_ms = 0.0;  ///< from the last bucket's start to its end: what backward cannot hide
  double busy_ms = 0.0;     ///< with at least one bucket under way
};

/// Called by one thread at a time, but for close() and stats(), which any thread may call at any time.
class Exchange {
 public:
  virtual ~Exchange() = default;

  /// Commits or drops what the last step wrote, then prepares for a new step under `plan`, which
  /// may differ from the last one's. `scale`: the loss scale, fp32 scalar on the gradients' device.
  virtual void begin_step(std::shared_ptr<const Plan> plan, std::optional<at::Tensor> scale) = 0;
  /// Starts the exchange of a bucket; returns before any byte is delivered.
  virtual FuturePtr run(const BucketCall& call) = 0;

  /// Waits for the last step, then commits or drops what it wrote.
  virtual void settle() = 0;
  /// The last step will be dropped instead of committed.
  virtual void discard() = 0;
  /// Stops at once, releases threads and buffers. Futures in flight get an error.
  virtual void close() = 0;

  /// Zero residuals under `plan`, as before the first step.
  virtual void restart(std::shared_ptr<const Plan> plan) = 0;
  /// Settles, then moves residuals to `plan`, which is that of the next step.
  virtual void change_plan(std::shared_ptr<const Plan> plan) = 0;
  /// The plan that residuals() is laid out by.
  virtual const Plan& plan() const = 0;
  /// By which the engine finds the plan in force for the next step. Where only the device knows
  /// whether a step was dropped, dropped steps count too.
  virtual uint64_t steps_so_far() = 0;
  virtual uint64_t committed_steps() = 0;
  /// Continues from a checkpoint, with what committed_steps() and steps_so_far() were in it.
  virtual void set_steps(uint64_t committed, uint64_t so_far) = 0;
  virtual Residuals& residuals() = 0;
  virtual ExchangeStats stats() const = 0;
};

}  // namespace lgreco::engine
