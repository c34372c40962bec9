// A bucket on its way through the lanes: its layout, buffers, messages and progress.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "engine/exchange.h"
#include "engine/factors.h"
#include "engine/layout.h"
#include "transports/transport.h"

namespace lgreco::engine {

/// Kept from step to step while the bucket stays the same, so that a step allocates nothing.
struct Job {
  using MessagePtr = std::unique_ptr<transports::Message>;

  Job(const Plan& plan, const std::vector<int32_t>& bucket_layers, const ExchangeOptions& options,
      transports::Transport& transport);

  /// Whether a chunk travels in the step under way.
  bool active_chunk(int32_t id) const { return takes_part(layout.chunks()[id].turn, committed_steps); }
  bool travels(int32_t id, uint8_t stage) const {
    return layout.chunks()[id].stage == stage && active_chunk(id);
  }

  uint8_t* wire_of(const Chunk& chunk) { return wire.mutable_data_ptr<uint8_t>() + chunk.wire_offset; }
  /// Where `peer`'s payload of one of this rank's own chunks lies.
  uint8_t* payload_from(int peer, const Chunk& chunk, int rank) {
    if (peer == rank) return wire_of(chunk);
    return inbox.mutable_data_ptr<uint8_t>() + peer * layout.inbox_stride() + chunk.inbox_offset;
  }
  /// Own chunks have one message a peer and round.
  transports::Message& scatter_in(int peer, int32_t chunk) { return *from_peers[slot(peer, chunk)]; }
  transports::Message& gather_out(int peer, int32_t chunk) { return *to_peers[slot(peer, chunk)]; }
  size_t slot(int peer, int32_t chunk) const {
    return static_cast<size_t>(chunk - first_own) * world_size + peer;
  }

  int64_t buffer_bytes() const { return wire.numel() + inbox.numel() + factors.bytes(); }

  /// Waits until the network has taken all that was sent; only then may the buffers go. A send that
  /// fails here is left to fail on the rank that waits for it.
  void finish_sends(std::chrono::milliseconds timeout);
  /// Wakes whoever waits for one of this job's sends.
  void abort_sends();

  const std::vector<int32_t> layers;
  const Layout layout;
  const int world_size;
  const int32_t first_own;                         ///< id of this rank's first own chunk
  Factors factors;                                 ///< of low-rank layers
  at::Tensor wire, inbox;                          ///< uint8
  std::vector<MessagePtr> scatter_out, gather_in;  ///< by chunk; null for own chunks
  std::vector<MessagePtr> from_peers, to_peers;    ///< by slot; null for the own rank
  std::unique_ptr<std::atomic<int>[]> arrivals;    ///< by own chunk: payloads present

  // Of the step under way; written before the first task is posted, then by the codec lane alone.
  at::Tensor buffer;
  uint8_t* gradient = nullptr;
  DType dtype = DType::kFloat32;
  int32_t bucket = 0;
  bool last = false;  ///< of the step's buckets
  uint64_t committed_steps = 0;
  FuturePtr future;
  std::vector<uint8_t> sent;  ///< by chunk: the scatter message; by slot after them: the gather's
  int32_t decodes_left[kStages] = {0, 0};  ///< active chunks by stage
  int32_t finishes_left = 0;               ///< factored layers
  int32_t reduces_left = 0;                ///< own chunks; counted where there is a relay
  const float* relayed = nullptr;          ///< what a relay has made of this rank's averages
  bool nonfinite = false;

  // Guarded by the exchange's mutex.
  bool active = false;
  bool done = false;
};

}  // namespace lgreco::engine
