// What the codec lane does for a relay: hands averages over, and sends out what has come of them.
#include <algorithm>

#include "engine/lane_exchange.h"

namespace lgreco::engine {

// An owner's chunks hold its tiles in bucket order, so one after the other is bucket order too.
void LaneExchange::take_averages(Job& job, float* out) {
  for (int index = 0; index < job.layout.chunk_count_of(rank_); ++index) {
    const Chunk& chunk = job.layout.chunks()[job.first_own + index];
    const uint8_t* wire = job.wire_of(chunk);
    for (int32_t i = 0; i < chunk.piece_count; ++i) {
      const Piece& piece = job.layout.pieces()[chunk.first_piece + i];
      const Tile& tile = plan_->tiles()[piece.tile];
      if (bit(bits_of(wire), i)) {
        plan_->codec_of(tile).decode(wire + piece.wire_offset, tile.numel, noise_of(tile, kGather), out,
                                     DType::kFloat32);
      } else {
        std::fill(out, out + tile.numel, 0.0F);
      }
      out += tile.numel;
    }
  }
}

void LaneExchange::release(Job& job, const float* averages) {
  job.relayed = averages;
  codec_lane_->post({Task::Kind::kRelease, &job});
}

void LaneExchange::release_averages(Job& job) {
  const float* in = job.relayed;
  for (int index = 0; index < job.layout.chunk_count_of(rank_); ++index) {
    const int32_t id = job.first_own + index;
    const Chunk& chunk = job.layout.chunks()[id];
    uint8_t* wire = job.wire_of(chunk);
    for (int32_t i = 0; i < chunk.piece_count; ++i) {
      const Piece& piece = job.layout.pieces()[chunk.first_piece + i];
      const Tile& tile = plan_->tiles()[piece.tile];
      const bool nonzero = plan_->codec_of(tile)
                               .encode(in, DType::kFloat32, tile.numel, {}, noise_of(tile, kGather),
                                       wire + piece.wire_offset)
                               .nonzero;
      set_bit(bits_of(wire), i, nonzero);
      in += tile.numel;
    }
    send_averages(job, id);
  }
}

}  // namespace lgreco::engine
