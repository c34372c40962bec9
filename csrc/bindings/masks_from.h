// Masks as Python gives them: by layer (numel, bits), or none.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <utility>
#include <vector>

#include "engine/mask.h"

namespace lgreco::bindings {

/// Bits as pack_mask gives them.
using PackedMasks = std::vector<std::optional<std::pair<int64_t, at::Tensor>>>;

engine::Masks masks_from(const PackedMasks& packed);

}  // namespace lgreco::bindings
