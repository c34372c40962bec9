// Where the sixteen-lane encoders leave a run's residual.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "kernels/run.h"

namespace lgreco::kernels {

/// Streamed: past the caches. A shadow's old lines need not be read before they are overwritten, and
/// its new ones are not wanted again before the next step.
enum class Rest : uint8_t { kNone, kFloat32, kStreamedFloat32, kBFloat16 };

/// `stream_alignment`: bytes between addresses that can be streamed to.
LGRECO_HD Rest rest_of(const Feedback& feedback, uintptr_t stream_alignment) {
  if (feedback.out == nullptr) return Rest::kNone;
  if (feedback.dtype == DType::kBFloat16) return Rest::kBFloat16;
  const bool shadow = feedback.out != feedback.in;
  const bool aligned = reinterpret_cast<uintptr_t>(feedback.out) % stream_alignment == 0;
  return shadow && aligned ? Rest::kStreamedFloat32 : Rest::kFloat32;
}

}  // namespace lgreco::kernels
