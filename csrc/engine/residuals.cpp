// What outlives a step: the sender's and the owner's residual, and warm starts, each in two arenas.
#include "engine/residuals.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>

#include "core/huge_pages.h"
#include "engine/masked_tensors.h"

namespace lgreco::engine {
namespace {

// Zeros. On the CPU in huge pages where the kernel gives them: an encoder walks through gradient,
// residual and shadow at once, and with small pages spends a tenth of its time on translating.
at::Tensor make_arena(int64_t numel, DType dtype, at::Device device) {
  const auto type = dtype == DType::kFloat32 ? at::kFloat : at::kBFloat16;
  at::Tensor arena = at::empty({numel}, at::TensorOptions().dtype(type).device(device));
  if (device.is_cpu() && numel > 0) {
    advise_huge_pages(arena.mutable_data_ptr(), static_cast<int64_t>(arena.nbytes()));
  }
  return arena.zero_();
}

}  // namespace

Residuals::Residuals(const Plan& plan, int rank, std::optional<DType> dtype, at::Device device)
    : dtype_(dtype), world_size_(plan.world_size()) {
  for (at::Tensor& half : warm_.half) half = make_arena(plan.warm_numel(), DType::kFloat32, device);
  if (!dtype) return;
  for (int half = 0; half < 2; ++half) {
    sender_.half[half] = make_arena(plan.residual_numel(), *dtype, device);
    owner_.half[half] = make_arena(plan.owner_residual_numel(rank), *dtype, device);
  }
}

codecs::Feedback Residuals::feedback(const Arena& arena, int64_t offset, float scale) const {
  if (!dtype_ || offset < 0) return {};
  const int64_t bytes = offset * element_bytes(*dtype_);
  return {.in = static_cast<const uint8_t*>(arena.half[committed_].const_data_ptr()) + bytes,
          .out = static_cast<uint8_t*>(arena.half[committed_ ^ 1].mutable_data_ptr()) + bytes,
          .dtype = *dtype_,
          .scale = scale,
          .inverse_scale = 1.0F / scale};
}

kernels::BatchFeedback Residuals::batch(const Arena& arena, const float* scale) const {
  kernels::BatchFeedback feedback;
  if (!arena.half[0].defined()) return feedback;
  for (int half = 0; half < 2; ++half) feedback.arenas[half] = arena.half[half].mutable_data_ptr();
  feedback.dtype = arena.half[0].scalar_type() == at::kFloat ? DType::kFloat32 : DType::kBFloat16;
  feedback.scale = scale;
  return feedback;
}

void Residuals::keep(const Arena& arena, int64_t offset, int64_t numel) const {
  const codecs::Feedback places = feedback(arena, offset, 1.0F);
  if (places.in != nullptr) std::memcpy(places.out, places.in, numel * element_bytes(*dtype_));
}

std::pair<at::Tensor, at::Tensor> Residuals::halves_of_layer(const Plan& plan, int32_t layer) const {
  const int64_t offset = plan.planned()[layer].residual_offset;
  if (!dtype_ || offset < 0) return {};
  const int64_t numel = plan.planned()[layer].residual_numel;
  return {sender_.half[0].narrow(0, offset, numel), sender_.half[1].narrow(0, offset, numel)};
}

at::Tensor Residuals::of_layer(const Plan& plan, int32_t layer) const {
  const auto [first, second] = halves_of_layer(plan, layer);
  return committed_ == 0 ? first : second;
}

std::pair<at::Tensor, int64_t> Residuals::of_owner(const Plan& plan, int32_t layer, int rank,
                                                   std::optional<int> half) const {
  const PlannedLayer& planned = plan.planned()[layer];
  const Tile* first = nullptr;
  int64_t numel = 0;
  const Part& part = planned.parts[0];  // owners of factors keep nothing
  for (int32_t i = 0; i < part.tile_count; ++i) {
    const Tile& tile = plan.tiles()[part.first_tile + i];
    if (tile.owner != rank || tile.owner_residual_offset < 0) continue;
    if (first == nullptr) first = &tile;
    numel += tile.numel;  // an owner's tiles follow each other in the layer and in the arena
  }
  if (!dtype_ || first == nullptr) return {};
  const at::Tensor& arena = owner_.half[half.value_or(committed_)];
  return {arena.narrow(0, first->owner_residual_offset, numel), first->offset};
}

at::Tensor Residuals::of_factor(const Plan& plan, int32_t layer, int side) const {
  const PlannedLayer& planned = plan.planned()[layer];
  const int64_t offset = side == 0 ? planned.warm_p_offset : planned.warm_q_offset;
  if (offset < 0) return {};
  const codecs::FactorCoding& factor = side == 0 ? planned.lowrank->p : planned.lowrank->q;
  return warm_.half[committed_].as_strided({planned.lowrank->rank, factor.length}, {factor.stride, 1},
                                           offset);
}

void Residuals::take_over(const Plan& plan, const Residuals& old, const Plan& old_plan, int rank) {
  for (int32_t layer = 0; layer < static_cast<int32_t>(plan.layers().size()); ++layer) {
    for (const int side : {0, 1}) {
      const at::Tensor mine = of_factor(plan, layer, side),
                       others = old.of_factor(old_plan, layer, side);
      if (!mine.defined() || !others.defined()) continue;
      const at::Tensor whole = factor_of_layer(old_plan.planned()[layer], side, others);
      const int64_t columns = std::min(mine.size(0), others.size(0));
      mine.narrow(0, 0, columns)
          .copy_(factor_of_kept(plan.planned()[layer], side, whole).narrow(0, 0, columns));
    }
    const at::Tensor target = of_layer(plan, layer);
    at::Tensor owed = old.of_layer(old_plan, layer);
    if (!target.defined() || !owed.defined()) continue;
    const Mask *mask = plan.planned()[layer].run_mask(),
               *old_mask = old_plan.planned()[layer].run_mask();
    const bool same = plan.planned()[layer].mask == old_plan.planned()[layer].mask && mask == old_mask;
    if (same) {
      target.copy_(owed);
      owed = target;
    }
    const auto [owner, offset] = old.of_owner(old_plan, layer, rank);
    if (owner.defined()) {  // in the old arena: its time is over
      owed.narrow(0, offset, owner.numel()).add_(owner, static_cast<double>(plan.world_size()));
    }
    if (!same) target.copy_(run_of(plan.planned()[layer], layer_of(old_plan.planned()[layer], owed)));
  }
}

int64_t Residuals::bytes() const {
  int64_t total = 0;
  for (const Arena* arena : {&sender_, &owner_, &warm_}) {
    for (const at::Tensor& half : arena->half) total += half.defined() ? half.nbytes() : 0;
  }
  return total;
}

}  // namespace lgreco::engine
