// A layer's residual and warm starts between their two forms: of what is kept, as the arenas hold them,
// and of the whole layer, in which they outlive a change of masks and go into checkpoints. For rare
// moments: on the host.
#pragma once

#include <ATen/core/Tensor.h>

#include "engine/plan.h"

namespace lgreco::engine {

/// [numel] of the layer, zeros where nothing is kept, of a tensor [residual_numel]; the tensor itself
/// where the layer has no run. `dense_offset`, `dense_numel`: of a part of the layer, whose run it is.
at::Tensor layer_of(const PlannedLayer& planned, const at::Tensor& run);
at::Tensor layer_of(const PlannedLayer& planned, const at::Tensor& run, int64_t dense_offset,
                    int64_t dense_numel);

/// [residual_numel] of a tensor [numel] of the layer. Of a masked matrix that is factored whole: zeros
/// for what is pruned.
at::Tensor run_of(const PlannedLayer& planned, const at::Tensor& whole);

/// A factor of the whole matrix, [rank, its rows] (P, side 0) or [rank, its columns] (Q, side 1), zeros
/// where they are pruned, of a factor of what the mask keeps; the tensor itself where that is all.
at::Tensor factor_of_layer(const PlannedLayer& planned, int side, const at::Tensor& factor);

/// The inverse.
at::Tensor factor_of_kept(const PlannedLayer& planned, int side, const at::Tensor& whole);

}  // namespace lgreco::engine
