// A layer's residual between its two forms: of the run, as the arenas hold it, and of the whole layer,
// in which it outlives a change of masks and goes into checkpoints. For rare moments: on the host.
#pragma once

#include <ATen/core/Tensor.h>

#include "engine/plan.h"

namespace lgreco::engine {

/// [numel] of the layer, zeros where nothing is kept, of a tensor [residual_numel]; the tensor itself
/// where the layer has no run. `dense_offset`, `dense_numel`: of a part of the layer, whose run it is.
at::Tensor layer_of(const PlannedLayer& planned, const at::Tensor& run);
at::Tensor layer_of(const PlannedLayer& planned, const at::Tensor& run, int64_t dense_offset,
                    int64_t dense_numel);

/// [residual_numel] of a tensor [numel] of the layer. Of a masked matrix that is factored: the whole,
/// with zeros for what is pruned.
at::Tensor run_of(const PlannedLayer& planned, const at::Tensor& whole);

}  // namespace lgreco::engine
