// The engine behind a State: knows the layers, follows the plan, hands buckets to the exchange.
#include "engine/engine.h"

#include <ATen/core/jit_type.h>

#include "core/error.h"

namespace lgreco::engine {

Engine::Engine(const EngineOptions& options, std::vector<LayerSpec> layers,
               std::vector<at::Tensor> parameters, const std::vector<codecs::Choice>& choices,
               std::optional<at::Tensor> scale, const MakeExchange& make_exchange)
    : options_(options), parameters_(std::move(parameters)), scale_(std::move(scale)) {
  require(parameters_.size() == layers.size(), "one parameter per layer: got ", parameters_.size(),
          " parameters and ", layers.size(), " layers");
  for (size_t i = 0; i < parameters_.size(); ++i) {
    layer_by_parameter_[parameters_[i].unsafeGetTensorImpl()] = static_cast<int32_t>(i);
  }
  const std::vector<codecs::Choice> dense(layers.size(), {"dense", {{"dtype", "fp32"}}});
  warmup_plan_ = std::make_shared<const Plan>(layers, dense, options.world_size);
  plan_ = std::make_shared<const Plan>(std::move(layers), choices, options.world_size);
  if (options.world_size > 1) exchange_ = make_exchange(options.exchange, parameters_, plan_in_force());
}

const std::shared_ptr<const Plan>& Engine::plan_in_force() {
  const uint64_t steps = exchange_ ? exchange_->steps_so_far() : 0;
  return steps < options_.warmup_steps ? warmup_plan_ : plan_;
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
    exchange_->begin_step(plan_in_force(), scale_);
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
    const at::Tensor sender = exchange_->residuals().of_layer(plan, layer);
    if (!sender.defined()) continue;
    LayerResidual part;
    part.name = plan.layers()[layer].name;
    part.sender = sender.to(at::kCPU, /*non_blocking=*/false, /*copy=*/true);
    const auto [owner, offset] = exchange_->residuals().of_owner(plan, layer, options_.rank);
    if (owner.defined()) {
      part.owner = owner.to(at::kCPU, /*non_blocking=*/false, /*copy=*/true);
      part.owner_offset = offset;
    }
    out.push_back(std::move(part));
  }
  return out;
}

void Engine::load(uint64_t committed_steps, const std::vector<LayerResidual>& residuals) {
  if (!exchange_) return;
  exchange_->settle();
  exchange_->set_committed_steps(committed_steps);
  exchange_->restart(plan_in_force());
  const Plan& plan = exchange_->plan();
  std::unordered_map<std::string, const LayerResidual*> by_name;
  for (const LayerResidual& part : residuals) by_name[part.name] = &part;
  for (int32_t layer = 0; layer < static_cast<int32_t>(plan.layers().size()); ++layer) {
    const auto found = by_name.find(plan.layers()[layer].name);
    if (found == by_name.end()) continue;
    const LayerResidual& part = *found->second;
    const at::Tensor sender = exchange_->residuals().of_layer(plan, layer);
    const auto [owner, offset] = exchange_->residuals().of_owner(plan, layer, options_.rank);
    if (!sender.defined()) continue;
    require(part.sender.numel() == sender.numel(), "layer '", part.name, "' has ", sender.numel(),
            " elements, its saved residual ", part.sender.numel(), ": a checkpoint of another model");
    sender.copy_(part.sender);
    if (!part.owner.defined()) continue;
    if (owner.defined() && offset == part.owner_offset && owner.numel() == part.owner.numel()) {
      owner.copy_(part.owner);
    } else {  // other owners than when it was saved: back to the sender, which is exact
      sender.narrow(0, part.owner_offset, part.owner.numel())
          .add_(part.owner.to(sender.device()), static_cast<double>(options_.world_size));
    }
  }
}

}  // namespace lgreco::engine
