// The AVX2 level of the low-rank kernels: sixteen lanes in two 256-bit registers.
#include "kernels/lanes_avx2.h"
#include "kernels/lowrank_simd.h"

namespace lgreco::kernels::avx2 {

const LowRankKernels& lowrank_kernels() {
  static constexpr LowRankKernels kKernels = lowrank_kernels_over<Lanes>();
  return kKernels;
}

}  // namespace lgreco::kernels::avx2
