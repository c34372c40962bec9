// The exchange of nodes with several ranks each: dense inside a node, by the plan between nodes.
//
// Every layer has a carrier: one local rank, the same on all nodes. The ranks of a node send their
// gradients to the layer's carrier (over the fast link, fp32), which averages them; the carriers of all
// nodes (a rail) exchange that average by the plan; each sends the outcome to the ranks of its node.
//
//   node exchange   scatter ------------> averages                    release -> gather
//   rail exchange                         scatter -> reduce -> gather
//
// Both are LaneExchanges: the node's under a dense plan whose owners are the carriers, the rail's under
// the engine's plan, of which it exchanges what this rank carries. So a node sends 2 (H-1)/H copies of
// a coded model over its link, where H nodes of L ranks each would send L times as much without it.
//
// A step is dropped on all ranks or on none: inf and NaN travel with the averages, and what the node
// has found at its last bucket counts for the rail too.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "engine/lane_exchange.h"

namespace lgreco::engine {

/// Names of the ranks of both groups in DDP's, by index in the group.
struct Hierarchy {
  std::vector<int32_t> node_ranks, rail_ranks;
  std::vector<int32_t> carriers;  ///< by layer: index in the node
};

class HierarchicalExchange final : public Exchange {
 public:
  /// `plan` leaves to others what this rank does not carry (kElsewhere).
  HierarchicalExchange(std::unique_ptr<transports::Transport> node,
                       std::unique_ptr<transports::Transport> rail, const Hierarchy& hierarchy,
                       const ExchangeOptions& options, const std::vector<at::Tensor>& parameters,
                       const std::shared_ptr<const Plan>& plan);
  ~HierarchicalExchange() override { close(); }

  void begin_step(std::shared_ptr<const Plan> plan, std::optional<at::Tensor> scale) override;
  FuturePtr run(const BucketCall& call) override { return node_->run(call); }
  void settle() override;
  void discard() override { rail_->discard(); }
  void close() override;
  void restart(std::shared_ptr<const Plan> plan) override { rail_->restart(std::move(plan)); }
  void change_plan(std::shared_ptr<const Plan> plan) override;
  const Plan& plan() const override { return rail_->plan(); }
  uint64_t steps_so_far() override;
  uint64_t committed_steps() override { return rail_->committed_steps(); }
  void set_steps(uint64_t committed, uint64_t so_far) override { rail_->set_steps(committed, so_far); }
  Residuals& residuals() override { return rail_->residuals(); }
  ExchangeStats stats() const override;

 private:
  /// What the node exchange has handed over of one bucket.
  struct Relayed {
    Job* job = nullptr;           ///< null: not yet
    at::Tensor averages;          ///< fp32, [elements that this rank carries]
    std::vector<int32_t> layers;  ///< that this rank carries, in bucket order
  };

  void drop_with_node();
  void averaged(Job& job);
  void start(Relayed& bucket);
  void arrived(Job* waiting, const at::Tensor& averages, const c10::ivalue::Future& future);

  const std::shared_ptr<const Plan> node_plan_;
  const int32_t carrier_;  ///< this rank's index in its node
  std::unique_ptr<LaneExchange> rail_;
  std::unique_ptr<LaneExchange> node_;
  std::atomic<bool> closing_{false};
  std::atomic<int64_t> relayed_bytes_{0};  ///< of averages
  std::vector<Relayed> relayed_;  ///< by bucket; the node's codec lane alone, while a step is under way
  size_t next_to_start_ = 0;      ///< the rail takes buckets in order
};

}  // namespace lgreco::engine
