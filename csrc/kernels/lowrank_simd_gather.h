// Where the low-rank products read a matrix from: as it is stored, or from gradient and residual.
#pragma once

#include "kernels/lowrank_simd_parts.h"

namespace lgreco::kernels {

template <class Lanes>
class LowRankGather {
  using Parts = LowRankParts<Lanes>;
  using Float = typename Lanes::Float;
  using Int = typename Lanes::Int;

  /// The residual that is added: none, fp32 or bf16.
  enum class Owed : uint8_t { kNone, kFloat32, kBFloat16 };

 public:
  struct Stored {
    const float* matrix;

    LGRECO_HD Float take(int64_t i, int count) { return Parts::load(matrix + i, count); }
  };

  /// Makes the matrix while it is read.
  template <DType kInput, Owed kOwed>
  struct Gathered {
    const void* gradient;
    const void* residual;
    float* matrix;
    Float inverse_scale;
    Int seen = Lanes::zero(), flaws = Lanes::zero();

    LGRECO_HD Float take(int64_t i, int count) {
      Float value = Parts::template load<kInput>(gradient, i, count);
      seen = Lanes::bit_or(seen, Lanes::bits(value));
      value = Lanes::mul(value, inverse_scale);
      if constexpr (kOwed != Owed::kNone) {
        constexpr DType kResidual = kOwed == Owed::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
        value = Lanes::add(value, Parts::template load<kResidual>(residual, i, count));
      }
      flaws = Lanes::bit_or(flaws, Lanes::bits(Lanes::sub(value, value)));  // 0 where finite, else NaN
      Parts::store(matrix + i, count, value);
      return value;
    }
    Findings findings() const {
      return {.nonfinite = Lanes::any(flaws), .nonzero = Lanes::any_magnitude(seen)};
    }
  };

  /// Calls `visit` with the Gathered that these arguments ask for.
  template <typename Visit>
  static void with_source(const void* gradient, DType dtype, const Feedback& feedback, float* matrix,
                          const Visit& visit) {
    with_dtype(dtype, [&]<DType kInput>() {
      with_owed(feedback, [&]<Owed kOwed>() {
        visit(
            Gathered<kInput, kOwed>{gradient, feedback.in, matrix, Lanes::set(feedback.inverse_scale)});
      });
    });
  }

  static Findings gather(const void* gradient, DType dtype, int64_t numel, const Feedback& feedback,
                         float* matrix) {
    Findings findings;
    with_source(gradient, dtype, feedback, matrix, [&](auto source) {
      int64_t i = 0;
      for (; i + Parts::kLanes <= numel; i += Parts::kLanes) source.take(i, Parts::kLanes);
      if (i < numel) source.take(i, Parts::least(Parts::kLanes, numel - i));
      findings = source.findings();
    });
    return findings;
  }

 private:
  template <typename Visit>
  static void with_dtype(DType dtype, const Visit& visit) {
    if (dtype == DType::kBFloat16) return visit.template operator()<DType::kBFloat16>();
    if (dtype == DType::kFloat16) return visit.template operator()<DType::kFloat16>();
    visit.template operator()<DType::kFloat32>();
  }

  template <typename Visit>
  static void with_owed(const Feedback& feedback, const Visit& visit) {
    if (feedback.in == nullptr) return visit.template operator()<Owed::kNone>();
    if (feedback.dtype == DType::kBFloat16) return visit.template operator()<Owed::kBFloat16>();
    visit.template operator()<Owed::kFloat32>();
  }
};

}  // namespace lgreco::kernels
