// Low-rank products on the CPU (PowerSGD, arXiv 1905.13727): gather and project, orthonormalise,
// reconstruct.
//
// A matrix is fp32, row-major, [rows, cols]. A factor is stored column by column: column j begins at
// j * stride and is as long as the side it belongs to (P: rows, Q: cols); the rest of the stride is
// not touched. Order of operations is fixed and the same at every instruction set level and on CUDA,
// so that ranks that recompute the same thing hold the same bits; only project and project_transposed,
// whose results are exchanged, may round differently between levels.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "kernels/run.h"

namespace lgreco::kernels {

/// Ranks up to which these products beat a BLAS's (LIMITS: one read of the matrix a product).
inline constexpr int kFusedRanks = 8;

struct Factor {
  float* data = nullptr;
  int64_t stride = 0;  ///< elements between columns' beginnings
};

LGRECO_HD float* column_of(const Factor& factor, int64_t column) {
  return factor.data + column * factor.stride;
}

/// matrix = gradient * feedback.inverse_scale + feedback.in (which may be null): the value to be coded,
/// in the residual's scale. `matrix` may be feedback.in's or feedback.out's memory where that is fp32.
Findings lowrank_gather(const void* gradient, DType dtype, int64_t numel, const Feedback& feedback,
                        float* matrix);

/// The same, and p = matrix * q in the same pass; rank 1..kFusedRanks.
Findings lowrank_gather_project(const void* gradient, DType dtype, int64_t rows, int64_t cols,
                                const Feedback& feedback, float* matrix, int rank, const Factor& q,
                                const Factor& p);

/// p = matrix * q, one read of the matrix; rank 1..kFusedRanks.
void lowrank_project(const float* matrix, int64_t rows, int64_t cols, int rank, const Factor& q,
                     const Factor& p);

/// q = matrix^T * p, one read of the matrix; rank 1..kFusedRanks.
void lowrank_project_transposed(const float* matrix, int64_t rows, int64_t cols, int rank,
                                const Factor& p, const Factor& q);

/// Orthonormalises the columns in place, in order (Gram-Schmidt, each column twice). A column that is
/// zero, denormal, not finite or linearly dependent on those before it up to 2^-18 of its norm becomes
/// exactly zero, so the result has columns of norm one or zero whatever comes in. Any rank, also above
/// `length`.
void lowrank_orthonormalise(const Factor& factor, int64_t length, int rank);

/// out = scale * p q^T over the gradient; rest = matrix - own_p own_q^T, which may be the matrix itself
/// or null (then `matrix` and the own factors are not read). Elements are sums over columns in ascending
/// order, from zero. The own factors may be p and q themselves, which costs less than equal ones. Any
/// rank.
Findings lowrank_reconstruct(int64_t rows, int64_t cols, int rank, const Factor& p, const Factor& q,
                             float scale, void* out, DType dtype, const float* matrix,
                             const Factor& own_p, const Factor& own_q, void* rest, DType rest_dtype);

/// Multiplies a column by the power of two that brings its largest magnitude near 1, so that a product
/// with it neither overflows nor loses denormals: what it spans stays as it is. False for a column of
/// zeros.
bool lowrank_scale_column(const Factor& factor, int64_t length, int column);

/// Fills column `column` with `length` draws from the normal distribution (approximately), the same on
/// every rank: Philox keyed by seed, layer and column.
void lowrank_seed_column(const Factor& factor, int64_t length, int column, uint64_t seed,
                         uint32_t layer);

}  // namespace lgreco::kernels
