// Stands in for selection on CUDA in a build without CUDA: it throws.
#include "core/error.h"
#include "pruning/select_cuda.h"

namespace lgreco::pruning {
namespace {

[[noreturn]] void refuse() {
  throw Error(
      "this build of lgreco has no CUDA kernels; install again where nvcc is found, with LGRECO_CUDA=1 "
      "(python -m lgreco info says why they were left out)");
}

}  // namespace

Threshold find_threshold_cuda(const std::vector<Scores>&, int64_t, Order, kernels::CudaStream) {
  refuse();
}
int64_t mark_kept_cuda(const Scores&, Order, int32_t, int64_t, uint8_t*, float*, kernels::CudaStream) {
  refuse();
}

}  // namespace lgreco::pruning
