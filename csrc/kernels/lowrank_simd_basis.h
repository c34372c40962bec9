// Orthonormalisation over sixteen lanes, the same bits at every level and on CUDA.
#pragma once

#include "kernels/lowrank_simd_parts.h"

namespace lgreco::kernels {

/// Block Gram-Schmidt: a panel of columns is made orthogonal to all columns before it, block by block,
/// and then column by column within itself; and all that once more.
template <class Lanes>
class LowRankBasis {
 public:
  static void orthonormalise(const Factor& factor, int64_t length, int rank) {
    for (int first = 0; first < rank; first += kPanelColumns) {
      const int columns = Parts::least(kPanelColumns, rank - first);
      float least[kPanelColumns];
      for (int k = 0; k < columns; ++k) {
        least[k] = prepare(column_of(factor, first + k), length) * kIndependentShare;
      }
      subtract_before(factor, length, first, columns);
      for (int k = 0; k < columns; ++k) {
        subtract_and_normalise(factor, length, first, k, least[k]);
        subtract_and_normalise(factor, length, first, k, kSecondShare);
      }
      if (first == 0) continue;
      subtract_before(factor, length, first, columns);
      for (int k = 0; k < columns; ++k) {
        subtract_and_normalise(factor, length, first, k, kSecondShare);
      }
    }
  }

 private:
  using Parts = LowRankParts<Lanes>;
  using Float = typename Lanes::Float;
  using Int = typename Lanes::Int;

  static constexpr int kTile = Lanes::kRegisters >= 32 ? 4 : Lanes::kRegisters >= 8 ? 2 : 1;

  /// Columns [first, first + count) and [panel, panel + columns) of a factor, and the products between
  /// them: sums[k][v] while they are added up, shares[k][v] afterwards.
  struct Pairing {
    Pairing(const Factor& of, int64_t length_of, int first_of, int count_of, int panel_of,
            int columns_of)
        : factor(of),
          length(length_of),
          first(first_of),
          count(count_of),
          panel(panel_of),
          columns(columns_of) {
      memset(sums, 0, sizeof(sums[0]) * static_cast<size_t>(count));  // few of them in a narrow factor
    }

    const Factor& factor;
    const int64_t length;
    const int first, count;
    const int panel, columns;
    alignas(64) float sums[kBlockColumns][kPanelColumns][kSumLanes];
    float shares[kBlockColumns][kPanelColumns];
  };

  /// Takes out of a panel what lies along the columns before it.
  static void subtract_before(const Factor& factor, int64_t length, int panel, int columns) {
    for (int first = 0; first < panel; first += kBlockColumns) {
      subtract(factor, length, first, Parts::least(kBlockColumns, panel - first), panel, columns);
    }
  }

  /// Takes out of column k of a panel what lies along the panel's columns before it.
  static void subtract_and_normalise(const Factor& factor, int64_t length, int panel, int k,
                                     float least) {
    subtract(factor, length, panel, k, panel + k, 1);
    normalise(column_of(factor, panel + k), length, least);
  }

  /// Takes out of columns [panel, panel + columns) what lies along columns [first, first + count).
  static void subtract(const Factor& factor, int64_t length, int first, int count, int panel,
                       int columns) {
    if (count == 0) return;
    Pairing pairing(factor, length, first, count, panel, columns);
    for (int64_t begin = 0; begin < length; begin += kSumChunk) multiply_chunk(pairing, begin);
    for (int k = 0; k < count; ++k) {
      for (int v = 0; v < columns; ++v) {
        pairing.shares[k][v] = Lanes::sum(Parts::load(pairing.sums[k][v], kSumLanes));
      }
    }
    for (int64_t begin = 0; begin < length; begin += kSumChunk) subtract_chunk(pairing, begin);
  }

  static void multiply_chunk(Pairing& pairing, int64_t begin) {
    int k = 0;
    for (; k + kTile <= pairing.count; k += kTile) multiply_rows<kTile>(pairing, begin, k);
    for (; k < pairing.count; ++k) multiply_rows<1>(pairing, begin, k);
  }

  template <int kRows>
  static void multiply_rows(Pairing& pairing, int64_t begin, int k) {
    int v = 0;
    for (; v + kTile <= pairing.columns; v += kTile) multiply_tile<kRows, kTile>(pairing, begin, k, v);
    for (; v < pairing.columns; ++v) multiply_tile<kRows, 1>(pairing, begin, k, v);
  }

  /// Adds a chunk's products of kRows by kColumns pairs to their sums.
  template <int kRows, int kColumns>
  static void multiply_tile(Pairing& pairing, int64_t begin, int k, int v) {
    const int numel = Parts::least(kSumChunk, pairing.length - begin);
    const float* const base = column_of(pairing.factor, pairing.first + k) + begin;
    const float* const panel = column_of(pairing.factor, pairing.panel + v) + begin;
    const int64_t stride = pairing.factor.stride;
    Float sums[kRows][kColumns];
    for (auto& row : sums) {
      for (Float& sum : row) sum = Lanes::set(0.0F);
    }
    const auto take = [&](int i, int count) __attribute__((always_inline)) {
      Float values[kColumns];
      for (int c = 0; c < kColumns; ++c) values[c] = Parts::load(panel + c * stride + i, count);
      for (int r = 0; r < kRows; ++r) {
        const Float other = Parts::load(base + r * stride + i, count);
        for (int c = 0; c < kColumns; ++c) {
          sums[r][c] = Lanes::add(sums[r][c], Lanes::mul(other, values[c]));
        }
      }
    };
    int i = 0;
    for (; i + kSumLanes <= numel; i += kSumLanes) take(i, kSumLanes);
    if (i < numel) take(i, numel - i);
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kColumns; ++c) {
        float* const to = pairing.sums[k + r][v + c];
        Parts::store(to, kSumLanes, Lanes::add(Parts::load(to, kSumLanes), sums[r][c]));
      }
    }
  }

  static void subtract_chunk(const Pairing& pairing, int64_t begin) {
    const int numel = Parts::least(kSumChunk, pairing.length - begin);
    for (int k = 0; k < pairing.count; k += 4) {
      const int bases = Parts::least(4, pairing.count - k);
      for (int v = 0; v < pairing.columns; ++v) {
        if (bases == 4) {
          subtract_columns<4>(pairing, begin, numel, k, v);
        } else {
          for (int b = 0; b < bases; ++b) subtract_columns<1>(pairing, begin, numel, k + b, v);
        }
      }
    }
  }

  /// Takes kBases columns out of a chunk of one, in ascending order.
  template <int kBases>
  static void subtract_columns(const Pairing& pairing, int64_t begin, int numel, int k, int v) {
    const float* const base = column_of(pairing.factor, pairing.first + k) + begin;
    float* const to = column_of(pairing.factor, pairing.panel + v) + begin;
    const int64_t stride = pairing.factor.stride;
    Float shares[kBases];
    for (int b = 0; b < kBases; ++b) shares[b] = Lanes::set(pairing.shares[k + b][v]);
    const auto take = [&](int i, int count) __attribute__((always_inline)) {
      Float value = Parts::load(to + i, count);
      for (int b = 0; b < kBases; ++b) {
        value = Lanes::sub(value, Lanes::mul(Parts::load(base + b * stride + i, count), shares[b]));
      }
      Parts::store(to + i, count, value);
    };
    int i = 0;
    for (; i + kSumLanes <= numel; i += kSumLanes) take(i, kSumLanes);
    if (i < numel) take(i, numel - i);
  }

  /// Returns the norm of the scaled column; 0: it became zero.
  static float prepare(float* column, int64_t length) {
    const float scale = column_scale(greatest_magnitude(column, length));
    scale_by(scale, column, length);
    return scale == 0.0F ? 0.0F : norm_of(column, length);
  }

  static void normalise(float* column, int64_t length, float least) {
    const float norm = norm_of(column, length);
    scale_by(norm > least ? 1.0F / norm : 0.0F, column, length);
  }

  /// Bits of the greatest magnitude; those of inf where an element is not finite.
  static uint32_t greatest_magnitude(const float* column, int64_t length) {
    Float greatest = Lanes::set(0.0F);
    Int flaws = Lanes::zero();
    for (int64_t i = 0; i < length; i += kSumLanes) {
      const Float value = Parts::load(column + i, Parts::least(kSumLanes, length - i));
      const Float magnitude = Lanes::max(value, Lanes::sub(Lanes::set(0.0F), value));
      greatest = Lanes::max(greatest, magnitude);
      flaws = Lanes::bit_or(flaws, Lanes::bits(Lanes::sub(value, value)));
    }
    return Lanes::any(flaws) ? 0x7F800000U : magnitude_bits(Lanes::highest(greatest));
  }

  static float norm_of(const float* column, int64_t length) {
    Float sums = Lanes::set(0.0F);
    for (int64_t begin = 0; begin < length; begin += kSumChunk) {
      const int numel = Parts::least(kSumChunk, length - begin);
      Float some = Lanes::set(0.0F);
      for (int i = 0; i < numel; i += kSumLanes) {
        const Float value = Parts::load(column + begin + i, Parts::least(kSumLanes, numel - i));
        some = Lanes::add(some, Lanes::mul(value, value));
      }
      sums = Lanes::add(sums, some);
    }
    return __builtin_sqrtf(Lanes::sum(sums));
  }

  /// By 0 whatever the column holds becomes zero.
  static void scale_by(float scale, float* column, int64_t length) {
    if (scale == 0.0F) {
      memset(column, 0, sizeof(float) * static_cast<size_t>(length));
      return;
    }
    const Float factor = Lanes::set(scale);
    for (int64_t i = 0; i < length; i += kSumLanes) {
      const int count = Parts::least(kSumLanes, length - i);
      Parts::store(column + i, count, Lanes::mul(Parts::load(column + i, count), factor));
    }
  }
};

}  // namespace lgreco::kernels
