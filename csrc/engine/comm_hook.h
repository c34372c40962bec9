// The hook that DDP's reducer calls for each bucket: no Python, no GIL.
#pragma once

#include <torch/csrc/distributed/c10d/comm.hpp>

#include <memory>

#include "engine/engine.h"

namespace lgreco::engine {

class CommHook final : public c10d::CommHookInterface {
 public:
  explicit CommHook(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}
  c10::intrusive_ptr<c10::ivalue::Future> runHook(c10d::GradBucket& bucket) override;
  at::Tensor parseHookResult(const c10::IValue& result) override;

 private:
  std::shared_ptr<Engine> engine_;
};

}  // namespace lgreco::engine
