// A compiled plan: each layer's codec, cut into tiles, each tile dealt to the rank that owns it.
//
// Tiles depend on the layers, the choices and the world size alone. So the bits of an exchange do
// not depend on how DDP forms its buckets, and no residual moves when buckets change.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "codecs/choice.h"
#include "codecs/codec.h"
#include "core/types.h"

namespace lgreco::engine {

/// A run of one layer with one owner: the unit of coding, of ownership and of the zero bit.
struct Tile {
  int32_t layer = 0;
  int32_t owner = 0;
  int32_t numel = 0;
  uint32_t first_block = 0;            ///< index within the layer, for the noise
  int64_t offset = 0;                  ///< first element within the layer
  int64_t wire_bytes = 0;              ///< a multiple of kTileAlignment
  int64_t residual_offset = -1;        ///< element in the sender's arena; -1: lossless
  int64_t owner_residual_offset = -1;  ///< element in the owner's arena on its rank; -1: lossless
};

inline constexpr int64_t kTileAlignment = 16;

struct PlannedLayer {
  const codecs::Codec* codec = nullptr;
  int32_t first_tile = 0;
  int32_t tile_count = 0;
  int64_t residual_offset = -1;  ///< of the whole layer in the sender's arena; -1: lossless
};

class Plan {
 public:
  /// Compiles `choices` (one a layer). Throws ValueError where a choice is not allowed.
  Plan(std::vector<LayerSpec> layers, const std::vector<codecs::Choice>& choices, int world_size);

  const std::vector<LayerSpec>& layers() const { return layers_; }
  const std::vector<PlannedLayer>& planned() const { return planned_; }
  const std::vector<Tile>& tiles() const { return tiles_; }
  const codecs::Codec& codec_of(const Tile& tile) const { return *planned_[tile.layer].codec; }
  int world_size() const { return world_size_; }

  int64_t residual_numel() const { return residual_numel_; }
  int64_t owner_residual_numel(int rank) const { return owner_residual_numel_[rank]; }

  /// Equal on ranks that compiled the same layers and choices for the same world.
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  void compile_layer(int32_t layer, std::vector<int64_t>& owner_load_bytes);
  void add_tiles(int32_t layer, int owner, int64_t begin, int64_t end);

  std::vector<LayerSpec> layers_;
  int world_size_;
  std::vector<std::unique_ptr<codecs::Codec>> codecs_;
  std::vector<PlannedLayer> planned_;
  std::vector<Tile> tiles_;
  int64_t residual_numel_ = 0;
  std::vector<int64_t> owner_residual_numel_;
  uint64_t fingerprint_ = 0;
};

}  // namespace lgreco::engine
