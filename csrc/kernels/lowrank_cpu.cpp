// Low-rank products on the CPU: the choice of instruction set level, and what is the same at each.
#include <algorithm>

#include "core/cpu_dispatch.h"
#include "kernels/lowrank_levels.h"
#include "kernels/lowrank_math.h"

namespace lgreco::kernels {
namespace {

const LowRankKernels& kernels_in_use() {
  switch (cpu_level()) {
    case CpuLevel::kAvx512: return avx512::lowrank_kernels();
    case CpuLevel::kAvx2: return avx2::lowrank_kernels();
    case CpuLevel::kBaseline: break;
  }
  return sse2::lowrank_kernels();
}

}  // namespace

Findings lowrank_gather(const void* gradient, DType dtype, int64_t numel, const Feedback& feedback,
                        float* matrix) {
  return kernels_in_use().gather(gradient, dtype, numel, feedback, matrix);
}

Findings lowrank_gather_project(const void* gradient, DType dtype, int64_t rows, int64_t cols,
                                const Feedback& feedback, float* matrix, int rank, const Factor& q,
                                const Factor& p) {
  return kernels_in_use().gather_project(gradient, dtype, rows, cols, feedback, matrix, rank, q, p);
}

void lowrank_project(const float* matrix, int64_t rows, int64_t cols, int rank, const Factor& q,
                     const Factor& p) {
  kernels_in_use().project(matrix, rows, cols, rank, q, p);
}

void lowrank_project_transposed(const float* matrix, int64_t rows, int64_t cols, int rank,
                                const Factor& p, const Factor& q) {
  kernels_in_use().project_transposed(matrix, rows, cols, rank, p, q);
}

void lowrank_orthonormalise(const Factor& factor, int64_t length, int rank) {
  kernels_in_use().orthonormalise(factor, length, rank);
}

Findings lowrank_reconstruct(int64_t rows, int64_t cols, int rank, const Factor& p, const Factor& q,
                             float scale, void* out, DType dtype, const float* matrix,
                             const Factor& own_p, const Factor& own_q, void* rest, DType rest_dtype) {
  return kernels_in_use().reconstruct(rows, cols, rank, p, q, scale, out, dtype, matrix, own_p, own_q,
                                      rest, rest_dtype);
}

bool lowrank_scale_column(const Factor& factor, int64_t length, int column) {
  float* const values = column_of(factor, column);
  uint32_t largest = 0;
  for (int64_t i = 0; i < length; ++i) largest = std::max(largest, bits_of(values[i]) & 0x7FFFFFFFU);
  if (largest == 0) return false;
  const float scale = unit_scale(largest);
  for (int64_t i = 0; i < length; ++i) values[i] *= scale;
  return true;
}

void lowrank_seed_column(const Factor& factor, int64_t length, int column, uint64_t seed,
                         uint32_t layer) {
  float* const to = column_of(factor, column);
  for (int64_t i = 0; i < length; ++i) {
    to[i] = seed_value(seed, layer, static_cast<uint32_t>(column), static_cast<uint32_t>(i));
  }
}

}  // namespace lgreco::kernels
