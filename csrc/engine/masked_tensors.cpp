// A layer's residual and warm starts between their two forms.
#include "engine/masked_tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

namespace lgreco::engine {
namespace {

/// Indices of the kept rows (side 0) or columns (side 1).
at::Tensor kept_places(const KeptMatrix& kept, int side, at::Device device) {
  const std::vector<int64_t>& places = side == 0 ? kept.rows : kept.cols;
  const at::Tensor host = at::empty({static_cast<int64_t>(places.size())}, at::kLong);
  std::copy(places.begin(), places.end(), host.mutable_data_ptr<int64_t>());
  return host.to(device);
}

}  // namespace

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
  if (planned.run_mask() == nullptr) {
    const at::Tensor cleared = from.clone();
    kernels::mask_clear(planned.mask->whole(), bytes, cleared.mutable_data_ptr());
    return cleared.to(whole.device());
  }
  const at::Tensor run = at::empty({planned.mask->kept()}, from.options());
  kernels::mask_gather(planned.mask->whole(), from.const_data_ptr(), bytes, run.mutable_data_ptr());
  return run.to(whole.device());
}

at::Tensor factor_of_layer(const PlannedLayer& planned, int side, const at::Tensor& factor) {
  if (!planned.kept) return factor;
  const int64_t length = side == 0 ? planned.kept->all_rows : planned.kept->all_cols;
  const at::Tensor whole = at::zeros({factor.size(0), length}, factor.options());
  return whole.index_copy_(1, kept_places(*planned.kept, side, factor.device()), factor);
}

at::Tensor factor_of_kept(const PlannedLayer& planned, int side, const at::Tensor& whole) {
  if (!planned.kept) return whole;
  return whole.index_select(1, kept_places(*planned.kept, side, whole.device()));
}

}  // namespace lgreco::engine
