// Laying out a bucket: tiles to owners, owners' tiles to chunks, chunks to offsets.
#include "engine/layout.h"

#include <algorithm>

#include "core/error.h"

namespace lgreco::engine {
namespace {

constexpr int64_t kChunkAlignment = 64;
constexpr int64_t kFactorAlignment = 16;  // elements
constexpr int64_t kRunAlignment = 16;     // elements

constexpr int64_t prefix_bytes(int64_t pieces) {
  return round_up(static_cast<int64_t>(sizeof(ChunkHeader)) + 4 * bit_words(pieces), kTileAlignment);
}

}  // namespace

Layout::Layout(const Plan& plan, const std::vector<int32_t>& layers, int rank, int64_t chunk_bytes) {
  std::vector<Groups> owned(plan.world_size());
  for (const int32_t layer : layers) place_layer(plan, layer, owned);
  owner_begin_.push_back(0);
  for (int owner = 0; owner < plan.world_size(); ++owner) {
    for (const auto& [group, tiles] : owned[owner]) cut_chunks(plan, owner, tiles, chunk_bytes);
    owner_begin_.push_back(static_cast<int32_t>(chunks_.size()));
    largest_chunk_count_ = std::max(largest_chunk_count_, chunk_count_of(owner));
    int64_t own_offset = 0;
    for (int32_t id = owner_begin_[owner]; id < owner_begin_[owner + 1]; ++id) {
      chunks_[id].inbox_offset = own_offset;
      own_offset += round_up(chunks_[id].bytes, kChunkAlignment);
    }
    if (owner == rank) inbox_stride_ = own_offset;
  }
}

void Layout::place_layer(const Plan& plan, int32_t layer, std::vector<Groups>& owned) {
  const PlannedLayer& planned = plan.planned()[layer];
  if (planned.lowrank) {
    factored_.push_back({.layer = layer, .bucket_offset = numel_, .p_offset = factor_numel_});
    factored_.back().q_offset = factor_numel_ + round_up(planned.parts[0].numel, kFactorAlignment);
  }
  const Mask* mask = planned.run_mask();
  if (mask != nullptr) {
    masked_.push_back({.layer = layer, .bucket_offset = numel_, .run_offset = run_numel_});
    if (planned.lowrank) factored_.back().run_offset = run_numel_;
    run_numel_ += round_up(mask->kept(), kRunAlignment);
  }
  for (const Part& part : planned.parts) {
    const int64_t begin = planned.lowrank ? factor_numel_ : numel_;
    for (int32_t i = 0; i < part.tile_count; ++i) {
      const int32_t id = part.first_tile + i;
      const Tile& tile = plan.tiles()[id];
      owned[tile.owner][{part.stage, part.turn}].push_back(
          {.tile = id,
           .factored = planned.lowrank ? static_cast<int32_t>(factored_.size()) - 1 : -1,
           .masked = mask != nullptr && !planned.lowrank ? static_cast<int32_t>(masked_.size()) - 1 : -1,
           .offset = begin + tile.dense_offset});
    }
    if (planned.lowrank) factor_numel_ += round_up(part.numel, kFactorAlignment);
  }
  numel_ += plan.layers()[layer].numel;
}

void Layout::cut_chunks(const Plan& plan, int owner, const std::vector<Piece>& tiles,
                        int64_t chunk_bytes) {
  const auto bytes_of = [&](size_t i) { return plan.tiles()[tiles[i].tile].wire_bytes; };
  for (size_t begin = 0, end = 0; begin < tiles.size(); begin = end) {
    int64_t payload = 0;
    while (end < tiles.size() && (end == begin || payload + bytes_of(end) <= chunk_bytes)) {
      payload += bytes_of(end++);
    }
    const Part& part = plan.part_of(plan.tiles()[tiles[begin].tile]);
    Chunk chunk;
    chunk.owner = owner;
    chunk.stage = part.stage;
    chunk.turn = part.turn;
    chunk.index = static_cast<int32_t>(chunks_.size()) - owner_begin_.back();
    chunk.first_piece = static_cast<int32_t>(pieces_.size());
    chunk.piece_count = static_cast<int32_t>(end - begin);
    int64_t offset = prefix_bytes(chunk.piece_count);
    for (size_t i = begin; i < end; ++i) {
      pieces_.push_back(tiles[i]);
      pieces_.back().wire_offset = offset;
      offset += bytes_of(i);
    }
    chunk.bytes = offset;
    chunk.wire_offset = wire_bytes_;
    wire_bytes_ += round_up(offset, kChunkAlignment);
    chunks_.push_back(chunk);
  }
}

}  // namespace lgreco::engine
