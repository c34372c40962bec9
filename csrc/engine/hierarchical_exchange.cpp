// The exchange of nodes with several ranks each: dense inside a node, by the plan between nodes.
#include "engine/hierarchical_exchange.h"

#include <ATen/ops/empty.h>

#include "core/error.h"

namespace lgreco::engine {
namespace {

// Each of the four rounds waits for the one before it: node scatter, rail scatter and gather, node
// gather.
constexpr double kPatience[] = {0.6, 0.7, 0.8, 0.9};

ExchangeOptions options_with(ExchangeOptions options, const std::vector<int32_t>& rank_names) {
  options.rank_names = rank_names;
  return options;
}

ExchangeOptions node_options(const ExchangeOptions& options, const Hierarchy& hierarchy) {
  ExchangeOptions made = options_with(options, hierarchy.node_ranks);
  made.scatter_patience = kPatience[0];
  made.gather_patience = kPatience[3];
  made.watches.reset();  // layers are measured where they are coded
  return made;
}

ExchangeOptions rail_options(const ExchangeOptions& options, const Hierarchy& hierarchy) {
  ExchangeOptions made = options_with(options, hierarchy.rail_ranks);
  made.scatter_patience = kPatience[1];
  made.gather_patience = kPatience[2];
  made.part_of_step = true;
  return made;
}

std::shared_ptr<const Plan> dense_plan(const Plan& plan, const Hierarchy& hierarchy) {
  const std::vector<codecs::Choice> choices(plan.layers().size(), {"dense", {{"dtype", "fp32"}}});
  return std::make_shared<const Plan>(plan.layers(), choices,
                                      static_cast<int>(hierarchy.node_ranks.size()), Masks{},
                                      std::vector<bool>{}, hierarchy.carriers);
}

}  // namespace

HierarchicalExchange::HierarchicalExchange(std::unique_ptr<transports::Transport> node,
                                           std::unique_ptr<transports::Transport> rail,
                                           const Hierarchy& hierarchy, const ExchangeOptions& options,
                                           const std::vector<at::Tensor>& parameters,
                                           const std::shared_ptr<const Plan>& plan)
    : node_plan_(dense_plan(*plan, hierarchy)), carrier_(node->rank()) {
  rail_ = std::make_unique<LaneExchange>(std::move(rail), rail_options(options, hierarchy), parameters,
                                         plan);
  node_ = std::make_unique<LaneExchange>(std::move(node), node_options(options, hierarchy), parameters,
                                         node_plan_);
  node_->set_relay(
      {.averaged = [this](Job& job) { averaged(job); },
       .ended = [this](bool dropped) { rail_->finish_watch(dropped); },
       .failed = [this](const std::string& why, int culprit) { rail_->give_up(why, culprit); }});
}

// Only the node has seen what other carriers dropped the step for.
void HierarchicalExchange::drop_with_node() {
  if (node_->dropped()) rail_->discard();
}

uint64_t HierarchicalExchange::steps_so_far() {
  drop_with_node();
  return rail_->steps_so_far();
}

void HierarchicalExchange::settle() {
  node_->wait();
  drop_with_node();
  rail_->settle();
  node_->settle();
}

void HierarchicalExchange::begin_step(std::shared_ptr<const Plan> plan,
                                      std::optional<at::Tensor> scale) {
  node_->wait();
  drop_with_node();
  rail_->begin_step(std::move(plan), std::move(scale));
  next_to_start_ = 0;
  for (Relayed& bucket : relayed_) bucket.job = nullptr;
  node_->begin_step(node_plan_, std::nullopt);
}

void HierarchicalExchange::change_plan(std::shared_ptr<const Plan> plan) {
  settle();
  rail_->change_plan(std::move(plan));
}

void HierarchicalExchange::averaged(Job& job) {
  const auto index = static_cast<size_t>(job.bucket);
  if (relayed_.size() <= index) relayed_.resize(index + 1);
  relayed_[index].job = &job;
  while (next_to_start_ < relayed_.size() && relayed_[next_to_start_].job != nullptr) {
    start(relayed_[next_to_start_++]);
  }
}

void HierarchicalExchange::start(Relayed& bucket) {
  Job& job = *bucket.job;
  int64_t numel = 0;
  bucket.layers.clear();
  for (const int32_t layer : job.layers) {
    if (node_plan_->owner_of(layer) != carrier_) continue;
    bucket.layers.push_back(layer);
    numel += node_plan_->layers()[layer].numel;
  }
  if (!bucket.averages.defined() || bucket.averages.numel() != numel) {
    if (bucket.averages.defined()) relayed_bytes_ -= bucket.averages.nbytes();
    bucket.averages = at::empty({numel}, at::kFloat);
    relayed_bytes_ += bucket.averages.nbytes();
  }
  if (const auto [why, culprit] = rail_->failure(); culprit >= 0) return node_->give_up(why, culprit);
  node_->take_averages(job, bucket.averages.mutable_data_ptr<float>());
  const FuturePtr future = rail_->run(
      {.index = job.bucket, .last = job.last, .buffer = bucket.averages, .layers = bucket.layers});
  // The node waits for the averages that this rank carries; without any, it may be past the bucket.
  Job* const waiting = bucket.layers.empty() ? nullptr : &job;
  future->addCallback([this, waiting, averages = bucket.averages](const c10::ivalue::Future& done) {
    arrived(waiting, averages, done);
  });
}

void HierarchicalExchange::arrived(Job* waiting, const at::Tensor& averages,
                                   const c10::ivalue::Future& future) {
  if (!future.hasError()) {
    if (waiting != nullptr) node_->release(*waiting, averages.const_data_ptr<float>());
    return;
  }
  if (closing_) return;
  const auto [why, culprit] = rail_->failure();
  node_->give_up(why, culprit);
}

void HierarchicalExchange::close() {
  closing_ = true;
  rail_->close();  // first: what it completes, it hands to the node's
  node_->close();
}

ExchangeStats HierarchicalExchange::stats() const {
  ExchangeStats stats = rail_->stats(node_->dropped());
  const ExchangeStats node = node_->stats();
  stats.node_bytes = node.wire_bytes;
  stats.buffer_bytes += node.buffer_bytes + relayed_bytes_;
  stats.codec_ms += node.codec_ms;
  stats.exposed_ms = node.exposed_ms;
  stats.busy_ms = node.busy_ms;
  return stats;
}

}  // namespace lgreco::engine
