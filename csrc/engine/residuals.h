// What outlives a step: the sender's and the owner's residual, and warm starts, each in two arenas.
//
// A step reads the committed arena and writes the other, its shadow; committing swaps the two.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "codecs/codec.h"
#include "engine/plan.h"

namespace lgreco::engine {

class Residuals {
 public:
  /// Zeros for every lossy layer of `plan`. `dtype` fp32 or bf16; none: no error feedback.
  Residuals(const Plan& plan, int rank, std::optional<DType> dtype, at::Device device);

  codecs::Feedback sender(const Tile& tile, float scale) const {
    return feedback(sender_, tile.residual_offset, scale);
  }
  /// Of a whole layer.
  codecs::Feedback sender(const PlannedLayer& layer, float scale) const {
    return feedback(sender_, layer.residual_offset, scale);
  }
  /// Only for tiles that this rank owns.
  codecs::Feedback owner(const Tile& tile, float scale) const {
    return feedback(owner_, tile.owner_residual_offset, scale);
  }

  kernels::BatchFeedback warm_batch() const { return batch(warm_, nullptr); }
  int world_size() const { return world_size_; }

  /// The arenas as CUDA kernels take them; `scale` in device memory, or null.
  kernels::BatchFeedback sender_batch(const float* scale) const { return batch(sender_, scale); }
  kernels::BatchFeedback owner_batch(const float* scale) const { return batch(owner_, scale); }

  /// The shadow becomes what is committed for this tile: it was not coded in this step.
  void keep_sender(const Tile& tile) { keep(sender_, tile.residual_offset, tile.numel); }
  void keep_owner(const Tile& tile) { keep(owner_, tile.owner_residual_offset, tile.numel); }
  void keep_sender(const PlannedLayer& layer) const {
    keep(sender_, layer.residual_offset, layer.residual_numel);
  }

  /// A low-rank layer's last factor, the same on every rank: what is committed, and the step's shadow.
  const float* warm(int64_t offset) const {
    return warm_.half[committed_].const_data_ptr<float>() + offset;
  }
  float* warm_shadow(int64_t offset) const {
    return warm_.half[committed_ ^ 1].mutable_data_ptr<float>() + offset;
  }

  void commit() { committed_ ^= 1; }
  /// Which half is committed, where the device has decided it.
  void set_committed(int half) { committed_ = half; }

  /// Both halves of a layer's: for those who don't know which one is committed.
  std::pair<at::Tensor, at::Tensor> halves_of_layer(const Plan& plan, int32_t layer) const;
  /// The committed residual of a whole layer, flat, [PlannedLayer::residual_numel]; undefined where the
  /// layer has none.
  at::Tensor of_layer(const Plan& plan, int32_t layer) const;
  /// The committed owner-side residual of the tiles of a layer that this rank owns, and the first
  /// element within the layer's part that it belongs to; undefined where there are none. `half`: that
  /// one instead, for those who don't know which one is committed.
  std::pair<at::Tensor, int64_t> of_owner(const Plan& plan, int32_t layer, int rank,
                                          std::optional<int> half = std::nullopt) const;

  /// The committed factor P (0) or Q (1) of what is factored, [rank, length]; undefined where none is
  /// held.
  at::Tensor of_factor(const Plan& plan, int32_t layer, int side) const;

  /// Moves all that `old` holds under `old_plan` into the committed sender residuals: the own one,
  /// plus the owner's times the world size, which gives the same average (DESIGN, The exchange). Where
  /// masks differ, what is pruned now is dropped and what has grown again begins with zero.
  /// Warm starts keep as many columns as both ranks have; further ones are seeded when they are used. Of
  /// a column stays what belongs to rows or columns of the matrix that are kept before and after.
  void take_over(const Plan& plan, const Residuals& old, const Plan& old_plan, int rank);

  int64_t bytes() const;

 private:
  struct Arena {
    at::Tensor half[2];
  };
  codecs::Feedback feedback(const Arena& arena, int64_t offset, float scale) const;
  kernels::BatchFeedback batch(const Arena& arena, const float* scale) const;
  void keep(const Arena& arena, int64_t offset, int64_t numel) const;

  std::optional<DType> dtype_;
  int world_size_ = 1;
  Arena sender_, owner_, warm_;
  int committed_ = 0;
};

}  // namespace lgreco::engine
