// The factored layers of a bucket on the CPU: from the gradient to factors that are exchanged, and from
// their averages back to the gradient (PowerSGD, arXiv 1905.13727, algorithms 1 and 2).
//
// Both at once (`both`):      P = M Q', averaged, orthonormalised; then Q = M^T P, averaged.
// In turn (`alternate`):      even steps Q = M^T P', odd steps P = M Q', the primed one orthonormalised.
// The gradient becomes P Q^T. M is this rank's gradient + residual, in the residual's scale; primed
// factors are the last committed step's averages (warm start).
//
// The residual is M - P Q_own^T, where Q_own is what this rank's part of the average really was: what it
// sent after coding, less, where it is the owner, the error of coding the average, times the world size.
// So the mean over ranks of the residuals is exactly the mean of M less what was delivered.
//
// Of a masked layer M is the matrix that its mask keeps, gathered and scattered. Where what is kept is
// no matrix, M is the whole one, and what is pruned is zero in it, in the residual and in what is
// delivered.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "engine/layout.h"
#include "engine/plan.h"
#include "engine/residuals.h"
#include "kernels/lowrank.h"

namespace lgreco::engine {

/// What the arithmetic of a step depends on besides gradients.
struct FactorStep {
  const Residuals& residuals;
  float scale = 1.0F;            ///< loss scale of the gradients
  uint64_t committed_steps = 0;  ///< decides whose turn it is
  uint64_t seed = 0;
};

class Factors {
 public:
  /// Memory for the layers of `layout`; none where it has no factored ones. Both must outlive this.
  Factors(const Plan& plan, const Layout& layout, bool matrix_in_residual);

  int count() const { return static_cast<int>(works_.size()); }
  /// Whether the layer's averages of the first stage are what the second stage's factor is made from.
  bool has_second_stage(int i) const { return !works_[i].planned->lowrank->alternate; }

  /// M, and the first factor to be exchanged.
  void project(int i, uint8_t* bucket, DType dtype, const FactorStep& step);
  /// The second factor to be exchanged, from the first one's average.
  void advance(int i);
  /// The gradient, the residual and the next step's warm start. Returns whether an inf or NaN came out.
  bool finish(int i, uint8_t* bucket, DType dtype, const FactorStep& step);

  /// What is encoded for a tile, and where its average is decoded to.
  const float* value(const Piece& piece) const { return value_ + piece.offset; }
  float* mean(const Piece& piece) { return mean_ + piece.offset; }
  /// Where coding a tile leaves its error, as sender and as owner; none where the error costs nothing
  /// but quality (a factor from whose average another one is computed).
  codecs::Feedback sender_error(const Piece& piece, const Tile& tile);
  codecs::Feedback owner_error(const Piece& piece, const Tile& tile);

  /// Whether the layer has a gradient: on this rank until the first stage's averages have come, on any
  /// rank from then on.
  bool nonzero(const Piece& piece) const { return works_[piece.factored].nonzero; }
  void set_nonzero(const Piece& piece, bool nonzero) { works_[piece.factored].nonzero = nonzero; }

  int64_t bytes() const;

 private:
  /// A factor's place in each of the four memories.
  struct Side {
    int64_t offset = 0, length = 0, stride = 0, warm_offset = -1;
  };
  struct Work {
    const PlannedLayer* planned = nullptr;
    int32_t layer = 0;
    int64_t bucket_offset = 0;
    Side p, q;
    float* matrix = nullptr;
    at::Tensor workspace;        ///< of the matrix, where the residual's memory cannot hold it
    at::Tensor matrix_views[2];  ///< of the places where it was, for BLAS
    bool nonzero = false;
    bool exchanges_p = false;  ///< in this step, as the last factor
  };

  kernels::Factor factor(float* memory, const Side& side) const {
    return {memory + side.offset, side.stride};
  }
  const Side& last_exchanged(const Work& work) const { return work.exchanges_p ? work.p : work.q; }
  uint8_t* gathered(const Work& work, uint8_t* gradient, DType dtype);
  void scatter(const Work& work, const codecs::Feedback& feedback, uint8_t* gradient, DType dtype);
  void load_basis(Work& work, const Side& side, const FactorStep& step);
  void multiply(Work& work, bool transposed);
  at::Tensor view(float* memory, const Side& side, int rank) const;
  const at::Tensor& matrix_view(Work& work);
  codecs::Feedback error(float* memory, const Piece& piece, const Tile& tile);

  const Plan& plan_;
  bool matrix_in_residual_;
  std::vector<Work> works_;
  at::Tensor run_;     ///< one layer's run at a time, as it is gathered and before it is scattered
  at::Tensor memory_;  ///< fp32, [4, factor_numel]
  float *value_ = nullptr, *mean_ = nullptr, *error_ = nullptr, *owner_error_ = nullptr;
};

}  // namespace lgreco::engine
