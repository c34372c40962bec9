// A sparse block where it lies: the CUDA threads of a team find its place and read what it holds.
#pragma once

#include "kernels/batch_device.h"
#include "kernels/octet.h"
#include "kernels/sparse_pick_device.h"

namespace lgreco::kernels {

/// What is the same for all blocks of a launch.
struct SparseCoding {
  SparseSpec spec;
  SparseShape whole;  ///< of a whole block
  Batch batch;
  BatchFeedback feedback;
  const DeviceTransaction* transaction;
  uint64_t seed;
};

inline SparseCoding sparse_coding_of(const SparseSpec& spec, const Batch& batch,
                                     const BatchFeedback& feedback, const DeviceTransaction* transaction,
                                     uint64_t seed) {
  require(spec.block_numel == batch.block_numel, "the batch was numbered for blocks of ",
          batch.block_numel, " elements, the codec has ", spec.block_numel);
  return {spec, sparse_shape(spec, spec.block_numel), batch, feedback, transaction, seed};
}

/// A block as its team sees it.
struct SparsePlace {
  PlacedBlock placed;
  SparseShape shape;
  Feedback feedback;
  Noise noise;
  int64_t wire_offset;

  __device__ uint32_t block() const { return static_cast<uint32_t>(placed.index); }
};

__device__ inline SparsePlace place_sparse(const SparseCoding& coding) {
  SparsePlace place;
  place.placed = place_block(coding.batch, blockIdx.x);
  const BatchRun& run = place.placed.run;
  const bool whole = place.placed.numel == coding.whole.numel;
  place.shape = whole ? coding.whole : sparse_shape(coding.spec, place.placed.numel);
  place.feedback = feedback_of(coding.feedback, coding.transaction, run);
  place.noise = {coding.seed, coding.transaction->step, run.stream, run.first_block};
  place.wire_offset = run.wire_offset + static_cast<int64_t>(place.placed.index) * coding.whole.bytes;
  return place;
}

__device__ inline float load_at(const void* base, DType dtype, int64_t element) {
  return load_aligned(static_cast<const uint8_t*>(base) + element * stride_bytes_of(dtype), dtype);
}
__device__ inline float store_at(void* base, DType dtype, int64_t element, float value) {
  return store_aligned(static_cast<uint8_t*>(base) + element * stride_bytes_of(dtype), dtype, value);
}

/// Bits [bit, bit + count) of a block of `bytes`; 1 to 32 of them.
__device__ inline uint32_t bits_at(const uint32_t* block, int bytes, int bit, int count) {
  const int word = bit / 32;
  const uint64_t low = block[word];
  const uint64_t high = word + 1 < bytes / 4 ? block[word + 1] : 0U;
  return static_cast<uint32_t>((low | high << 32) >> (bit % 32)) & (kAllLanes >> (32 - count));
}

/// Value number `i` of a block.
__device__ inline float value_at(const SparseSpec& spec, const SparseShape& shape, const Grid& grid,
                                 const uint32_t* block, int i) {
  const int first = has_integer_values(spec) ? 32 : 0;
  const uint32_t coded = bits_at(block, shape.bytes, first + i * spec.value_bits, spec.value_bits);
  return decode_value(spec.value_bits, grid, coded);
}

/// Calls `visit(element, value)` for the kept elements of a coded block, each in some thread. All
/// threads must call it.
template <class Team, typename Visit>
__device__ void each_kept(const SparseCoding& coding, const SparsePlace& place, const uint32_t* block,
                          uint32_t* slots, const Visit& visit) {
  const SparseSpec& spec = coding.spec;
  const SparseShape& shape = place.shape;
  Grid grid{0.0F, 0.0F, 0.0F};
  if (has_integer_values(spec)) {
    grid.step = float_of(block[0]);
    grid.lo = symmetric_low(spec.value_bits, grid.step);
  }
  if (spec.random) {
    each_drawn<Team>(shape, place.noise, place.block(),
                     [&](int i, int element) { visit(element, value_at(spec, shape, grid, block, i)); });
    return;
  }
  const int first_bit = shape.value_bytes * 8;
  uint32_t carried = 0;
  for (int first = 0; first < shape.high_bits; first += 32 * Team::kThreads) {
    const int bit = first + 32 * Team::thread(), left = shape.high_bits - bit;
    uint32_t set = 0;
    if (left > 0) set = bits_at(block, shape.bytes, first_bit + bit, left < 32 ? left : 32);
    uint32_t total;
    const uint32_t before = Team::sum_before(static_cast<uint32_t>(__popc(set)), slots, total);
    int i = static_cast<int>(carried + before);
    carried += total;
    for (; set != 0; set &= set - 1, ++i) {
      uint32_t low = 0;
      if (shape.low_bits > 0) {
        low = bits_at(block, shape.bytes, first_bit + shape.high_bits + i * shape.low_bits,
                      shape.low_bits);
      }
      const int element = index_of(shape, bit + __ffs(static_cast<int>(set)) - 1, i, low);
      visit(element, value_at(spec, shape, grid, block, i));
    }
  }
}

/// values[c] += residual of the element, in the gradient's scale.
__device__ inline float with_residual(const SparsePlace& place, int i, float value) {
  if (place.feedback.in == nullptr) return value;
  return value +
         load_at(place.feedback.in, place.feedback.dtype, place.placed.first + i) * place.feedback.scale;
}

/// The shadow becomes what is committed: the block was not coded in this step.
template <class Team>
__device__ void keep_block(const SparsePlace& place) {
  if (place.feedback.in == nullptr) return;
  for (int i = Team::thread(); i < place.shape.numel; i += Team::kThreads) {
    const int64_t element = place.placed.first + i;
    store_at(place.feedback.out, place.feedback.dtype, element,
             load_at(place.feedback.in, place.feedback.dtype, element));
  }
}

}  // namespace lgreco::kernels
