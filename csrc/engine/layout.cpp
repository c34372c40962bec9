// Laying out a bucket: tiles to owners, owners' tiles to chunks, chunks to offsets.
#include "engine/layout.h"

#include <algorithm>

#include "core/error.h"

namespace lgreco::engine {
namespace {

constexpr int64_t kChunkAlignment = 64;

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

constexpr int64_t prefix_bytes(int64_t pieces) {
  return round_up(static_cast<int64_t>(sizeof(ChunkHeader)) + 4 * bit_words(pieces), kTileAlignment);
}

}  // namespace

Layout::Layout(const Plan& plan, const std::vector<int32_t>& layers, int rank, int64_t chunk_bytes) {
  std::vector<std::vector<Piece>> owned(plan.world_size());
  for (const int32_t layer : layers) {
    const PlannedLayer& planned = plan.planned()[layer];
    for (int32_t i = 0; i < planned.tile_count; ++i) {
      const int32_t id = planned.first_tile + i;
      const Tile& tile = plan.tiles()[id];
      owned[tile.owner].push_back({.tile = id, .bucket_offset = numel_ + tile.offset});
    }
    numel_ += plan.layers()[layer].numel;
  }
  owner_begin_.push_back(0);
  for (int owner = 0; owner < plan.world_size(); ++owner) {
    const std::vector<Piece>& tiles = owned[owner];
    int64_t own_offset = 0;
    for (size_t begin = 0, end = 0; begin < tiles.size(); begin = end) {
      int64_t payload = 0;
      while (end < tiles.size() &&
             (end == begin || payload + plan.tiles()[tiles[end].tile].wire_bytes <= chunk_bytes)) {
        payload += plan.tiles()[tiles[end++].tile].wire_bytes;
      }
      Chunk chunk;
      chunk.owner = owner;
      chunk.index = static_cast<int32_t>(chunks_.size()) - owner_begin_.back();
      chunk.first_piece = static_cast<int32_t>(pieces_.size());
      chunk.piece_count = static_cast<int32_t>(end - begin);
      int64_t offset = prefix_bytes(chunk.piece_count);
      for (size_t i = begin; i < end; ++i) {
        pieces_.push_back(tiles[i]);
        pieces_.back().wire_offset = offset;
        offset += plan.tiles()[tiles[i].tile].wire_bytes;
      }
      chunk.bytes = offset;
      chunk.wire_offset = wire_bytes_;
      chunk.inbox_offset = own_offset;
      wire_bytes_ += round_up(offset, kChunkAlignment);
      own_offset += round_up(offset, kChunkAlignment);
      chunks_.push_back(chunk);
    }
    owner_begin_.push_back(static_cast<int32_t>(chunks_.size()));
    largest_chunk_count_ = std::max(largest_chunk_count_, chunk_count_of(owner));
    if (owner == rank) inbox_stride_ = own_offset;
  }
}

}  // namespace lgreco::engine
