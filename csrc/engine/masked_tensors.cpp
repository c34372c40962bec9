// A layer's residual between its two forms.
#include "engine/masked_tensors.h"

#include <ATen/ops/empty.h>

namespace lgreco::engine {

at::Tensor layer_of(const PlannedLayer& planned, const at::Tensor& run) {
  const Mask* mask = planned.run_mask();
  return mask == nullptr ? run : layer_of(planned, run, 0, mask->numel());
}

at::Tensor layer_of(const PlannedLayer& planned, const at::Tensor& run, int64_t dense_offset,
                    int64_t dense_numel) {
  const Mask* mask = planned.run_mask();
  if (mask == nullptr) return run;
  const at::Tensor from = run.cpu().contiguous();
  const at::Tensor whole = at::empty({dense_numel}, from.options());
  kernels::mask_scatter(mask->span(dense_offset, dense_numel), from.const_data_ptr(),
                        static_cast<int64_t>(from.element_size()), whole.mutable_data_ptr());
  return whole.to(run.device());
}

at::Tensor run_of(const PlannedLayer& planned, const at::Tensor& whole) {
  if (planned.mask == nullptr) return whole;
  const auto bytes = static_cast<int64_t>(whole.element_size());
  const at::Tensor from = whole.cpu().contiguous();
  if (planned.lowrank) {
    const at::Tensor cleared = from.clone();
    kernels::mask_clear(planned.mask->whole(), bytes, cleared.mutable_data_ptr());
    return cleared.to(whole.device());
  }
  const at::Tensor run = at::empty({planned.mask->kept()}, from.options());
  kernels::mask_gather(planned.mask->whole(), from.const_data_ptr(), bytes, run.mutable_data_ptr());
  return run.to(whole.device());
}

}  // namespace lgreco::engine
