// The dense wire: what CUDA threads do. The C++ tests run this file on the host.
#pragma once

#include "kernels/batch_device.h"
#include "kernels/lane_group.h"
#include "kernels/octet.h"

namespace lgreco::kernels {

/// What is the same for all blocks of a launch.
struct Copying {
  DType wire_dtype;
  Batch batch;
  BatchFeedback feedback;
  const DeviceTransaction* transaction;
  int32_t lanes_log2;  ///< 2^lanes_log2 neighbouring threads take a block's octets in turn
};

inline Copying copying_of(DType wire_dtype, const Batch& batch, const BatchFeedback& feedback,
                          const DeviceTransaction* transaction) {
  return {wire_dtype, batch, feedback, transaction, lanes_log2_of(batch.block_numel)};
}

/// A thread's share of a block.
struct Share {
  PlacedBlock placed;
  Feedback feedback;
  int lane;
  int lanes;
};

__device__ inline Share share_of(const Copying& copying) {
  const uint64_t thread = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  Share share;
  share.placed = place_block(copying.batch, static_cast<uint32_t>(thread >> copying.lanes_log2));
  share.feedback = feedback_of(copying.feedback, copying.transaction, share.placed.run);
  share.lanes = 1 << copying.lanes_log2;
  share.lane = static_cast<int>(thread) & (share.lanes - 1);
  return share;
}

/// Stores values + residual in the wire and their errors in the residual; an element that cannot be
/// delivered leaves no residual. `first` counts from the run's first element.
__device__ inline void send_octet(DType wire_dtype, const Feedback& feedback, int64_t first, int count,
                                  float (&values)[kOctet], uint8_t* wire) {
  add_residual(feedback, first, count, values);
  float sent[kOctet];
  LGRECO_UNROLL
  for (int e = 0; e < kOctet; ++e) sent[e] = values[e];
  store_octet(wire, wire_dtype, first, count, sent);
  if (feedback.out == nullptr) return;
  LGRECO_UNROLL
  for (int e = 0; e < kOctet; ++e) {
    values[e] = is_finite(sent[e]) ? (values[e] - sent[e]) * feedback.inverse_scale : 0.0F;
  }
  store_octet(feedback.out, feedback.dtype, first, count, values);
}

static __global__ void __launch_bounds__(kFlatThreads)
    dense_encode_kernel(const Copying copying, const void* gradient, DType dtype, uint8_t* wire) {
  const Share share = share_of(copying);
  const PlacedBlock& placed = share.placed;
  bool nonzero = false;
  for (int octet = share.lane; octet * kOctet < placed.numel; octet += share.lanes) {
    const int count = octet_count(placed.numel, octet);
    const int64_t first = placed.first + octet * kOctet;
    float values[kOctet];
    load_octet(gradient, dtype, placed.run.gradient_offset + first, count, values);
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) nonzero |= values[e] != 0.0F;
    send_octet(copying.wire_dtype, share.feedback, first, count, values, wire + placed.run.wire_offset);
  }
  if (any_of(share.lanes, nonzero) && share.lane == 0) set_bit_at(wire, placed.run.bit);
}

static __global__ void __launch_bounds__(kFlatThreads)
    dense_reduce_kernel(const Copying copying, const BatchPayloads payloads, float factor,
                        uint8_t* out) {
  const Share share = share_of(copying);
  const PlacedBlock& placed = share.placed;
  const bool wanted = is_wanted(payloads, placed, share.lane, share.lanes);
  for (int octet = share.lane; octet * kOctet < placed.numel; octet += share.lanes) {
    const int count = octet_count(placed.numel, octet);
    const int64_t first = placed.first + octet * kOctet;
    if (!wanted) {
      keep_residual(share.feedback, first, count);
      continue;
    }
    float values[kOctet];
    load_octet(payload_of(payloads, 0) + placed.run.wire_offset, copying.wire_dtype, first, count,
               values);
    for (int rank = 1; rank < payloads.count; ++rank) {
      float part[kOctet];
      load_octet(payload_of(payloads, rank) + placed.run.wire_offset, copying.wire_dtype, first, count,
                 part);
      LGRECO_UNROLL
      for (int e = 0; e < kOctet; ++e) values[e] += part[e];
    }
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) values[e] *= factor;
    send_octet(copying.wire_dtype, share.feedback, first, count, values, out + placed.run.wire_offset);
  }
  if (wanted && share.lane == 0) set_bit_at(out, placed.run.bit);
}

static __global__ void __launch_bounds__(kFlatThreads)
    dense_decode_kernel(const Copying copying, const uint8_t* wire, void* out, DType dtype,
                        DeviceTransaction* transaction) {
  const Share share = share_of(copying);
  const PlacedBlock& placed = share.placed;
  if (placed.numel == 0) return;
  const bool coded = bit_at(wire, placed.run.bit);
  bool finite = true;
  for (int octet = share.lane; octet * kOctet < placed.numel; octet += share.lanes) {
    const int count = octet_count(placed.numel, octet);
    const int64_t first = placed.first + octet * kOctet;
    float values[kOctet] = {};
    if (coded) {
      load_octet(wire + placed.run.wire_offset, copying.wire_dtype, first, count, values);
    } else {
      keep_residual(share.feedback, first, count);
    }
    store_octet(out, dtype, placed.run.gradient_offset + first, count, values);
    LGRECO_UNROLL
    for (int e = 0; e < kOctet; ++e) finite &= is_finite(values[e]);
  }
  if (!finite) flag(transaction);
}

}  // namespace lgreco::kernels
