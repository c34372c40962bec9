// What a choice would leave out of a layer: both rounds of an exchange among ranks that are all here.
#pragma once

#include <cstdint>
#include <vector>

#include "codecs/codec.h"

namespace lgreco::codecs {

/// Squared L2 distance between mean(values) + owner and what an exchange of `values` (one a rank, each
/// of `numel` elements) delivers: every rank encodes, the owner averages and encodes again, everyone
/// decodes. `owner`: the owner's residual before the step, [numel], or null where there is none.
/// Distances are summed in double, in order, so the same input gives the same bits everywhere.
double simulate(const Codec& codec, const std::vector<const float*>& values, const float* owner,
                int64_t numel, uint64_t seed);

}  // namespace lgreco::codecs
