// The engine behind a State: knows the layers, follows the plan, hands buckets to the exchange.
#pragma once

#include <torch/csrc/distributed/c10d/comm.hpp>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "codecs/choice.h"
#include "engine/exchange.h"

namespace lgreco::engine {

struct EngineOptions {
  ExchangeOptions exchange;
  int rank = 0;
  int world_size = 1;
  uint64_t warmup_steps = 0;  ///< committed steps with dense fp32 on every layer
};

/// One layer's part of a rank's state. Tensors are copies, fp32 or bf16, flat, on the CPU.
struct LayerResidual {
  std::string name;
  at::Tensor sender;  ///< [numel]
  at::Tensor owner;   ///< of the elements from owner_offset on; undefined where this rank owns none
  int64_t owner_offset = 0;
};

class Engine {
 public:
  using MakeExchange = std::function<std::unique_ptr<Exchange>(
      const ExchangeOptions&, std::vector<at::Tensor>, std::shared_ptr<const Plan>)>;

  /// `parameters` and `choices` by layer. `scale`: GradScaler's fp32 scalar, read at each step.
  /// With one rank there is no exchange: buckets are returned as they came.
  Engine(const EngineOptions& options, std::vector<LayerSpec> layers, std::vector<at::Tensor> parameters,
         const std::vector<codecs::Choice>& choices, std::optional<at::Tensor> scale,
         const MakeExchange& make_exchange);

  /// Starts averaging a bucket in place and returns at once.
  FuturePtr run(c10d::GradBucket& bucket);

  void discard() {
    if (exchange_) exchange_->discard();
  }
  void close() {
    if (exchange_) exchange_->close();
  }
  /// Ends the transaction of the last step; throws while a backward is under way.
  uint64_t committed_steps();
  std::vector<LayerResidual> residuals();
  /// Replaces residuals and step count. Layers that are not named start at zero.
  void load(uint64_t committed_steps, const std::vector<LayerResidual>& residuals);

  ExchangeStats stats() const { return exchange_ ? exchange_->stats() : ExchangeStats{}; }
  int64_t residual_bytes() { return exchange_ ? exchange_->residuals().bytes() : 0; }
  uint64_t fingerprint() const { return plan_->fingerprint(); }

 private:
  void layers_of(c10d::GradBucket& bucket);
  const std::shared_ptr<const Plan>& plan_in_force();

  const EngineOptions options_;
  const std::vector<at::Tensor> parameters_;
  std::unordered_map<const at::TensorImpl*, int32_t> layer_by_parameter_;
  std::shared_ptr<const Plan> warmup_plan_, plan_;
  std::optional<at::Tensor> scale_;
  std::unique_ptr<Exchange> exchange_;
  std::vector<int32_t> bucket_layers_;  ///< scratch of run()
};

}  // namespace lgreco::engine
