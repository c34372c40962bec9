// The SSE2 level of the low-rank kernels, which any x86-64 runs: sixteen lanes in four 128-bit
// registers.
#include "kernels/lanes_sse2.h"
#include "kernels/lowrank_simd.h"

namespace lgreco::kernels::sse2 {

const LowRankKernels& lowrank_kernels() {
  static constexpr LowRankKernels kKernels = lowrank_kernels_over<Lanes>();
  return kKernels;
}

}  // namespace lgreco::kernels::sse2
