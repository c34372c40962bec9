// Compiling a plan: codecs, tiles and owners.
#include "engine/plan.h"

#include <algorithm>
#include <map>

#include "codecs/registry.h"
#include "core/error.h"

namespace lgreco::engine {
namespace {

// 64 Ki elements: gradient and residual of a tile stay within the L2 cache of one core.
constexpr int64_t kTileNumel = 64 * 1024;
// A layer below this many wire bytes is not worth a message to every rank: one owner takes it whole.
constexpr int64_t kWholeLayerBytes = 16 * 1024;

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

void mix(uint64_t& hash, uint64_t value) {
  hash = (hash ^ value) * 0x100000001B3ULL;  // FNV-1a, a word at a time
  hash ^= hash >> 29;
}

void mix(uint64_t& hash, const std::string& text) {
  for (const char c : text) mix(hash, static_cast<uint64_t>(static_cast<unsigned char>(c)));
  mix(hash, 0x100U);
}

}  // namespace

Plan::Plan(std::vector<LayerSpec> layers, const std::vector<codecs::Choice>& choices, int world_size)
    : layers_(std::move(layers)), world_size_(world_size), owner_residual_numel_(world_size, 0) {
  require(choices.size() == layers_.size(), "a plan needs one choice per layer: ", layers_.size(),
          " layers, ", choices.size(), " choices");
  require(world_size >= 1 && world_size <= static_cast<int>(kMaxRanks),
          "world size must be 1..4096, got ", world_size);
  std::map<codecs::Choice, const codecs::Codec*> known;
  std::vector<int64_t> owner_load_bytes(world_size, 0);
  fingerprint_ = 0xCBF29CE484222325ULL;
  mix(fingerprint_, static_cast<uint64_t>(world_size));
  for (size_t i = 0; i < layers_.size(); ++i) {
    const codecs::Codec*& codec = known[choices[i]];
    if (codec == nullptr) codec = codecs_.emplace_back(codecs::make_codec(choices[i])).get();
    planned_.push_back({.codec = codec});
    compile_layer(static_cast<int32_t>(i), owner_load_bytes);
    mix(fingerprint_, layers_[i].name);
    mix(fingerprint_,
        static_cast<uint64_t>(layers_[i].numel) * 4 + static_cast<uint64_t>(layers_[i].dtype));
    mix(fingerprint_, choices[i].text());
  }
}

void Plan::compile_layer(int32_t layer, std::vector<int64_t>& owner_load_bytes) {
  const LayerSpec& spec = layers_[layer];
  PlannedLayer& planned = planned_[layer];
  planned.first_tile = static_cast<int32_t>(tiles_.size());
  if (!planned.codec->lossless(spec.dtype)) {
    planned.residual_offset = residual_numel_;
    residual_numel_ += round_up(spec.numel, 16);
  }
  const int64_t block = planned.codec->block_numel();
  const int64_t blocks = (spec.numel + block - 1) / block;
  const int64_t bytes = planned.codec->wire_bytes(spec.numel);
  if (bytes < kWholeLayerBytes || blocks < world_size_) {
    const auto least = std::min_element(owner_load_bytes.begin(), owner_load_bytes.end());
    *least += bytes;
    add_tiles(layer, static_cast<int>(least - owner_load_bytes.begin()), 0, spec.numel);
  } else {
    for (int owner = 0; owner < world_size_; ++owner) {
      const int64_t begin = blocks * owner / world_size_ * block;
      const int64_t end = std::min(blocks * (owner + 1) / world_size_ * block, spec.numel);
      owner_load_bytes[owner] += planned.codec->wire_bytes(end - begin);
      add_tiles(layer, owner, begin, end);
    }
  }
  planned.tile_count = static_cast<int32_t>(tiles_.size()) - planned.first_tile;
}

void Plan::add_tiles(int32_t layer, int owner, int64_t begin, int64_t end) {
  const PlannedLayer& planned = planned_[layer];
  const int64_t block = planned.codec->block_numel();
  const int64_t step = std::max(kTileNumel / block, int64_t{1}) * block;
  for (int64_t offset = begin; offset < end; offset += step) {
    Tile tile;
    tile.layer = layer;
    tile.owner = owner;
    tile.numel = static_cast<int32_t>(std::min(step, end - offset));
    tile.first_block = static_cast<uint32_t>(offset / block);
    tile.offset = offset;
    tile.wire_bytes = round_up(planned.codec->wire_bytes(tile.numel), kTileAlignment);
    if (planned.residual_offset >= 0) {
      tile.residual_offset = planned.residual_offset + offset;
      tile.owner_residual_offset = owner_residual_numel_[owner];
      owner_residual_numel_[owner] += round_up(tile.numel, 16);
    }
    tiles_.push_back(tile);
  }
}

}  // namespace lgreco::engine
