// A compiled plan: what of each layer is exchanged and by which codec, cut into tiles, each tile dealt
// to the rank that owns it.
//
// Tiles depend on the layers, their masks, the choices and the world size alone. So the bits of an
// exchange do not depend on how DDP forms its buckets, and no residual moves when buckets change.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "codecs/choice.h"
#include "codecs/codec.h"
#include "codecs/lowrank.h"
#include "core/types.h"
#include "engine/kept_matrix.h"
#include "engine/mask.h"

namespace lgreco::engine {

/// In which steps something takes part, by the number of steps committed before.
enum class Turn : uint8_t { kEvery, kEven, kOdd };

constexpr bool takes_part(Turn turn, uint64_t committed_steps) {
  return turn == Turn::kEvery || (turn == Turn::kOdd) == (committed_steps % 2 == 1);
}

/// A run of one part with one owner: the unit of coding, of ownership and of the zero bit.
struct Tile {
  int32_t layer = 0;
  int32_t owner = 0;
  int32_t numel = 0;
  uint8_t part = 0;                    ///< index among the layer's parts
  bool factor = false;                 ///< of a factor, not of the gradient itself
  uint32_t first_block = 0;            ///< index within the part, for the noise
  int64_t offset = 0;                  ///< first element within the part
  int64_t dense_offset = 0;            ///< of the gradient: first element within the layer,
  int64_t dense_numel = 0;             ///< and elements there, of which a mask keeps `numel`
  int64_t wire_bytes = 0;              ///< a multiple of kTileAlignment
  int64_t residual_offset = -1;        ///< element in the sender's arena; -1: lossless, or a factor
  int64_t owner_residual_offset = -1;  ///< element in the owner's arena on its rank; -1: as above
};

inline constexpr int64_t kTileAlignment = 16;
/// 64 Ki elements: gradient and residual of a tile stay within the L2 cache of one core.
inline constexpr int64_t kMostTileNumel = 64 * 1024;
inline constexpr int kStages = 2;

/// Who owns a layer: its blocks are dealt to all ranks; or, of a hierarchical exchange, others than the
/// ranks of this one exchange it. A rank (0 or more) takes it whole.
inline constexpr int32_t kDealt = -1, kElsewhere = -2;

/// A vector of a layer that is averaged: the gradient itself (of a masked layer its run), or a factor of
/// it. A stage's parts of all layers travel together; the second stage's are computed from the first
/// one's averages.
struct Part {
  const codecs::Codec* codec = nullptr;
  int64_t numel = 0;
  int32_t first_tile = 0;
  int32_t tile_count = 0;
  uint8_t stage = 0;
  Turn turn = Turn::kEvery;
};

struct PlannedLayer {
  std::vector<Part> parts;                 ///< the gradient, or P and Q in this order
  std::optional<codecs::LowRank> lowrank;  ///< where the parts are factors
  const Mask* mask = nullptr;              ///< null: everything is kept
  std::optional<KeptMatrix> kept;          ///< what is factored, where it is what the mask keeps
  int64_t residual_offset = -1;            ///< of the whole layer in the sender's arena; -1: lossless
  int64_t residual_numel = 0;              ///< of the run, or of the whole layer where it has none
  int64_t warm_p_offset = -1,
          warm_q_offset = -1;  ///< of the factors in the warm-start arena; -1: not kept

  /// The mask by which its gradient and its residual are cut short to a run. A factored layer has a run
  /// where that is a matrix (`kept`). Else the whole one is factored, its pruned elements zero, and so
  /// are the residual's and the result's.
  const Mask* run_mask() const { return lowrank && !kept ? nullptr : mask; }
};

class Plan {
 public:
  /// Compiles `choices` (one a layer). Throws ValueError where a choice is not allowed. `carries`:
  /// layers that a residual is brought to, from an earlier plan or a checkpoint; it finds a place here
  /// also where nothing is left out any more. Empty: none. `owners`: by layer; empty: all are dealt.
  Plan(std::vector<LayerSpec> layers, const std::vector<codecs::Choice>& choices, int world_size,
       Masks masks = {}, const std::vector<bool>& carries = {}, std::vector<int32_t> owners = {});

  const std::vector<LayerSpec>& layers() const { return layers_; }
  const std::vector<codecs::Choice>& choices() const { return choices_; }
  const std::vector<PlannedLayer>& planned() const { return planned_; }
  const std::vector<Tile>& tiles() const { return tiles_; }
  const Part& part_of(const Tile& tile) const { return planned_[tile.layer].parts[tile.part]; }
  const codecs::Codec& codec_of(const Tile& tile) const { return *part_of(tile).codec; }
  int world_size() const { return world_size_; }
  int32_t owner_of(int32_t layer) const { return owners_.empty() ? kDealt : owners_[layer]; }
  /// Which layers have a residual.
  std::vector<bool> with_residual() const;
  bool has_masks() const { return has_masks_; }

  int64_t residual_numel() const { return residual_numel_; }
  int64_t owner_residual_numel(int rank) const { return owner_residual_numel_[rank]; }
  int64_t warm_numel() const { return warm_numel_; }

  /// Bytes that a rank sends for a layer in a step, both rounds and all stages, without the messages'
  /// headers: mean over ranks, and over two steps where factors alternate.
  double wire_bytes(int32_t layer) const;

  /// Equal on ranks that compiled the same layers, masks and choices for the same world.
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  const codecs::Codec* codec_for(const codecs::Choice& choice);
  void compile_layer(int32_t layer, const codecs::Choice& choice, bool carries_residual);
  void compile_lowrank(int32_t layer, const codecs::Choice& choice);
  void compile_elsewhere(int32_t layer);
  void deal_tiles(int32_t layer, uint8_t part);
  void add_tiles(int32_t layer, uint8_t part, int owner, int64_t begin, int64_t end);

  std::vector<LayerSpec> layers_;
  std::vector<codecs::Choice> choices_;
  Masks masks_;
  std::vector<int32_t> owners_;
  int world_size_;
  bool has_masks_ = false;
  std::map<codecs::Choice, std::unique_ptr<codecs::Codec>> codecs_;
  std::vector<PlannedLayer> planned_;
  std::vector<Tile> tiles_;
  std::vector<int64_t> owner_load_bytes_;
  int64_t residual_numel_ = 0;
  std::vector<int64_t> owner_residual_numel_;
  int64_t warm_numel_ = 0;
  uint64_t fingerprint_ = 0;
};

}  // namespace lgreco::engine
