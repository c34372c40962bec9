// Sparse coding by blocks: what CUDA threads do. The C++ tests run this file on the host.
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

/// Stores the codes of the kept elements' values and leaves in `values` what the codes leave out.
template <class Team>
__device__ void store_values(const SparseShape& shape, const ValueCode& code,
                             float (&values)[Team::kChunks], SparseShared<Team>& shared,
                             uint8_t* block) {
  if (code.bits <= 8 && Team::thread() == 0) store_aligned(block, DType::kFloat32, code.grid.step);
  for (int base = 0; base < shape.kept; base += Team::kTileNumel) {
    const int left = shape.kept - base, some = left < Team::kTileNumel ? left : Team::kTileNumel;
    const auto each_here = [&](const auto& visit) {
      Team::each_element(shape.numel, [&](int c, int i) {
        if (!is_selected(shared, shape.numel, i)) return;
        const int place = number_of(shared, i) - base;
        if (place >= 0 && place < some) visit(values[c], shared.tile[place]);
      });
    };
    each_here([](float& value, float& slot) { slot = value; });
    __syncthreads();
    for (int octet = Team::thread(); octet * kOctet < some; octet += Team::kThreads) {
      const int count = octet_count(some, octet);
      uint32_t coded[kOctet] = {};
      for (int e = 0; e < count; ++e) {
        float& value = shared.tile[octet * kOctet + e];
        coded[e] = code_value(code, value);
        value = code.sound ? value - decode_value(code.bits, code.grid, coded[e]) : 0.0F;
        const int i = base + octet * kOctet + e;
        if (code.bits == 32) reinterpret_cast<uint32_t*>(block)[i] = coded[e];
        if (code.bits == 16) reinterpret_cast<uint16_t*>(block)[i] = static_cast<uint16_t>(coded[e]);
      }
      if (code.bits > 8) continue;
      store_codes(block + 4 + (base / kOctet + octet) * code.bits, pack_codes(coded, code.bits),
                  code.bits, count, 0);
    }
    __syncthreads();
    each_here([](float& value, const float& slot) { value = slot; });
    __syncthreads();
  }
}

/// Stores the index code, and zeros up to the block's end.
template <class Team>
__device__ void store_index(const SparseShape& shape, SparseShared<Team>& shared, uint8_t* block) {
  const uint32_t* code = shared.selected;
  if (shape.low_bits > 0) {
    code = shared.code;
    for (int bit = 32 * Team::thread(); bit < sparse_index_bits(shape); bit += 32 * Team::kThreads) {
      shared.code[bit / 32] = 0;
    }
    __syncthreads();
    Team::each_element(shape.numel, [&](int, int element) {
      if (!is_selected(shared, shape.numel, element)) return;
      const int i = number_of(shared, element), bit = index_bit(shape, element, i);
      atomicOr(&shared.code[bit / 32], 1U << (bit % 32));
      const uint32_t low = static_cast<uint32_t>(element) & ((1U << shape.low_bits) - 1U);
      const int place = shape.high_bits + i * shape.low_bits, shift = place % 32;
      atomicOr(&shared.code[place / 32], low << shift);
      if (shift + shape.low_bits > 32) atomicOr(&shared.code[place / 32 + 1], low >> (32 - shift));
    });
    __syncthreads();
  }
  const int code_bytes = (sparse_index_bits(shape) + 7) / 8;
  for (int i = Team::thread(); i < shape.bytes - shape.value_bytes; i += Team::kThreads) {
    const uint32_t byte = i < code_bytes ? code[i / 4] >> (i % 4 * 8) : 0U;
    block[shape.value_bytes + i] = static_cast<uint8_t>(byte);
  }
}

/// Codes a block's values at `block` of the wire and stores what is left out. All threads must call it,
/// and none may have writes to shared memory under way.
template <class Team>
__device__ void code_sparse(const SparseCoding& coding, const SparsePlace& place,
                            float (&values)[Team::kChunks], SparseShared<Team>& shared, uint8_t* block) {
  const SparseSpec& spec = coding.spec;
  const SparseShape& shape = place.shape;
  uint32_t largest = 0;
  Team::each_element(shape.numel, [&](int c, int i) {
    const uint32_t magnitude = i < shape.numel ? magnitude_of(values[c]) : 0U;
    largest = magnitude > largest ? magnitude : largest;
  });
  largest = Team::greatest(largest, shared.slots);
  const bool finite = largest < kNonfiniteMagnitude;
  if (spec.random) {
    select_drawn<Team>(shape, place.noise, place.block(), shared);
    largest = 0;
    Team::each_element(shape.numel, [&](int c, int i) {
      const uint32_t magnitude = is_selected(shared, shape.numel, i) ? magnitude_of(values[c]) : 0U;
      largest = magnitude > largest ? magnitude : largest;
    });
    largest = Team::greatest(largest, shared.slots);
  }
  const ValueCode code = value_code(spec, float_of(largest), finite);
  if (!spec.random && code.sound) select_largest<Team>(shape, values, shared);
  if (!spec.random && !code.sound) select_first<Team>(shape, shared);
  store_values<Team>(shape, code, values, shared, block);
  store_index<Team>(shape, shared, block);
  if (place.feedback.out == nullptr) return;
  Team::each_element(shape.numel, [&](int c, int i) {
    if (i >= shape.numel) return;
    const float error = code.sound ? values[c] * place.feedback.inverse_scale : 0.0F;
    store_at(place.feedback.out, place.feedback.dtype, place.placed.first + i, error);
  });
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

template <class Team>
__global__ void __launch_bounds__(Team::kThreads)
    sparse_encode_kernel(const SparseCoding coding, const void* gradient, DType dtype, uint8_t* wire) {
  __shared__ SparseShared<Team> shared;
  const SparsePlace place = place_sparse(coding);
  const BatchRun& run = place.placed.run;
  float values[Team::kChunks];
  bool nonzero = false;
  Team::each_element(place.shape.numel, [&](int c, int i) {
    if (i >= place.shape.numel) return;
    const float value = load_at(gradient, dtype, run.gradient_offset + place.placed.first + i);
    nonzero |= value != 0.0F;
    values[c] = with_residual(place, i, value);
  });
  if (any_of(32, nonzero) && Team::lane() == 0) set_bit_at(wire, run.bit);
  code_sparse<Team>(coding, place, values, shared, wire + place.wire_offset);
}

template <class Team>
__global__ void __launch_bounds__(Team::kThreads)
    sparse_reduce_kernel(const SparseCoding coding, const BatchPayloads payloads, float factor,
                         uint8_t* out) {
  __shared__ SparseShared<Team> shared;
  const SparsePlace place = place_sparse(coding);
  if (!is_wanted(payloads, place.placed, Team::lane(), 32)) return keep_block<Team>(place);
  const int numel = place.shape.numel;
  float values[Team::kChunks];
  // Tile by tile, each of which all payloads are added to in rank order.
  for (int first = 0; first < numel; first += Team::kTileNumel) {
    for (int i = Team::thread(); i < Team::kTileNumel; i += Team::kThreads) shared.tile[i] = 0.0F;
    __syncthreads();
    for (int rank = 0; rank < payloads.count; ++rank) {
      const auto* block =
          reinterpret_cast<const uint32_t*>(payload_of(payloads, rank) + place.wire_offset);
      each_kept<Team>(coding, place, block, shared.slots, [&](int element, float value) {
        const int i = element - first;
        if (i >= 0 && i < Team::kTileNumel) shared.tile[i] += value;
      });
      __syncthreads();
    }
    Team::each_element(numel, [&](int c, int i) {
      if (i < first || i >= first + Team::kTileNumel || i >= numel) return;
      values[c] = with_residual(place, i, shared.tile[i - first] * factor);
    });
    __syncthreads();
  }
  // Every thread has read its payloads by now, so `out` may be one of them.
  if (Team::thread() == 0) set_bit_at(out, place.placed.run.bit);
  code_sparse<Team>(coding, place, values, shared, out + place.wire_offset);
}

template <class Team>
__global__ void __launch_bounds__(Team::kThreads)
    sparse_decode_kernel(const SparseCoding coding, const uint8_t* wire, void* out, DType dtype,
                         DeviceTransaction* transaction) {
  __shared__ uint32_t slots[Team::kWarps];
  const SparsePlace place = place_sparse(coding);
  const int64_t begin = place.placed.run.gradient_offset + place.placed.first;
  for (int i = Team::thread(); i < place.shape.numel; i += Team::kThreads) {
    store_at(out, dtype, begin + i, 0.0F);
  }
  if (!bit_at(wire, place.placed.run.bit)) return keep_block<Team>(place);
  __syncthreads();  // zeros first
  bool finite = true;
  const auto* block = reinterpret_cast<const uint32_t*>(wire + place.wire_offset);
  each_kept<Team>(coding, place, block, slots, [&](int element, float value) {
    finite &= is_finite(store_at(out, dtype, begin + element, value));
  });
  if (!finite) flag(transaction);
}

inline SparseCoding sparse_coding_of(const SparseSpec& spec, const Batch& batch,
                                     const BatchFeedback& feedback, const DeviceTransaction* transaction,
                                     uint64_t seed) {
  require(spec.block_numel == batch.block_numel, "the batch was numbered for blocks of ",
          batch.block_numel, " elements, the codec has ", spec.block_numel);
  return {spec, sparse_shape(spec, spec.block_numel), batch, feedback, transaction, seed};
}

}  // namespace lgreco::kernels
