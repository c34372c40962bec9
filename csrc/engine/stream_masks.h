// The masked layers of a bucket on CUDA: their runs beside the bucket, gathered before the exchange and
// scattered after it.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "engine/layout.h"
#include "kernels/mask_cuda.h"

namespace lgreco::engine {

class StreamMasks {
 public:
  StreamMasks(const Plan& plan, const Layout& layout, at::Device device);

  /// What layers keep goes to runs(); the pruned elements of matrices that are factored whole become
  /// zero.
  void gather(void* bucket, DType dtype, kernels::CudaStream stream);
  /// The inverse: runs() back to the bucket, zeros elsewhere, also in matrices that are factored whole
  /// and their residuals' shadow.
  void scatter(void* bucket, DType dtype, const kernels::BatchFeedback& residuals,
               const kernels::DeviceTransaction* transaction, kernels::CudaStream stream);

  /// Elements of the bucket's type; a layer's begin at its MaskedLayer::run_offset.
  void* runs() { return runs_.defined() ? runs_.mutable_data_ptr() : nullptr; }
  /// [kept] of `whole`, fp32 [numel] of a layer; the tensor itself where the layer has no mask.
  at::Tensor kept_of(int32_t layer, const at::Tensor& whole, kernels::CudaStream stream) const;

  int64_t bytes() const;

 private:
  struct Work {
    int32_t layer = 0;
    const PlannedLayer* planned = nullptr;
    int64_t bucket_offset = 0, run_offset = 0;
    at::Tensor bits, before;  ///< own the memory that `mask` points to
    kernels::DeviceMask mask;
  };
  void add(const Plan& plan, const MaskedLayer& place, at::Device device);

  std::vector<Work> works_;
  at::Tensor runs_;
};

}  // namespace lgreco::engine
