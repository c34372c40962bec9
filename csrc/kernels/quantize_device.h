// Uniform quantisation by blocks: what CUDA threads do. The C++ tests run this file on the host.
#pragma once

#include "kernels/batch_device.h"
#include "kernels/lane_group.h"
#include "kernels/octet.h"
#include "kernels/quantize_math.h"

namespace lgreco::kernels {

inline constexpr uint32_t kNonzero = 1, kNonfinite = 2;

/// What is the same for all blocks of a launch.
struct Coding {
  QuantizeSpec spec;
  int32_t metadata_bytes;
  int32_t block_bytes;  ///< of a whole block
  Batch batch;
  BatchFeedback feedback;
  const DeviceTransaction* transaction;
  uint64_t seed;
};

__device__ inline int64_t wire_offset_of(const Coding& coding, const PlacedBlock& placed) {
  return placed.run.wire_offset + static_cast<int64_t>(placed.index) * coding.block_bytes;
}

__device__ inline Grid load_grid(const Coding& coding, const uint32_t* block) {
  return grid_of_words(coding.spec, block[0], coding.metadata_bytes > 4 ? block[1] : 0U);
}

__device__ inline void store_grid(const Coding& coding, const Grid& grid, uint8_t* block) {
  const uint64_t words = words_of_grid(coding.spec, grid);
  if (coding.metadata_bytes == 2) {
    *reinterpret_cast<uint16_t*>(block) = static_cast<uint16_t>(words);
  } else {
    reinterpret_cast<uint32_t*>(block)[0] = static_cast<uint32_t>(words);
    if (coding.metadata_bytes == 8)
      reinterpret_cast<uint32_t*>(block)[1] = static_cast<uint32_t>(words >> 32);
  }
}

/// The eight draws of this thread's octet. The whole warp must call it.
template <typename Group>
__device__ void draw_octet(const Noise& noise, uint32_t block, int octet, uint32_t (&draw)[kOctet]) {
  using Table = DrawTable<Group::kWidth>;
  __shared__ Wide tables[Group::kWarps][Table::kPlaces];
  Wide* const table = tables[threadIdx.x / 32];
  const int thread = static_cast<int>(threadIdx.x) % 32;
  for (int lane = octet; lane < octet + Table::kSpan; lane += Group::kWidth) {
    const Philox4 draws = lane_draws(noise, block, static_cast<uint32_t>(lane) / 16, lane % 16);
    table[Table::place(thread, lane)] = {{draws.word[0], draws.word[1], draws.word[2], draws.word[3]}};
  }
  __syncwarp();
  const uint32_t slot = draw_slot(octet);
  LGRECO_UNROLL
  for (int e = 0; e < kOctet; ++e) {
    const uint32_t word = table[Table::place(thread, draw_lane(octet, e))].word[slot >> 1];
    draw[e] = word >> (16 * (slot & 1U)) & 0xFFFFU;
  }
  __syncwarp();  // before the next octet's draws overwrite the table
}

/// Spread::mean_of_largest of a block, the same in every thread of its group. All threads of the CUDA
/// block must call it, at most once a kernel. A thread's octets are all even ones or all odd ones, so
/// what it holds belongs to the same eight lanes.
template <typename Group>
__device__ float mean_of_largest(int numel, const float (&values)[Group::kChunks][kOctet]) {
  static_assert(Group::kLanes % 2 == 0 && kSpreadLanes == 2 * kOctet);
  float own[kOctet] = {}, sums[kOctet];
  LGRECO_UNROLL
  for (int c = 0; c < Group::kChunks; ++c) {
    const int count = octet_count(numel, Group::octet(c));
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) own[e] = e < count ? fmaxf(own[e], fabsf(values[c][e])) : own[e];
  }
  LGRECO_UNROLL
  for (int e = 0; e < kOctet; ++e) {
    for (int step = Group::kWidth / 2; step > 1; step /= 2) {
      own[e] = fmaxf(own[e], __shfl_xor_sync(kAllLanes, own[e], step));
    }
  }
  if constexpr (Group::kSpansWarps) {
    __shared__ float of_warp[Group::kWarps][kSpreadLanes];
    const int first = static_cast<int>(threadIdx.x) % 2 * kOctet;
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      if (threadIdx.x % 32 < 2) of_warp[threadIdx.x / 32][first + e] = own[e];
    }
    __syncthreads();
    for (int warp = 0; warp < Group::kWarps; ++warp) {
      LGRECO_UNROLL
      for (int e = 0; e < kOctet; ++e) own[e] = fmaxf(own[e], of_warp[warp][first + e]);
    }
  }
  LGRECO_UNROLL
  for (int e = 0; e < kOctet; ++e) sums[e] = own[e] + __shfl_xor_sync(kAllLanes, own[e], 1);
  LGRECO_UNROLL
  for (int half = kOctet / 2; half > 0; half /= 2) {
    LGRECO_UNROLL
    for (int e = 0; e < half; ++e) sums[e] += sums[e + half];
  }
  return sums[0] * (1.0F / kSpreadLanes);
}

/// Codes a block's values at `block` of the wire and stores what the codes leave out. All threads of
/// the CUDA block must call it, also those without elements.
template <typename Group>
__device__ void encode_block(const Coding& coding, const PlacedBlock& placed, const Feedback& feedback,
                             const Extent& extent, float (&values)[Group::kChunks][kOctet],
                             uint8_t* block) {
  const QuantizeSpec& spec = coding.spec;
  const bool finite = (extent.marks & kNonfinite) == 0;
  Spread spread{extent.low, extent.high, 0.0F};
  if (spec.grid == GridKind::kClipped) {
    spread.mean_of_largest = mean_of_largest<Group>(placed.numel, values);
  }
  const Grid grid = finite ? make_grid(spec, spread, placed.numel) : broken_grid();
  const bool sound = is_finite(grid.step);
  const int max = max_code(spec);
  if (Group::lane() == 0 && placed.numel > 0) store_grid(coding, grid, block);
  const Noise noise{.seed = coding.seed,
                    .step = coding.transaction->step,
                    .stream = placed.run.stream,
                    .first_block = placed.run.first_block};
  uint8_t* codes = block + coding.metadata_bytes;
  const int last_octet = (placed.numel - 1) / kOctet;
  const int padding = 4 * quantized_block_words(coding.metadata_bytes, spec.bits, placed.numel) -
                      coding.metadata_bytes - (placed.numel * spec.bits + 7) / 8;
  LGRECO_UNROLL
  for (int c = 0; c < Group::kChunks; ++c) {
    const int octet = Group::octet(c);
    const int count = octet_count(placed.numel, octet);
    uint32_t draw[kOctet] = {};
    if (spec.stochastic) draw_octet<Group>(noise, static_cast<uint32_t>(placed.index), octet, draw);
    if (count == 0) continue;
    uint32_t code[kOctet];
    float error[kOctet];
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      const float value = values[c][e];
      int own = 0;
      if (sound && e < count) {
        own = spec.stochastic ? stochastic_code(value, grid, draw[e], max)
                              : nearest_code(value, grid, max);
      }
      code[e] = static_cast<uint32_t>(own);
      error[e] = sound ? (value - decode_code(grid, own)) * feedback.inverse_scale : 0.0F;
    }
    store_codes(codes + octet * spec.bits, pack_codes(code, spec.bits), spec.bits, count,
                octet == last_octet ? padding : 0);
    if (feedback.out != nullptr) {
      store_octet(feedback.out, feedback.dtype, placed.first + octet * kOctet, count, error);
    }
  }
}

template <typename Group>
__device__ Extent extent_of(int numel, const float (&values)[Group::kChunks][kOctet], uint32_t marks) {
  Extent extent{float_of(0x7F800000U), float_of(0xFF800000U), marks};
  LGRECO_UNROLL
  for (int c = 0; c < Group::kChunks; ++c) {
    const int count = octet_count(numel, Group::octet(c));
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) {
      if (e >= count) continue;
      extent.low = fminf(extent.low, values[c][e]);
      extent.high = fmaxf(extent.high, values[c][e]);
      if (!is_finite(values[c][e])) extent.marks |= kNonfinite;
    }
  }
  return Group::agree(extent);
}

template <typename Group>
__global__ void __launch_bounds__(Group::kThreads)
    quantize_encode_kernel(const Coding coding, const void* gradient, DType dtype, uint8_t* wire) {
  const PlacedBlock placed = place_block(coding.batch, Group::block());
  const Feedback feedback = feedback_of(coding.feedback, coding.transaction, placed.run);
  float values[Group::kChunks][kOctet];
  uint32_t marks = 0;
  LGRECO_UNROLL
  for (int c = 0; c < Group::kChunks; ++c) {
    const int count = octet_count(placed.numel, Group::octet(c));
    const int64_t first = placed.first + Group::octet(c) * kOctet;
    load_octet(gradient, dtype, placed.run.gradient_offset + first, count, values[c]);
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) marks |= values[c][e] != 0.0F ? kNonzero : 0U;
    add_residual(feedback, first, count, values[c]);
  }
  const Extent extent = extent_of<Group>(placed.numel, values, marks);
  if (Group::lane() == 0 && (extent.marks & kNonzero) != 0) set_bit_at(wire, placed.run.bit);
  encode_block<Group>(coding, placed, feedback, extent, values, wire + wire_offset_of(coding, placed));
}

template <typename Group>
__global__ void __launch_bounds__(Group::kThreads)
    quantize_reduce_kernel(const Coding coding, const BatchPayloads payloads, float factor,
                           uint8_t* out) {
  PlacedBlock placed = place_block(coding.batch, Group::block());
  const Feedback feedback = feedback_of(coding.feedback, coding.transaction, placed.run);
  const bool wanted = is_wanted(payloads, placed, Group::lane() % Group::kWidth, Group::kWidth);
  if (!wanted) {
    LGRECO_UNROLL
    for (int c = 0; c < Group::kChunks; ++c) {
      const int octet = Group::octet(c);
      keep_residual(feedback, placed.first + octet * kOctet, octet_count(placed.numel, octet));
    }
    placed.numel = 0;  // the threads still take part in what their group agrees on
  }
  const int64_t offset = wire_offset_of(coding, placed);
  const int bits = coding.spec.bits;
  const int words = quantized_block_words(coding.metadata_bytes, bits, placed.numel);
  float values[Group::kChunks][kOctet] = {};
  for (int rank = 0; rank < payloads.count && wanted; ++rank) {
    const auto* block = reinterpret_cast<const uint32_t*>(payload_of(payloads, rank) + offset);
    const Grid grid = load_grid(coding, block);
    LGRECO_UNROLL
    for (int c = 0; c < Group::kChunks; ++c) {
      const int octet = Group::octet(c);
      if (octet_count(placed.numel, octet) == 0) continue;
      const uint64_t packed = load_codes(block, words, coding.metadata_bytes + octet * bits, bits);
      LGRECO_UNROLL
      for (int e = 0; e < kOctet; ++e) {
        const float decoded = decode_code(grid, static_cast<int>(unpack_code(packed, bits, e)));
        values[c][e] = rank == 0 ? decoded : values[c][e] + decoded;
      }
    }
  }
  LGRECO_UNROLL
  for (int c = 0; c < Group::kChunks; ++c) {
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) values[c][e] *= factor;
    const int octet = Group::octet(c);
    add_residual(feedback, placed.first + octet * kOctet, octet_count(placed.numel, octet), values[c]);
  }
  // Every thread has read its payloads before it takes part in this, so `out` may be one of them.
  const Extent extent = extent_of<Group>(placed.numel, values, 0);
  if (Group::lane() == 0 && wanted) set_bit_at(out, placed.run.bit);
  encode_block<Group>(coding, placed, feedback, extent, values, out + offset);
}

/// Threads need nothing of each other: 2^`lanes_log2` of them take a block's octets in turn.
static __global__ void __launch_bounds__(kFlatThreads)
    quantize_decode_kernel(const Coding coding, int lanes_log2, const uint8_t* wire, void* out,
                           DType dtype, DeviceTransaction* transaction) {
  const uint64_t thread = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const PlacedBlock placed = place_block(coding.batch, static_cast<uint32_t>(thread >> lanes_log2));
  if (placed.numel == 0) return;
  const Feedback feedback = feedback_of(coding.feedback, coding.transaction, placed.run);
  const int lanes = 1 << lanes_log2, bits = coding.spec.bits;
  const bool coded = bit_at(wire, placed.run.bit);
  const auto* block = reinterpret_cast<const uint32_t*>(wire + wire_offset_of(coding, placed));
  const int words = quantized_block_words(coding.metadata_bytes, bits, placed.numel);
  const Grid grid = load_grid(coding, block);
  bool finite = !coded || is_sound(grid, max_code(coding.spec));
  for (int octet = static_cast<int>(thread) & (lanes - 1); octet * kOctet < placed.numel;
       octet += lanes) {
    const int count = octet_count(placed.numel, octet);
    const int64_t first = placed.first + octet * kOctet;
    float values[kOctet] = {};
    if (coded) {
      const uint64_t packed = load_codes(block, words, coding.metadata_bytes + octet * bits, bits);
      LGRECO_UNROLL
      for (int e = 0; e < kOctet; ++e) {
        values[e] = e < count ? decode_code(grid, static_cast<int>(unpack_code(packed, bits, e))) : 0.0F;
      }
    } else {
      keep_residual(feedback, first, count);
    }
    store_octet(out, dtype, placed.run.gradient_offset + first, count, values);
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) finite &= is_finite(values[e]);
  }
  if (!finite) flag(transaction);
}

inline Coding coding_of(const QuantizeSpec& spec, const Batch& batch, const BatchFeedback& feedback,
                        const DeviceTransaction* transaction, uint64_t seed) {
  require(spec.bits >= 1 && spec.bits <= 8, "bits must be 1..8, got ", spec.bits);
  require(spec.block_numel == batch.block_numel, "the batch was numbered for blocks of ",
          batch.block_numel, " elements, the codec has ", spec.block_numel);
  return {spec,
          static_cast<int32_t>(quantize_metadata_bytes(spec)),
          static_cast<int32_t>(quantize_block_bytes(spec, spec.block_numel)),
          batch,
          feedback,
          transaction,
          seed};
}

}  // namespace lgreco::kernels
