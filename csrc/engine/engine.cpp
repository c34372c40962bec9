// The engine behind a State: knows the layers, follows the plan, hands buckets to the exchange.
#include "engine/engine.h"

#include <ATen/core/jit_type.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <iterator>

#include "core/error.h"
#include "engine/masked_tensors.h"

namespace lgreco::engine {
namespace {

std::vector<int64_t> numels_of(const std::vector<LayerSpec>& layers, const Masks& masks = {}) {
  std::vector<int64_t> numels;
  for (size_t i = 0; i < layers.size(); ++i) {
    const Mask* mask = mask_of(masks, i);
    numels.push_back(mask == nullptr ? layers[i].numel : mask->kept());
  }
  return numels;
}

std::vector<codecs::Choice> all_dense(size_t layers) { return {layers, {"dense", {{"dtype", "fp32"}}}}; }

}  // namespace

Engine::Engine(const EngineOptions& options, const std::vector<LayerSpec>& layers,
               std::vector<at::Tensor> parameters, const std::vector<codecs::Choice>& choices,
               std::optional<at::Tensor> scale, const MakeExchange& make_exchange)
    : options_(options),
      parameters_(std::move(parameters)),
      watches_(std::make_shared<Watches>(numels_of(layers))),
      scale_(std::move(scale)) {
  require(parameters_.size() == layers.size(), "one parameter per layer: got ", parameters_.size(),
          " parameters and ", layers.size(), " layers");
  for (size_t i = 0; i < parameters_.size(); ++i) {
    layer_by_parameter_[parameters_[i].unsafeGetTensorImpl()] = static_cast<int32_t>(i);
  }
  warmup_plan_ = make_plan(layers, all_dense(layers.size()));
  plans_[0] = make_plan(layers, choices);
  ExchangeOptions exchange = options.exchange;
  exchange.watches = watches_;
  if (options.world_size > 1) exchange_ = make_exchange(exchange, parameters_, plan_of_step(0));
}

std::shared_ptr<const Plan> Engine::make_plan(const std::vector<LayerSpec>& layers,
                                              const std::vector<codecs::Choice>& choices,
                                              const Masks& masks,
                                              const std::vector<bool>& carries) const {
  return std::make_shared<const Plan>(layers, choices, options_.world_size, masks, carries,
                                      options_.owners);
}

std::shared_ptr<const Plan> Engine::compile(const std::vector<codecs::Choice>& choices,
                                            const std::vector<bool>& carries) {
  std::unique_lock lock(plans_mutex_);
  const std::vector<LayerSpec>& layers = warmup_plan_->layers();
  const Masks masks = masks_;
  lock.unlock();
  return make_plan(layers, choices, masks, carries);
}

void Engine::promise_plan(uint64_t step) {
  const std::lock_guard lock(plans_mutex_);
  plans_.try_emplace(step, nullptr);
}

void Engine::set_plan(uint64_t step, const std::optional<std::vector<codecs::Choice>>& choices) {
  std::shared_ptr<const Plan> before;
  {
    const std::lock_guard lock(plans_mutex_);
    for (const auto& [first, plan] : plans_) {
      if (first < step && plan) before = plan;
    }
  }
  std::shared_ptr<const Plan> plan;
  if (choices) plan = compile(*choices, before ? before->with_residual() : std::vector<bool>{});
  {
    const std::lock_guard lock(plans_mutex_);
    if (before && (!plan || before->fingerprint() == plan->fingerprint())) {
      plans_.erase(step);  // the one before it stays in force
    } else if (plan) {
      plans_[step] = std::move(plan);
    }
  }
  plan_set_.notify_all();
}

void Engine::replace_plans(const std::vector<codecs::Choice>& choices) {
  std::shared_ptr<const Plan> plan = compile(choices);
  watches_->forget();
  const std::lock_guard lock(plans_mutex_);
  plans_.clear();
  plans_[0] = std::move(plan);
}

void Engine::set_masks(Masks masks, const std::vector<codecs::Choice>& choices) {
  const std::vector<LayerSpec> layers = warmup_plan_->layers();
  const std::vector<bool> carries = exchange_ ? exchange_->plan().with_residual() : std::vector<bool>{};
  auto warmup = make_plan(layers, all_dense(layers.size()), masks);
  auto plan = make_plan(layers, choices, masks, carries);
  watches_->reset(numels_of(layers, masks));
  {
    const std::lock_guard lock(plans_mutex_);
    masks_ = std::move(masks);
    warmup_plan_ = std::move(warmup);
    plans_.clear();
    plans_[0] = std::move(plan);
  }
  plan_set_.notify_all();
  // Now, so that what is saved before the next step is laid out by these masks.
  if (exchange_) exchange_->change_plan(plan_of_step(exchange_->steps_so_far()));
}

// The latest plan that is due at a step; one that is due but only promised is waited for.
std::shared_ptr<const Plan> Engine::plan_of_step(uint64_t step) {
  std::unique_lock lock(plans_mutex_);
  const auto due = [&] {
    const auto later = plans_.upper_bound(step);
    return later == plans_.begin() ? later : std::prev(later);
  };
  plan_set_.wait(lock, [&] { return closed_ || due()->second != nullptr; });
  ensure(!closed_, "the compressed exchange was closed (state.close()); no backward may follow");
  return step < options_.warmup_steps ? warmup_plan_ : due()->second;
}

void Engine::close() {
  {
    const std::lock_guard lock(plans_mutex_);
    closed_ = true;
  }
  plan_set_.notify_all();
  if (exchange_) exchange_->close();
  watches_->close();
}

void Engine::layers_of(c10d::GradBucket& bucket) {
  bucket_layers_.clear();
  for (const at::Tensor& parameter : bucket.getParameters()) {
    const auto found = layer_by_parameter_.find(parameter.unsafeGetTensorImpl());
    ensure(found != layer_by_parameter_.end(), "bucket ", bucket.getIndex(),
           " holds a parameter of shape ", parameter.sizes(),
           " that was not there at attach; attach again after changing the model");
    bucket_layers_.push_back(found->second);
  }
}

FuturePtr Engine::run(c10d::GradBucket& bucket) {
  const at::Tensor& buffer = bucket.getBuffer();
  require(!buffer.is_sparse(),
          "sparse gradients are not supported: set sparse=False on the "
          "embedding, or exclude the parameter from DDP");
  if (!exchange_) {
    auto future = c10::make_intrusive<c10::ivalue::Future>(c10::TensorType::get());
    future->markCompleted(buffer);
    return future;
  }
  if (bucket.getIndex() == 0) {
    exchange_->begin_step(plan_of_step(exchange_->steps_so_far()), scale_);
  }
  layers_of(bucket);
  return exchange_->run({.index = static_cast<int32_t>(bucket.getIndex()),
                         .last = bucket.isLast(),
                         .buffer = buffer,
                         .layers = bucket_layers_});
}

uint64_t Engine::committed_steps() {
  if (!exchange_) return 0;
  exchange_->settle();
  return exchange_->committed_steps();
}

std::vector<LayerResidual> Engine::residuals() {
  if (!exchange_) return {};
  exchange_->settle();
  const Plan& plan = exchange_->plan();
  std::vector<LayerResidual> out;
  for (int32_t layer = 0; layer < static_cast<int32_t>(plan.layers().size()); ++layer) {
    LayerResidual part = residual_of(plan, layer);
    if (part.sender.defined() || part.warm_q.defined()) out.push_back(std::move(part));
  }
  return out;
}

LayerResidual Engine::residual_of(const Plan& plan, int32_t layer) const {
  const Residuals& residuals = exchange_->residuals();
  const PlannedLayer& planned = plan.planned()[layer];
  const auto copy = [](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.to(at::kCPU, /*non_blocking=*/false, /*copy=*/true).contiguous()
                            : tensor;
  };
  LayerResidual part;
  part.name = plan.layers()[layer].name;
  part.sender = copy(residuals.of_layer(plan, layer));
  for (const int side : {0, 1}) {
    const at::Tensor factor = residuals.of_factor(plan, layer, side);
    if (!factor.defined()) continue;
    (side == 0 ? part.warm_p : part.warm_q) = copy(factor_of_layer(planned, side, factor));
  }
  const auto [owner, offset] = residuals.of_owner(plan, layer, options_.rank);
  part.owner = copy(owner);
  if (owner.defined()) part.owner_offset = offset;
  const Mask* mask = planned.run_mask();
  if (mask == nullptr) return part;
  if (part.sender.defined()) part.sender = layer_of(planned, part.sender);
  if (!part.owner.defined()) return part;
  part.owner_offset = mask->dense_begin(offset);
  const int64_t end = mask->dense_begin(offset + owner.numel());
  part.owner = layer_of(planned, part.owner, part.owner_offset, end - part.owner_offset);
  return part;
}

void Engine::set_steps(uint64_t committed, uint64_t so_far) {
  if (!exchange_) return;
  exchange_->settle();
  exchange_->set_steps(committed, so_far);
}

void Engine::load(const std::vector<LayerResidual>& residuals) {
  if (!exchange_) return;
  make_room(residuals);
  // The plan that the residuals were saved under; if the next step's is another, they move as ever.
  const uint64_t steps = exchange_->steps_so_far();
  exchange_->restart(plan_of_step(steps == 0 ? 0 : steps - 1));
  const Plan& plan = exchange_->plan();
  std::unordered_map<std::string, const LayerResidual*> by_name;
  for (const LayerResidual& part : residuals) by_name[part.name] = &part;
  for (int32_t layer = 0; layer < static_cast<int32_t>(plan.layers().size()); ++layer) {
    const auto found = by_name.find(plan.layers()[layer].name);
    if (found == by_name.end()) continue;
    load_layer(plan, layer, *found->second);
  }
}

// Where a change of masks has made a layer exact, what it owed before may have been saved with it.
void Engine::make_room(const std::vector<LayerResidual>& residuals) {
  std::vector<bool> carries;
  for (const LayerSpec& layer : warmup_plan_->layers()) {
    carries.push_back(std::any_of(residuals.begin(), residuals.end(), [&](const LayerResidual& part) {
      return part.sender.defined() && part.name == layer.name;
    }));
  }
  const std::lock_guard lock(plans_mutex_);
  for (auto& [first, plan] : plans_) {
    if (plan) plan = make_plan(plan->layers(), plan->choices(), masks_, carries);
  }
}

void Engine::load_layer(const Plan& plan, int32_t layer, const LayerResidual& part) {
  const Residuals& residuals = exchange_->residuals();
  for (const int side : {0, 1}) {
    const at::Tensor mine = residuals.of_factor(plan, layer, side);
    const at::Tensor& saved = side == 0 ? part.warm_p : part.warm_q;
    if (!mine.defined() || !saved.defined()) continue;
    const PlannedLayer& planned = plan.planned()[layer];
    const int64_t length = factor_of_layer(planned, side, mine).size(1);
    require(saved.dim() == 2 && saved.size(1) == length, "layer '", part.name,
            "': its saved factor has shape ", saved.sizes(), ", expected [", mine.size(0), ", ", length,
            "]");
    const int64_t columns = std::min(mine.size(0), saved.size(0));
    mine.narrow(0, 0, columns).copy_(factor_of_kept(planned, side, saved).narrow(0, 0, columns));
  }
  const at::Tensor sender = residuals.of_layer(plan, layer);
  if (!sender.defined() || !part.sender.defined()) return;
  const int64_t numel = plan.layers()[layer].numel;
  require(part.sender.numel() == numel, "layer '", part.name, "' has ", numel,
          " elements, its saved residual ", part.sender.numel(), ": a checkpoint of another model");
  sender.copy_(run_of(plan.planned()[layer], part.sender));
  if (part.owner.defined()) load_owner(plan, layer, part, sender);
}

void Engine::load_owner(const Plan& plan, int32_t layer, const LayerResidual& part,
                        const at::Tensor& sender) {
  const PlannedLayer& planned = plan.planned()[layer];
  at::Tensor saved = part.owner;
  int64_t saved_offset = part.owner_offset;
  if (planned.mask != nullptr) {  // from a part of the layer to the same part of its run
    at::Tensor whole = at::zeros({plan.layers()[layer].numel}, saved.options());
    whole.narrow(0, saved_offset, saved.numel()).copy_(saved);
    const int64_t end = saved_offset + saved.numel();
    saved = run_of(planned, whole);
    if (const Mask* mask = planned.run_mask()) {
      saved_offset = mask->run_begin(saved_offset);
      saved = saved.narrow(0, saved_offset, mask->run_begin(end) - saved_offset);
    } else {
      saved_offset = 0;
    }
  }
  const auto [owner, offset] = exchange_->residuals().of_owner(plan, layer, options_.rank);
  if (owner.defined() && offset == saved_offset && owner.numel() == saved.numel()) {
    owner.copy_(saved);
  } else {  // other owners than when it was saved: back to the sender, which is exact
    sender.narrow(0, saved_offset, saved.numel())
        .add_(saved.to(sender.device()), static_cast<double>(options_.world_size));
  }
}

}  // namespace lgreco::engine
