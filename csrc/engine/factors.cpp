// The factored layers of a bucket on the CPU: projections, reconstruction, residuals.
#include "engine/factors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>

#include "kernels/mask.h"

namespace lgreco::engine {

Factors::Factors(const Plan& plan, const Layout& layout, bool matrix_in_residual)
    : plan_(plan), matrix_in_residual_(matrix_in_residual) {
  int64_t run_numel = 0;
  for (const FactoredLayer& place : layout.factored()) {
    const PlannedLayer& planned = plan.planned()[place.layer];
    const codecs::LowRank& lowrank = *planned.lowrank;
    Work work;
    work.planned = &planned;
    work.layer = place.layer;
    work.bucket_offset = place.bucket_offset;
    work.p = {place.p_offset, lowrank.p.length, lowrank.p.stride, planned.warm_p_offset};
    work.q = {place.q_offset, lowrank.q.length, lowrank.q.stride, planned.warm_q_offset};
    if (!matrix_in_residual) work.workspace = at::empty({lowrank.rows * lowrank.cols}, at::kFloat);
    if (const Mask* mask = planned.run_mask()) run_numel = std::max(run_numel, mask->kept());
    works_.push_back(std::move(work));
  }
  run_ = at::empty({run_numel * element_bytes(DType::kFloat32)}, at::kByte);
  const int64_t numel = layout.factor_numel();
  memory_ = at::zeros({4, numel}, at::kFloat);
  value_ = memory_.mutable_data_ptr<float>();
  mean_ = value_ + numel;
  error_ = mean_ + numel;
  owner_error_ = error_ + numel;
}

// The gradient of what is factored.
uint8_t* Factors::gathered(const Work& work, uint8_t* gradient, DType dtype) {
  const Mask* mask = work.planned->mask;
  if (mask == nullptr) return gradient;
  if (work.planned->run_mask() == nullptr) {  // the residual is zero there already
    kernels::mask_clear(mask->whole(), element_bytes(dtype), gradient);
    return gradient;
  }
  auto* run = run_.mutable_data_ptr<uint8_t>();
  kernels::mask_gather(mask->whole(), gradient, element_bytes(dtype), run);
  return run;
}

// The inverse: what was rebuilt, with zeros for what is pruned, there and in the residual.
void Factors::scatter(const Work& work, const codecs::Feedback& feedback, uint8_t* gradient,
                      DType dtype) {
  const Mask* mask = work.planned->mask;
  if (mask == nullptr) return;
  if (work.planned->run_mask() != nullptr) {
    kernels::mask_scatter(mask->whole(), run_.const_data_ptr(), element_bytes(dtype), gradient);
    return;
  }
  kernels::mask_clear(mask->whole(), element_bytes(dtype), gradient);
  if (feedback.out != nullptr) {
    kernels::mask_clear(mask->whole(), element_bytes(feedback.dtype), feedback.out);
  }
}

// The last step's average, whatever its scale, with fresh columns in place of those that carry nothing.
void Factors::load_basis(Work& work, const Side& side, const FactorStep& step) {
  const codecs::LowRank& lowrank = *work.planned->lowrank;
  const kernels::Factor basis = factor(mean_, side);
  std::memcpy(basis.data, step.residuals.warm(side.warm_offset),
              lowrank.rank * side.stride * sizeof(float));
  for (int column = 0; column < lowrank.rank; ++column) {
    if (!kernels::lowrank_scale_column(basis, side.length, column)) {
      kernels::lowrank_seed_column(basis, side.length, column, step.seed + step.committed_steps,
                                   static_cast<uint32_t>(work.layer));
    }
  }
  if (lowrank.alternate) kernels::lowrank_orthonormalise(basis, side.length, lowrank.rank);
}

at::Tensor Factors::view(float* memory, const Side& side, int rank) const {
  return at::from_blob(memory + side.offset, {rank, side.length}, {side.stride, 1}, at::kFloat);
}

const at::Tensor& Factors::matrix_view(Work& work) {
  for (at::Tensor& view : work.matrix_views) {
    if (!view.defined()) {
      const codecs::LowRank& lowrank = *work.planned->lowrank;
      view = at::from_blob(work.matrix, {lowrank.rows, lowrank.cols}, at::kFloat);
    }
    if (view.const_data_ptr<float>() == work.matrix) return view;
  }
  work.matrix_views[0] = at::Tensor();
  return matrix_view(work);
}

// P = M Q, or transposed: Q = M^T P; from the mean memory into the value memory.
void Factors::multiply(Work& work, bool transposed) {
  const codecs::LowRank& lowrank = *work.planned->lowrank;
  const Side &from = transposed ? work.p : work.q, &to = transposed ? work.q : work.p;
  if (lowrank.rank <= kernels::kFusedRanks) {
    const auto product = transposed ? kernels::lowrank_project_transposed : kernels::lowrank_project;
    product(work.matrix, lowrank.rows, lowrank.cols, lowrank.rank, factor(mean_, from),
            factor(value_, to));
    return;
  }
  at::Tensor result = view(value_, to, lowrank.rank);
  const at::Tensor& matrix = matrix_view(work);
  at::mm_out(result, view(mean_, from, lowrank.rank), transposed ? matrix : matrix.t());
}

void Factors::project(int i, uint8_t* bucket, DType dtype, const FactorStep& step) {
  Work& work = works_[i];
  const codecs::LowRank& lowrank = *work.planned->lowrank;
  const codecs::Feedback feedback = step.residuals.sender(*work.planned, step.scale);
  work.matrix =
      matrix_in_residual_ ? static_cast<float*>(feedback.out) : work.workspace.mutable_data_ptr<float>();
  const bool q_now = lowrank.alternate && takes_part(Turn::kEven, step.committed_steps);
  work.exchanges_p = lowrank.alternate && !q_now;
  load_basis(work, q_now ? work.p : work.q, step);
  const uint8_t* gradient = gathered(work, bucket + work.bucket_offset * element_bytes(dtype), dtype);
  if (!q_now && lowrank.rank <= kernels::kFusedRanks) {
    work.nonzero = kernels::lowrank_gather_project(gradient, dtype, lowrank.rows, lowrank.cols, feedback,
                                                   work.matrix, lowrank.rank, factor(mean_, work.q),
                                                   factor(value_, work.p))
                       .nonzero;
    return;
  }
  work.nonzero =
      kernels::lowrank_gather(gradient, dtype, lowrank.rows * lowrank.cols, feedback, work.matrix)
          .nonzero;
  multiply(work, q_now);
}

void Factors::advance(int i) {
  Work& work = works_[i];
  if (!work.nonzero || !has_second_stage(i)) return;
  kernels::lowrank_orthonormalise(factor(mean_, work.p), work.p.length, work.planned->lowrank->rank);
  multiply(work, /*transposed=*/true);
}

bool Factors::finish(int i, uint8_t* bucket, DType dtype, const FactorStep& step) {
  Work& work = works_[i];
  const codecs::LowRank& lowrank = *work.planned->lowrank;
  const Residuals& residuals = step.residuals;
  uint8_t* gradient = bucket + work.bucket_offset * element_bytes(dtype);
  for (const Side* side : {&work.p, &work.q}) {
    if (side->warm_offset < 0) continue;
    const bool fresh = work.nonzero && side == &last_exchanged(work);
    const float* source = fresh ? mean_ + side->offset : residuals.warm(side->warm_offset);
    std::memcpy(residuals.warm_shadow(side->warm_offset), source,
                lowrank.rank * side->stride * sizeof(float));
  }
  if (!work.nonzero) {
    std::memset(gradient, 0, plan_.layers()[work.layer].numel * element_bytes(dtype));
    residuals.keep_sender(*work.planned);
    return false;
  }
  const Side& last = last_exchanged(work);
  float* own = error_ + last.offset;  // what was lost becomes what was given
  const float *sent = value_ + last.offset, *lost = owner_error_ + last.offset;
  const auto ranks = static_cast<float>(plan_.world_size());
  for (int64_t j = 0; j < lowrank.rank * last.stride; ++j) own[j] = sent[j] - own[j] - ranks * lost[j];
  const codecs::Feedback feedback = residuals.sender(*work.planned, step.scale);
  uint8_t* out = work.planned->run_mask() != nullptr ? run_.mutable_data_ptr<uint8_t>() : gradient;
  const bool nonfinite =
      kernels::lowrank_reconstruct(
          lowrank.rows, lowrank.cols, lowrank.rank, factor(mean_, work.p), factor(mean_, work.q),
          feedback.scale, out, dtype, work.matrix, factor(work.exchanges_p ? error_ : mean_, work.p),
          factor(work.exchanges_p ? mean_ : error_, work.q), feedback.out, feedback.dtype)
          .nonfinite;
  scatter(work, feedback, gradient, dtype);
  return nonfinite;
}

codecs::Feedback Factors::error(float* memory, const Piece& piece, const Tile& tile) {
  const Part& part = plan_.part_of(tile);
  const bool last = part.stage == 1 || part.turn != Turn::kEvery;
  if (!last) return {};
  float* place = memory + piece.offset;
  std::memset(place, 0, tile.numel * sizeof(float));
  return {.in = place, .out = place};
}

codecs::Feedback Factors::sender_error(const Piece& piece, const Tile& tile) {
  return error(error_, piece, tile);
}

codecs::Feedback Factors::owner_error(const Piece& piece, const Tile& tile) {
  return error(owner_error_, piece, tile);
}

int64_t Factors::bytes() const {
  int64_t total = static_cast<int64_t>(memory_.nbytes() + run_.nbytes());
  for (const Work& work : works_) total += work.workspace.defined() ? work.workspace.nbytes() : 0;
  return total;
}

}  // namespace lgreco::engine
