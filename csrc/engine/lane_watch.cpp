// What the codec lane copies for the slow path: watched layers before their exchange and after it.
#include <algorithm>

#include "engine/lane_exchange.h"
#include "kernels/mask.h"

namespace lgreco::engine {

// Copies what the watched layers of a bucket hold, before the exchange or after it.
void LaneExchange::watch(const Job& job, bool delivered) {
  int64_t offset = 0;
  for (const int32_t layer : job.layers) {
    const int64_t numel = plan_->layers()[layer].numel;
    const int32_t slot = snapshot_->slots[layer];
    if (slot >= 0) {
      const PlannedLayer& planned = plan_->planned()[layer];
      const uint8_t* gradient = job.gradient + offset * element_bytes(job.dtype);
      auto* out = (delivered ? snapshot_->delivered : snapshot_->values)[slot].mutable_data_ptr<float>();
      if (planned.mask == nullptr) {
        kernels::lowrank_gather(gradient, job.dtype, numel, watched(planned, delivered), out);
      } else {
        watch_run(planned, gradient, job.dtype, delivered, out);
      }
      if (!delivered) watch_owed(layer, slot);
    }
    offset += numel;
  }
}

// The same for a masked layer, a piece of what is kept at a time. Its residual is the run's, or, where
// the whole matrix is factored, the whole layer's.
void LaneExchange::watch_run(const PlannedLayer& planned, const uint8_t* gradient, DType dtype,
                             bool delivered, float* out) {
  const Mask& mask = *planned.mask;
  const codecs::Feedback whole = watched(planned, delivered);
  for (int64_t begin = 0; begin < mask.kept(); begin += kMostTileNumel) {
    const int64_t numel = std::min(kMostTileNumel, mask.kept() - begin);
    const int64_t first = mask.dense_begin(begin);
    const kernels::MaskSpan span = mask.span(first, mask.dense_begin(begin + numel) - first);
    const int64_t bytes = element_bytes(dtype), residual_bytes = element_bytes(whole.dtype);
    kernels::mask_gather(span, gradient + first * bytes, bytes, run_.data());
    codecs::Feedback piece = whole;
    const auto* residual = static_cast<const uint8_t*>(whole.in);
    if (residual != nullptr && planned.run_mask() == nullptr) {
      kernels::mask_gather(span, residual + first * residual_bytes, residual_bytes,
                           run_residual_.data());
      piece.in = run_residual_.data();
    } else if (residual != nullptr) {
      piece.in = residual + begin * residual_bytes;
    }
    kernels::lowrank_gather(run_.data(), dtype, numel, piece, out + begin);
  }
}

codecs::Feedback LaneExchange::watched(const PlannedLayer& planned, bool delivered) const {
  codecs::Feedback feedback;
  if (!delivered) feedback = residuals_->sender(planned, scale_);
  feedback.inverse_scale = 1.0F / scale_;
  return feedback;
}

// What an owner still owes is part of what it averages, so it belongs to the exact result.
void LaneExchange::watch_owed(int32_t layer, int32_t slot) {
  const auto [owed, offset] = residuals_->of_owner(*plan_, layer, rank_);
  snapshot_->owed[slot] = owed.defined() ? owed.to(at::kFloat, false, /*copy=*/true) : owed;
  snapshot_->owed_offsets[slot] = offset;
}

}  // namespace lgreco::engine
