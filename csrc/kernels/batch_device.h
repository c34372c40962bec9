// A batch as CUDA threads see it: the block they work on, its residual, its run's nonzero bit.
#pragma once

#include "kernels/batch.h"
#include "kernels/lane_group.h"
#include "kernels/octet.h"

namespace lgreco::kernels {

/// One block of a batch as its threads see it; numel is 0 beyond the batch's end.
struct PlacedBlock {
  BatchRun run;
  int32_t index;  ///< within the run
  int32_t numel;
  int64_t first;  ///< element within the run
};

__device__ inline PlacedBlock place_block(const Batch& batch, uint32_t block) {
  if (block >= batch.block_count) return {};
  PlacedBlock placed;
  placed.run = batch.runs[batch.block_runs[block]];
  placed.index = static_cast<int32_t>(block - placed.run.batch_block);
  placed.first = static_cast<int64_t>(placed.index) * batch.block_numel;
  const int64_t left = placed.run.numel - placed.first;
  placed.numel = static_cast<int32_t>(left < batch.block_numel ? left : batch.block_numel);
  return placed;
}

/// The error feedback of a run, from the arenas as they stand on the device.
__device__ inline Feedback feedback_of(const BatchFeedback& feedback,
                                       const DeviceTransaction* transaction, const BatchRun& run) {
  if (feedback.arenas[0] == nullptr || run.residual_offset < 0) return {};
  // Chosen, not indexed: an index known only at run time would put the arguments into local memory.
  const bool second = transaction->committed != 0;
  const int64_t bytes = run.residual_offset * stride_bytes_of(feedback.dtype);
  const float scale = feedback.scale == nullptr ? 1.0F : *feedback.scale;
  Feedback own;
  own.in = static_cast<const uint8_t*>(second ? feedback.arenas[1] : feedback.arenas[0]) + bytes;
  own.out = static_cast<uint8_t*>(second ? feedback.arenas[0] : feedback.arenas[1]) + bytes;
  own.dtype = feedback.dtype;
  own.scale = scale;
  own.inverse_scale = 1.0F / scale;
  return own;
}

/// values += residual of elements [first, first + count) of the run, in the gradient's scale.
__device__ inline void add_residual(const Feedback& feedback, int64_t first, int count,
                                    float (&values)[kOctet]) {
  if (feedback.in == nullptr || count == 0) return;
  float error[kOctet];
  load_octet(feedback.in, feedback.dtype, first, count, error);
  for (int e = 0; e < kOctet; ++e) values[e] += error[e] * feedback.scale;
}

/// The shadow becomes what is committed: these elements were not coded in this step.
__device__ inline void keep_residual(const Feedback& feedback, int64_t first, int count) {
  if (feedback.in == nullptr || count == 0) return;
  float error[kOctet];
  load_octet(feedback.in, feedback.dtype, first, count, error);
  store_octet(feedback.out, feedback.dtype, first, count, error);
}

/// Volatile, because other threads set bits meanwhile.
__device__ inline bool bit_at(const uint8_t* wire, int64_t bit) {
  const auto* words = reinterpret_cast<const volatile uint32_t*>(wire);
  return (words[bit / 32] >> (bit % 32) & 1U) != 0;
}

/// Looks first: most of a run's blocks come after another one has set the run's bit.
__device__ inline void set_bit_at(uint8_t* wire, int64_t bit) {
  if (!bit_at(wire, bit)) atomicOr(reinterpret_cast<uint32_t*>(wire) + bit / 32, 1U << (bit % 32));
}

__device__ inline void flag(DeviceTransaction* transaction) {
  if (*static_cast<const volatile uint32_t*>(&transaction->flagged) == 0)
    atomicOr(&transaction->flagged, 1U);
}

__device__ inline const uint8_t* payload_of(const BatchPayloads& payloads, int rank) {
  return rank == payloads.own_rank ? payloads.own : payloads.inbox + rank * payloads.stride_bytes;
}

/// Whether the run is nonzero on some rank; `lane` of `width` neighbours that ask together.
__device__ inline bool is_wanted(const BatchPayloads& payloads, const PlacedBlock& placed, int lane,
                                 int width) {
  bool wanted = false;
  for (int rank = lane; rank < payloads.count; rank += width) {
    wanted |= placed.numel > 0 && bit_at(payload_of(payloads, rank), placed.run.bit);
  }
  return any_of(width, wanted);
}

}  // namespace lgreco::kernels
