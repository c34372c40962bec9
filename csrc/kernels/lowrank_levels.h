// The low-rank kernels of each instruction set level, all to the contract of lowrank.h.
#pragma once

#include "kernels/lowrank.h"

namespace lgreco::kernels {

struct LowRankKernels {
  decltype(&lowrank_gather) gather;
  decltype(&lowrank_gather_project) gather_project;
  decltype(&lowrank_project) project;
  decltype(&lowrank_project_transposed) project_transposed;
  decltype(&lowrank_orthonormalise) orthonormalise;
  decltype(&lowrank_reconstruct) reconstruct;
};

namespace sse2 {
const LowRankKernels& lowrank_kernels();
}
namespace avx2 {
const LowRankKernels& lowrank_kernels();
}
namespace avx512 {
const LowRankKernels& lowrank_kernels();
}

}  // namespace lgreco::kernels
