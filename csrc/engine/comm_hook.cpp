// The hook that DDP's reducer calls for each bucket: no Python, no GIL.
#include "engine/comm_hook.h"

namespace lgreco::engine {

c10::intrusive_ptr<c10::ivalue::Future> CommHook::runHook(c10d::GradBucket& bucket) {
  return engine_->run(bucket);
}

at::Tensor CommHook::parseHookResult(const c10::IValue& result) { return result.toTensor(); }

}  // namespace lgreco::engine
