// The AVX-512 level of the low-rank kernels: sixteen lanes in one 512-bit register.
#include "kernels/lanes_avx512.h"
#include "kernels/lowrank_simd.h"

namespace lgreco::kernels::avx512 {

const LowRankKernels& lowrank_kernels() {
  static constexpr LowRankKernels kKernels = lowrank_kernels_over<Lanes>();
  return kKernels;
}

}  // namespace lgreco::kernels::avx512
