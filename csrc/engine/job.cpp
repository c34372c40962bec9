// Setting up a bucket's buffers and messages.
#include "engine/job.h"

#include <ATen/ops/zeros.h>

namespace lgreco::engine {

Job::Job(const Plan& plan, const std::vector<int32_t>& bucket_layers, const ExchangeOptions& options,
         transports::Transport& transport)
    : layers(bucket_layers),
      layout(plan, layers, transport.rank(), options.chunk_bytes),
      world_size(transport.size()),
      first_own(layout.first_chunk_of(transport.rank())),
      factors(plan, layout, options.residual_dtype == DType::kFloat32) {
  const int rank = transport.rank();
  const int own_count = layout.chunk_count_of(rank);
  wire = at::zeros({layout.wire_bytes()}, at::kByte);
  inbox = at::zeros({layout.inbox_stride() * world_size}, at::kByte);
  scatter_out.resize(layout.chunks().size());
  gather_in.resize(layout.chunks().size());
  from_peers.resize(static_cast<size_t>(own_count) * world_size);
  to_peers.resize(from_peers.size());
  arrivals = std::make_unique<std::atomic<int>[]>(own_count);
  sent.resize(layout.chunks().size() + to_peers.size());
  for (size_t id = 0; id < layout.chunks().size(); ++id) {
    const Chunk& chunk = layout.chunks()[id];
    if (chunk.owner != rank) {
      scatter_out[id] = transport.message(chunk.owner, wire_of(chunk), chunk.bytes);
      gather_in[id] = transport.message(chunk.owner, wire_of(chunk), chunk.bytes);
      continue;
    }
    for (int peer = 0; peer < world_size; ++peer) {
      if (peer == rank) continue;
      const size_t place = slot(peer, static_cast<int32_t>(id));
      from_peers[place] = transport.message(peer, payload_from(peer, chunk, rank), chunk.bytes);
      to_peers[place] = transport.message(peer, wire_of(chunk), chunk.bytes);
    }
  }
}

void Job::finish_sends(std::chrono::milliseconds timeout) {
  for (const auto* messages : {&scatter_out, &to_peers}) {
    for (const MessagePtr& message : *messages) {
      try {
        if (message) message->wait(timeout);
      } catch (const transports::PeerError&) {
        continue;
      }
    }
  }
}

void Job::abort_sends() {
  for (const auto* messages : {&scatter_out, &to_peers}) {
    for (const MessagePtr& message : *messages) {
      if (message) message->abort();
    }
  }
}

}  // namespace lgreco::engine
