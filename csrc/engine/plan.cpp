// Compiling a plan: codecs, tiles and owners.
#include "engine/plan.h"

#include <algorithm>

#include "codecs/registry.h"
#include "core/error.h"

namespace lgreco::engine {
namespace {

// A layer below this many wire bytes is not worth a message to every rank: one owner takes it whole.
constexpr int64_t kWholeLayerBytes = 16 * 1024;

void mix(uint64_t& hash, uint64_t value) {
  hash = (hash ^ value) * 0x100000001B3ULL;  // FNV-1a, a word at a time
  hash ^= hash >> 29;
}

void mix(uint64_t& hash, const std::string& text) {
  for (const char c : text) mix(hash, static_cast<uint64_t>(static_cast<unsigned char>(c)));
  mix(hash, 0x100U);
}

}  // namespace

Plan::Plan(std::vector<LayerSpec> layers, const std::vector<codecs::Choice>& choices, int world_size,
           Masks masks, const std::vector<bool>& carries, std::vector<int32_t> owners)
    : layers_(std::move(layers)),
      choices_(choices),
      masks_(std::move(masks)),
      owners_(std::move(owners)),
      world_size_(world_size),
      owner_load_bytes_(world_size, 0),
      owner_residual_numel_(world_size, 0) {
  require(choices.size() == layers_.size(), "a plan needs one choice per layer: ", layers_.size(),
          " layers, ", choices.size(), " choices");
  require(world_size >= 1 && world_size <= static_cast<int>(kMaxRanks),
          "world size must be 1..4096, got ", world_size);
  require(masks_.empty() || masks_.size() == layers_.size(),
          "a plan needs one mask per layer: ", layers_.size(), " layers, ", masks_.size(), " masks");
  require(owners_.empty() || owners_.size() == layers_.size(),
          "a plan needs one owner per layer: ", layers_.size(), " layers, ", owners_.size(), " owners");
  fingerprint_ = 0xCBF29CE484222325ULL;
  mix(fingerprint_, static_cast<uint64_t>(world_size));
  for (size_t i = 0; i < layers_.size(); ++i) {
    planned_.emplace_back();
    const Mask* mask = planned_.back().mask = mask_of(masks_, i);
    has_masks_ |= mask != nullptr;
    require(mask == nullptr || mask->numel() == layers_[i].numel, "layer '", layers_[i].name, "' has ",
            layers_[i].numel, " elements, its mask ", mask == nullptr ? 0 : mask->numel());
    if (owner_of(static_cast<int32_t>(i)) == kElsewhere) {
      compile_elsewhere(static_cast<int32_t>(i));
    } else if (mask != nullptr && mask->kept() == 0) {
      compile_layer(static_cast<int32_t>(i), {"dense", {{"dtype", "fp32"}}}, false);
    } else if (choices[i].codec == "lowrank") {
      compile_lowrank(static_cast<int32_t>(i), choices[i]);
    } else {
      compile_layer(static_cast<int32_t>(i), choices[i], !carries.empty() && carries[i]);
    }
    if (mask != nullptr) mix(fingerprint_, mask->hash());
    mix(fingerprint_, layers_[i].name);
    mix(fingerprint_,
        static_cast<uint64_t>(layers_[i].numel) * 4 + static_cast<uint64_t>(layers_[i].dtype));
    mix(fingerprint_, choices[i].text());
  }
}

const codecs::Codec* Plan::codec_for(const codecs::Choice& choice) {
  std::unique_ptr<codecs::Codec>& codec = codecs_[choice];
  if (!codec) codec = codecs::make_codec(choice);
  return codec.get();
}

void Plan::compile_layer(int32_t layer, const codecs::Choice& choice, bool carries_residual) {
  const LayerSpec& spec = layers_[layer];
  PlannedLayer& planned = planned_[layer];
  const int64_t numel = planned.mask != nullptr ? planned.mask->kept() : spec.numel;
  planned.parts.push_back({.codec = codec_for(choice), .numel = numel});
  const bool nothing = planned.mask != nullptr && numel == 0;
  if (!nothing && (carries_residual || !planned.parts[0].codec->lossless(spec.dtype))) {
    planned.residual_offset = residual_numel_;
    planned.residual_numel = numel;
    residual_numel_ += round_up(numel, 16);
  }
  deal_tiles(layer, 0);
}

// Nothing of it travels here, but every rank has to know the same layers under the same ids.
void Plan::compile_elsewhere(int32_t layer) {
  planned_[layer].mask = nullptr;
  planned_[layer].parts.push_back({.codec = codec_for({"dense", {{"dtype", "fp32"}}})});
}

// P first: its average is what Q is computed from. Where the two alternate, each stands alone, computed
// from the other's last average, so both are of the first stage and both are kept.
void Plan::compile_lowrank(int32_t layer, const codecs::Choice& choice) {
  const LayerSpec& spec = layers_[layer];
  PlannedLayer& planned = planned_[layer];
  planned.lowrank = codecs::make_lowrank(choice, spec.shape);
  if (planned.mask != nullptr) planned.kept = kept_matrix(*planned.mask, planned.lowrank->cols);
  if (planned.kept) {
    planned.lowrank = codecs::make_lowrank(choice, {static_cast<int64_t>(planned.kept->rows.size()),
                                                    static_cast<int64_t>(planned.kept->cols.size())});
  }
  const codecs::LowRank& lowrank = *planned.lowrank;
  planned.residual_offset = residual_numel_;
  planned.residual_numel = lowrank.rows * lowrank.cols;
  residual_numel_ += round_up(planned.residual_numel, 16);
  const auto keep = [&](const codecs::FactorCoding& factor) {
    const int64_t offset = warm_numel_;
    warm_numel_ += round_up(lowrank.rank * factor.stride, 16);
    return offset;
  };
  if (lowrank.alternate) planned.warm_p_offset = keep(lowrank.p);
  planned.warm_q_offset = keep(lowrank.q);
  planned.parts.push_back({.codec = codec_for(lowrank.p.choice),
                           .numel = lowrank.rank * lowrank.p.stride,
                           .stage = 0,
                           .turn = lowrank.alternate ? Turn::kOdd : Turn::kEvery});
  planned.parts.push_back({.codec = codec_for(lowrank.q.choice),
                           .numel = lowrank.rank * lowrank.q.stride,
                           .stage = static_cast<uint8_t>(lowrank.alternate ? 0 : 1),
                           .turn = lowrank.alternate ? Turn::kEven : Turn::kEvery});
  deal_tiles(layer, 0);
  deal_tiles(layer, 1);
}

void Plan::deal_tiles(int32_t layer, uint8_t index) {
  Part& part = planned_[layer].parts[index];
  part.first_tile = static_cast<int32_t>(tiles_.size());
  const int64_t block = part.codec->block_numel();
  const int64_t blocks = (part.numel + block - 1) / block;
  const int64_t bytes = part.codec->wire_bytes(part.numel);
  if (owner_of(layer) >= 0) {
    add_tiles(layer, index, owner_of(layer), 0, part.numel);
  } else if (bytes < kWholeLayerBytes || blocks < world_size_) {
    const auto least = std::min_element(owner_load_bytes_.begin(), owner_load_bytes_.end());
    *least += bytes;
    add_tiles(layer, index, static_cast<int>(least - owner_load_bytes_.begin()), 0, part.numel);
  } else {
    for (int owner = 0; owner < world_size_; ++owner) {
      const int64_t begin = blocks * owner / world_size_ * block;
      const int64_t end = std::min(blocks * (owner + 1) / world_size_ * block, part.numel);
      owner_load_bytes_[owner] += part.codec->wire_bytes(end - begin);
      add_tiles(layer, index, owner, begin, end);
    }
  }
  part.tile_count = static_cast<int32_t>(tiles_.size()) - part.first_tile;
}

void Plan::add_tiles(int32_t layer, uint8_t index, int owner, int64_t begin, int64_t end) {
  const PlannedLayer& planned = planned_[layer];
  const Part& part = planned.parts[index];
  const int64_t block = part.codec->block_numel();
  const int64_t step = std::max(kMostTileNumel / block, int64_t{1}) * block;
  for (int64_t offset = begin; offset < end; offset += step) {
    Tile tile;
    tile.layer = layer;
    tile.owner = owner;
    tile.numel = static_cast<int32_t>(std::min(step, end - offset));
    tile.part = index;
    tile.factor = planned.lowrank.has_value();
    tile.first_block = static_cast<uint32_t>(offset / block);
    tile.offset = offset;
    tile.dense_offset = offset;
    tile.dense_numel = tile.numel;
    if (const Mask* mask = planned.run_mask(); mask != nullptr && !tile.factor) {
      tile.dense_offset = mask->dense_begin(offset);
      tile.dense_numel = mask->dense_begin(offset + tile.numel) - tile.dense_offset;
    }
    tile.wire_bytes = round_up(part.codec->wire_bytes(tile.numel), kTileAlignment);
    if (planned.residual_offset >= 0 && !tile.factor) {
      tile.residual_offset = planned.residual_offset + offset;
      tile.owner_residual_offset = owner_residual_numel_[owner];
      owner_residual_numel_[owner] += round_up(tile.numel, 16);
    }
    tiles_.push_back(tile);
  }
}

std::vector<bool> Plan::with_residual() const {
  std::vector<bool> there;
  for (const PlannedLayer& planned : planned_) there.push_back(planned.residual_offset >= 0);
  return there;
}

double Plan::wire_bytes(int32_t layer) const {
  double bytes = 0.0;
  for (const Part& part : planned_[layer].parts) {
    int64_t of_part = 0;
    for (int32_t i = 0; i < part.tile_count; ++i) of_part += tiles_[part.first_tile + i].wire_bytes;
    bytes += static_cast<double>(of_part) * (part.turn == Turn::kEvery ? 1.0 : 0.5);
  }
  // Round one: all but what a rank owns itself; round two: what it owns, to each of the others.
  return bytes * 2.0 * (world_size_ - 1) / world_size_;
}

}  // namespace lgreco::engine
