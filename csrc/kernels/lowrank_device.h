// Gather, seeds and reconstruction: what CUDA threads do. The C++ tests run this file on the host.
//
// A CUDA block takes a tile of a matrix; a thread takes an octet of columns in four neighbouring rows.
#pragma once

#include "kernels/batch_device.h"
#include "kernels/lowrank_cuda.h"
#include "kernels/lowrank_math.h"

namespace lgreco::kernels {

inline constexpr int kTileThreads = 256;
inline constexpr int kThreadRows = 4;
static_assert(kTileThreads * kThreadRows * kOctet == kTileRows * kTileCols);

/// What is the same for all tiles of a launch.
struct Rebuilding {
  LowRankBatch batch;
  const float* factors;
  float factor;
  const float* workspace;
  const uint8_t* wire;
  BatchFeedback feedback;
};

/// A thread's part of a matrix: kThreadRows rows from `row`, of which `rows` exist, and the `count`
/// columns from `col`.
struct PlacedOctet {
  LowRankRun run;
  int row, col;
  int rows, count;
};

__device__ inline PlacedOctet place_octet(const LowRankBatch& batch) {
  PlacedOctet placed;
  placed.run = batch.runs[batch.tile_runs[blockIdx.x]];
  const int tile = static_cast<int>(blockIdx.x - placed.run.first_tile);
  const int wide = (placed.run.cols - 1) / kTileCols + 1;
  constexpr int kOctets = kTileCols / kOctet;
  const int thread = static_cast<int>(threadIdx.x);
  placed.row = tile / wide * kTileRows + thread / kOctets * kThreadRows;
  const int octet = tile % wide * kOctets + thread % kOctets;
  placed.col = octet * kOctet;
  placed.count = octet_count(placed.run.cols, octet);
  const int left = placed.run.rows - placed.row;
  placed.rows = placed.count == 0 || left < 0 ? 0 : left < kThreadRows ? left : kThreadRows;
  return placed;
}

/// Element of the run's matrix where row `r` of the thread's begins.
__device__ inline int64_t first_of(const PlacedOctet& placed, int r) {
  return static_cast<int64_t>(placed.row + r) * placed.run.cols + placed.col;
}

/// feedback_of() of batch_device.h for a matrix.
__device__ inline Feedback feedback_of(const BatchFeedback& feedback,
                                       const DeviceTransaction* transaction, const LowRankRun& run) {
  BatchRun place;
  place.residual_offset = run.residual_offset;
  return feedback_of(feedback, transaction, place);
}

static __global__ void __launch_bounds__(kTileThreads)
    lowrank_gather_kernel(const LowRankBatch batch, const void* gradient, DType dtype,
                          const BatchFeedback arenas, DeviceTransaction* transaction, float* workspace,
                          uint8_t* wire) {
  const PlacedOctet placed = place_octet(batch);
  const Feedback feedback = feedback_of(arenas, transaction, placed.run);
  bool nonzero = false, finite = true;
  for (int r = 0; r < placed.rows; ++r) {
    const int64_t first = first_of(placed, r);
    float values[kOctet], owed[kOctet] = {};
    load_octet(gradient, dtype, placed.run.gradient_offset + first, placed.count, values);
    if (feedback.in != nullptr) {
      load_octet(feedback.in, feedback.dtype, first, placed.count, owed);
    }
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      nonzero |= values[e] != 0.0F;
      values[e] *= feedback.inverse_scale;
      if (feedback.in != nullptr) values[e] += owed[e];
      finite &= is_finite(values[e]);
    }
    store_octet(workspace, DType::kFloat32, placed.run.matrix_offset + first, placed.count, values);
  }
  if (!finite) flag(transaction);
  if (placed.run.bit < 0) return;  // the same for all threads of the block
  if (any_of(32, nonzero) && threadIdx.x % 32 == 0) set_bit_at(wire, placed.run.bit);
}

static __global__ void __launch_bounds__(kTileThreads)
    lowrank_seed_kernel(const LowRankFactor* factors, uint64_t seed, float* arena) {
  const LowRankFactor factor = factors[blockIdx.x];
  for (int column = factor.first_seeded; column < factor.rank; ++column) {
    float* const to = arena + factor.offset + column * factor.stride;
    for (int i = static_cast<int>(threadIdx.x); i < factor.length; i += kTileThreads) {
      to[i] = seed_value(seed, factor.layer, static_cast<uint32_t>(column), static_cast<uint32_t>(i));
    }
  }
}

/// sums = p q^T of the thread's elements, over columns in ascending order.
__device__ inline void multiply_factors(const PlacedOctet& placed, const float* p, int64_t p_stride,
                                        const float* q, int64_t q_stride,
                                        float (&sums)[kThreadRows][kOctet]) {
  LGRECO_UNROLL
  for (int r = 0; r < kThreadRows; ++r) {
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) sums[r][e] = 0.0F;
  }
  for (int j = 0; j < placed.run.rank; ++j) {
    float values[kOctet], shares[kThreadRows];
    load_octet(q + j * q_stride, DType::kFloat32, placed.col, placed.count, values);
    LGRECO_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      shares[r] = r < placed.rows ? p[j * p_stride + placed.row + r] : 0.0F;
    }
    LGRECO_UNROLL
    for (int r = 0; r < kThreadRows; ++r) {
      LGRECO_UNROLL
      for (int e = 0; e < kOctet; ++e) sums[r][e] += shares[r] * values[e];
    }
  }
}

__device__ inline bool has_own_factors(const LowRankRun& run) {
  return run.own_p_offset != run.p_offset || run.own_q_offset != run.q_offset ||
         run.own_p_stride != run.p_stride || run.own_q_stride != run.q_stride;
}

/// Nothing came: the gradient becomes zeros and the shadow what is committed.
__device__ inline void keep_matrix(const PlacedOctet& placed, const Feedback& feedback, void* out,
                                   DType dtype) {
  for (int r = 0; r < placed.rows; ++r) {
    const int64_t first = first_of(placed, r);
    float zeros[kOctet] = {};
    store_octet(out, dtype, placed.run.gradient_offset + first, placed.count, zeros);
    keep_residual(feedback, first, placed.count);
  }
}

static __global__ void __launch_bounds__(kTileThreads)
    lowrank_reconstruct_kernel(const Rebuilding rebuilding, void* out, DType dtype,
                               DeviceTransaction* transaction) {
  const PlacedOctet placed = place_octet(rebuilding.batch);
  if (placed.rows == 0) return;
  const LowRankRun& run = placed.run;
  const Feedback feedback = feedback_of(rebuilding.feedback, transaction, run);
  if (run.bit >= 0 && !bit_at(rebuilding.wire, run.bit)) {
    return keep_matrix(placed, feedback, out, dtype);
  }
  const float* const factors = rebuilding.factors;
  float sums[kThreadRows][kOctet];
  multiply_factors(placed, factors + run.p_offset, run.p_stride, factors + run.q_offset, run.q_stride,
                   sums);
  const float scale = rebuilding.factor * feedback.scale;
  bool finite = true;
  LGRECO_UNROLL
  for (int r = 0; r < kThreadRows; ++r) {
    if (r >= placed.rows) continue;
    float values[kOctet];
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) values[e] = sums[r][e] * scale;
    store_octet(out, dtype, run.gradient_offset + first_of(placed, r), placed.count, values);
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) finite &= e >= placed.count || is_finite(values[e]);
  }
  if (!finite) flag(transaction);
  if (feedback.out == nullptr) return;
  if (has_own_factors(run)) {
    multiply_factors(placed, factors + run.own_p_offset, run.own_p_stride, factors + run.own_q_offset,
                     run.own_q_stride, sums);
  }
  LGRECO_UNROLL
  for (int r = 0; r < kThreadRows; ++r) {
    if (r >= placed.rows) continue;
    const int64_t first = first_of(placed, r);
    float values[kOctet];
    load_octet(rebuilding.workspace, DType::kFloat32, run.matrix_offset + first, placed.count, values);
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) values[e] -= sums[r][e];
    store_octet(feedback.out, feedback.dtype, first, placed.count, values);
  }
}

}  // namespace lgreco::kernels
