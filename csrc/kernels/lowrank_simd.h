// The low-rank kernels over sixteen lanes, for any level that offers them.
#pragma once

#include "kernels/lowrank_levels.h"
#include "kernels/lowrank_simd_basis.h"
#include "kernels/lowrank_simd_products.h"
#include "kernels/lowrank_simd_rebuild.h"

namespace lgreco::kernels {

/// `Lanes`: see lanes_avx512.h.
template <class Lanes>
constexpr LowRankKernels lowrank_kernels_over() {
  return {&LowRankGather<Lanes>::gather,        &LowRankProducts<Lanes>::gather_project,
          &LowRankProducts<Lanes>::project,     &LowRankProducts<Lanes>::project_transposed,
          &LowRankBasis<Lanes>::orthonormalise, &LowRankRebuild<Lanes>::reconstruct};
}

}  // namespace lgreco::kernels
