// CUDA kernels of the low-rank codec over a batch: the twins of lowrank.h for many layers in one launch.
//
// The products are left to a BLAS; what every rank recomputes gives the CPU kernels' bits. A launch is
// in stream order and throws Error where it is refused; without CUDA every function throws Error and
// names the build flag.
#pragma once

#include <cstdint>
#include <vector>

#include "core/error.h"
#include "kernels/batch.h"

namespace lgreco::kernels {

/// A layer's factor in an arena of floats, or the columns of one that are to be seeded.
struct LowRankFactor {
  int64_t offset = 0;  ///< of column 0 in the arena
  int64_t stride = 0;  ///< elements between columns' beginnings, at least `length`
  int32_t length = 0;
  int32_t rank = 0;
  int32_t first_seeded = 0;  ///< lowrank_batch_seed() fills this column and those after it
  uint32_t layer = 0;        ///< for lowrank_batch_seed()
};
static_assert(sizeof(LowRankFactor) == 32);

/// A layer's matrix: rows, columns, where it lies and the factors that it is rebuilt from. Factors may
/// share memory; where both own offsets and strides are the exchanged ones' they are read once.
struct LowRankRun {
  int64_t gradient_offset = 0;   ///< elements into the bucket
  int64_t residual_offset = -1;  ///< elements into the arenas; -1: no error feedback for this run
  int64_t matrix_offset = 0;     ///< elements into the workspace
  int64_t bit = -1;              ///< the run's nonzero bit, counted from the wire's first bit; -1: none
  int32_t rows = 0;
  int32_t cols = 0;
  int32_t rank = 0;
  uint32_t first_tile = 0;  ///< index within the batch of the run's first tile: number_tiles()
  int64_t p_offset = 0, p_stride = 0;  ///< exchanged factors, in the arena of factors
  int64_t q_offset = 0, q_stride = 0;
  int64_t own_p_offset = 0, own_p_stride = 0;  ///< what this rank contributed
  int64_t own_q_offset = 0, own_q_stride = 0;
};
static_assert(sizeof(LowRankRun) == 112);

/// One CUDA block's part of a matrix.
inline constexpr int kTileRows = 64;
inline constexpr int kTileCols = 128;

/// Sets every run's first_tile. Returns the run of each of the batch's tiles. Both arrays go to the
/// device once per layout.
inline std::vector<uint32_t> number_tiles(std::vector<LowRankRun>& runs) {
  std::vector<uint32_t> tile_runs;
  for (size_t i = 0; i < runs.size(); ++i) {
    require(runs[i].rows >= 0 && runs[i].cols >= 0 && runs[i].rank >= 0, "rows, cols and rank of run ",
            i, " must be at least 0, got ", runs[i].rows, ", ", runs[i].cols, " and ", runs[i].rank);
    runs[i].first_tile = static_cast<uint32_t>(tile_runs.size());
    const int64_t high = (int64_t{runs[i].rows} + kTileRows - 1) / kTileRows;
    const int64_t wide = (int64_t{runs[i].cols} + kTileCols - 1) / kTileCols;
    tile_runs.insert(tile_runs.end(), static_cast<size_t>(high * wide), static_cast<uint32_t>(i));
  }
  return tile_runs;
}

/// Matrices of one bucket, in device memory.
struct LowRankBatch {
  const LowRankRun* runs = nullptr;
  const uint32_t* tile_runs = nullptr;  ///< as number_tiles() returns them
  uint32_t run_count = 0;
  uint32_t tile_count = 0;
};

/// matrix = gradient / loss scale + committed residual of every run, into the workspace. Sets the bits
/// of runs whose gradient has a nonzero element (`wire` may be null where no run has a bit) and flags
/// the step where a value is inf or NaN.
void lowrank_batch_gather(const LowRankBatch& batch, const void* gradient, DType dtype,
                          const BatchFeedback& feedback, DeviceTransaction* transaction,
                          float* workspace, uint8_t* wire, CudaStream stream);

/// lowrank_orthonormalise() of every factor: one CUDA block each.
void lowrank_batch_orthonormalise(const LowRankFactor* factors, uint32_t count, float* arena,
                                  CudaStream stream);

/// lowrank_seed_column() of every factor's columns from first_seeded on.
void lowrank_batch_seed(const LowRankFactor* factors, uint32_t count, uint64_t seed, float* arena,
                        CudaStream stream);

/// out = (factor * loss scale) * p q^T over the bucket and matrix - own_p own_q^T into the shadow arena;
/// flags the step where `out` holds an inf or NaN. The loss scale is 1 for a run without error feedback.
/// A run whose bit is clear becomes zeros and keeps its residual.
void lowrank_batch_reconstruct(const LowRankBatch& batch, const float* factors, float factor,
                               const float* workspace, const uint8_t* wire, void* out, DType dtype,
                               const BatchFeedback& feedback, DeviceTransaction* transaction,
                               CudaStream stream);

}  // namespace lgreco::kernels
