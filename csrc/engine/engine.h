// The engine behind a State: knows the layers, follows the plan, hands buckets to the exchange.
#pragma once

#include <torch/csrc/distributed/c10d/comm.hpp>

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "codecs/choice.h"
#include "engine/exchange.h"

namespace lgreco::engine {

struct EngineOptions {
  ExchangeOptions exchange;
  int rank = 0;                 ///< among the ranks that exchange with one another
  int world_size = 1;           ///< of them
  std::vector<int32_t> owners;  ///< by layer, as Plan takes them; empty: all are dealt
  uint64_t warmup_steps = 0;    ///< committed steps with dense fp32 on every layer
};

/// One layer's part of a rank's state. Tensors are copies, fp32 or bf16, flat, on the CPU.
struct LayerResidual {
  std::string name;
  at::Tensor sender;  ///< [numel], zero where it is pruned; undefined where no residual is kept
  at::Tensor owner;   ///< of the elements from owner_offset on; undefined where this rank owns none
  int64_t owner_offset = 0;
  /// [rank, rows] and [rank, columns] of the layer's matrix, zero where those are pruned; undefined
  /// where none is held.
  at::Tensor warm_p, warm_q;
};

class Engine {
 public:
  using MakeExchange = std::function<std::unique_ptr<Exchange>(
      const ExchangeOptions&, std::vector<at::Tensor>, std::shared_ptr<const Plan>)>;

  /// `parameters` and `choices` by layer. `scale`: GradScaler's fp32 scalar, read at each step.
  /// With one rank there is no exchange: buckets are returned as they came.
  Engine(const EngineOptions& options, const std::vector<LayerSpec>& layers,
         std::vector<at::Tensor> parameters, const std::vector<codecs::Choice>& choices,
         std::optional<at::Tensor> scale, const MakeExchange& make_exchange);

  /// Starts averaging a bucket in place and returns at once.
  FuturePtr run(c10d::GradBucket& bucket);

  /// Asks for a snapshot; see engine/watches.h.
  void watch(uint64_t step, const std::vector<int32_t>& layers) { watches_->watch(step, layers); }
  std::shared_ptr<Snapshot> next_snapshot() { return watches_->next(); }

  /// A plan will be set that is in force from `step` on; that step waits for it.
  void promise_plan(uint64_t step);
  /// Puts `choices` (one a layer) in force from `step` on, or keeps what is in force where there are
  /// none. Steps that have begun are not affected. Throws ValueError where a choice is not allowed.
  void set_plan(uint64_t step, const std::optional<std::vector<codecs::Choice>>& choices);
  /// Forgets all plans, promises and watches; `choices` are in force from the first step on. Before
  /// load().
  void replace_plans(const std::vector<codecs::Choice>& choices);
  /// Other elements are exchanged from the next step on, under `choices`: ends the last step's
  /// transaction, forgets all plans, promises and watches, and moves residuals as at any change of plan.
  /// `masks` by layer; null: everything is kept. Between steps only.
  void set_masks(Masks masks, const std::vector<codecs::Choice>& choices);

  void discard() {
    if (exchange_) exchange_->discard();
  }
  void close();
  /// Ends the transaction of the last step; throws while a backward is under way.
  uint64_t committed_steps();
  std::vector<LayerResidual> residuals();
  /// Steps that were committed, and stats().steps, of a checkpoint. Before the plans of those steps.
  void set_steps(uint64_t committed, uint64_t so_far);
  /// Replaces residuals, after set_steps(). Layers that are not named start at zero.
  void load(const std::vector<LayerResidual>& residuals);

  ExchangeStats stats() const { return exchange_ ? exchange_->stats() : ExchangeStats{}; }
  uint64_t fingerprint() const { return exchange_ ? exchange_->plan().fingerprint() : 0; }

 private:
  void layers_of(c10d::GradBucket& bucket);
  std::shared_ptr<const Plan> make_plan(const std::vector<LayerSpec>& layers,
                                        const std::vector<codecs::Choice>& choices,
                                        const Masks& masks = {},
                                        const std::vector<bool>& carries = {}) const;
  std::shared_ptr<const Plan> compile(const std::vector<codecs::Choice>& choices,
                                      const std::vector<bool>& carries = {});
  void make_room(const std::vector<LayerResidual>& residuals);
  LayerResidual residual_of(const Plan& plan, int32_t layer) const;
  void load_owner(const Plan& plan, int32_t layer, const LayerResidual& part, const at::Tensor& sender);
  std::shared_ptr<const Plan> plan_of_step(uint64_t step);
  void load_layer(const Plan& plan, int32_t layer, const LayerResidual& part);

  const EngineOptions options_;
  const std::vector<at::Tensor> parameters_;
  std::unordered_map<const at::TensorImpl*, int32_t> layer_by_parameter_;
  const std::shared_ptr<Watches> watches_;
  std::shared_ptr<const Plan> warmup_plan_;
  std::mutex plans_mutex_;
  Masks masks_;
  std::condition_variable plan_set_;
  std::map<uint64_t, std::shared_ptr<const Plan>> plans_;  ///< by first step in force; null: promised
  bool closed_ = false;
  std::optional<at::Tensor> scale_;
  std::unique_ptr<Exchange> exchange_;
  std::vector<int32_t> bucket_layers_;  ///< scratch of run()
};

}  // namespace lgreco::engine
