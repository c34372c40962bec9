// Makes the matrix of the low-rank products from gradient and residual.
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

  static constexpr int kLanes = Parts::kLanes;

 public:
  /// Makes the matrix while it is read. Streamed: past the caches, where it is not read again soon and
  /// its old lines need not be read before they are overwritten.
  template <DType kInput, Owed kOwed, bool kStreamed>
  struct Gathered {
    const void* gradient;
    const void* residual;
    float* matrix;
    Float inverse_scale;
    Int seen = Lanes::zero(), flaws = Lanes::zero();

    /// Elements [i, i + count), of at most sixteen.
    LGRECO_HD Float take(int64_t i, int count) {
      Float value = Parts::template load<kInput>(gradient, i, count);
      seen = Lanes::bit_or(seen, Lanes::bits(value));
      value = Lanes::mul(value, inverse_scale);
      if constexpr (kOwed != Owed::kNone) {
        constexpr DType kResidual = kOwed == Owed::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
        value = Lanes::add(value, Parts::template load<kResidual>(residual, i, count));
      }
      flaws = Lanes::bit_or(flaws, Lanes::bits(Lanes::sub(value, value)));  // 0 where finite, else NaN
      if (kStreamed && count == Parts::kLanes) {
        Lanes::stream(matrix + i, value);
      } else {
        Parts::store(matrix + i, count, value);
      }
      return value;
    }
    Findings findings() const {
      return {.nonfinite = Lanes::any(flaws), .nonzero = Lanes::any_magnitude(seen)};
    }
  };

  /// Calls `visit` with the Gathered that these arguments ask for. `pitch`: elements between places
  /// where a row may begin.
  template <typename Visit>
  static void with_source(const void* gradient, DType dtype, int64_t numel, int64_t pitch,
                          const Feedback& feedback, float* matrix, const Visit& visit) {
    const bool streams = matrix != feedback.in && Parts::may_stream(matrix, numel, pitch);
    with_dtype(dtype, [&]<DType kInput>() {
      with_owed(feedback, [&]<Owed kOwed>() {
        const Float scale = Lanes::set(feedback.inverse_scale);
        if (streams) return visit(Gathered<kInput, kOwed, true>{gradient, feedback.in, matrix, scale});
        visit(Gathered<kInput, kOwed, false>{gradient, feedback.in, matrix, scale});
      });
    });
    if (streams) Lanes::fence();
  }

  static Findings gather(const void* gradient, DType dtype, int64_t numel, const Feedback& feedback,
                         float* matrix) {
    Findings findings;
    with_source(gradient, dtype, numel, numel / kLanes * kLanes, feedback, matrix, [&](auto source) {
      int64_t i = 0;
      for (; i + kLanes <= numel; i += kLanes) source.take(i, kLanes);
      if (i < numel) source.take(i, Parts::least(kLanes, numel - i));
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
