// Sparse coding by blocks: what CUDA threads do. The C++ tests run this file on the host.
#pragma once

#include "kernels/sparse_place_device.h"

namespace lgreco::kernels {

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

}  // namespace lgreco::kernels
