// Reconstruction and what it leaves over sixteen lanes, the same bits at every level and on CUDA.
#pragma once

#include "kernels/lowrank_simd_parts.h"

namespace lgreco::kernels {

template <class Lanes>
class LowRankRebuild {
 public:
  static Findings reconstruct(int64_t rows, int64_t cols, int rank, const Factor& p, const Factor& q,
                              float scale, void* out, DType dtype, const float* matrix,
                              const Factor& own_p, const Factor& own_q, void* rest, DType rest_dtype) {
    const bool same = own_p.data == p.data && own_q.data == q.data && own_p.stride == p.stride &&
                      own_q.stride == q.stride;
    const Target target{rows, cols, rank, {p, q}, {own_p, own_q}, same, scale, out, matrix, rest};
    Int flaws = Lanes::zero();
    const bool streams = dtype == DType::kFloat32 && Parts::may_stream(out, rows * cols, cols);
    with_dtype(dtype, streams, [&]<DType kOut, bool kStreamed>() {
      if (rest == nullptr) return rebuild<kOut, kStreamed, Left::kNone>(target, flaws);
      if (rest_dtype == DType::kBFloat16) {
        return rebuild<kOut, kStreamed, Left::kBFloat16>(target, flaws);
      }
      rebuild<kOut, kStreamed, Left::kFloat32>(target, flaws);
    });
    if (streams) Lanes::fence();
    return {.nonfinite = Lanes::any(flaws)};
  }

 private:
  using Parts = LowRankParts<Lanes>;
  using Float = typename Lanes::Float;
  using Int = typename Lanes::Int;

  /// What is left over goes nowhere, or into a residual of a type.
  enum class Left : uint8_t { kNone, kFloat32, kBFloat16 };

  static constexpr int kLanes = Parts::kLanes;
  static constexpr int64_t kAhead = 128;
  static constexpr int kTileRows = Lanes::kRegisters >= 32 ? 4 : Lanes::kRegisters >= 8 ? 2 : 1;
  static constexpr int kTileChunks = Lanes::kRegisters >= 32 ? 4 : Lanes::kRegisters >= 8 ? 2 : 1;

  struct Factors {
    const Factor& p;
    const Factor& q;
  };

  struct Target {
    int64_t rows, cols;
    int rank;
    Factors exchanged, own;
    bool same;  ///< the own factors are the exchanged ones
    float scale;
    void* out;
    const float* matrix;
    void* rest;
  };

  template <typename Visit>
  static void with_dtype(DType dtype, bool streams, const Visit& visit) {
    if (dtype == DType::kBFloat16) return visit.template operator()<DType::kBFloat16, false>();
    if (dtype == DType::kFloat16) return visit.template operator()<DType::kFloat16, false>();
    if (streams) return visit.template operator()<DType::kFloat32, true>();
    visit.template operator()<DType::kFloat32, false>();
  }

  /// As many columns as have their part of q in a quarter of a megabyte.
  static int block_columns(int rank) {
    const int columns = (1 << 16) / (rank < 1 ? 1 : rank) / 64 * 64;
    return columns < 64 ? 64 : columns;
  }

  template <DType kOut, bool kStreamed, Left kLeft>
  static void rebuild(const Target& target, Int& flaws) {
    const int block = block_columns(target.rank);
    for (int64_t begin = 0; begin < target.cols; begin += block) {
      const int64_t end = begin + Parts::least(block, target.cols - begin);
      int64_t row = 0;
      for (; row + kTileRows <= target.rows; row += kTileRows) {
        rebuild_rows<kTileRows, kOut, kStreamed, kLeft>(target, row, begin, end, flaws);
      }
      for (; row < target.rows; ++row)
        rebuild_rows<1, kOut, kStreamed, kLeft>(target, row, begin, end, flaws);
    }
  }

  template <int kRows, DType kOut, bool kStreamed, Left kLeft>
  static void rebuild_rows(const Target& target, int64_t row, int64_t begin, int64_t end, Int& flaws) {
    constexpr int kWidth = kTileChunks * kLanes;
    int64_t col = begin;
    for (; col + kWidth <= end; col += kWidth) {
      if constexpr (kLeft != Left::kNone) {
        const int64_t ahead = col + kAhead < end ? kAhead : kRows * target.cols + kAhead - (end - begin);
        fetch<kRows>(target, row * target.cols + col + ahead);
      }
      rebuild_tile<kRows, kTileChunks, kOut, kStreamed, kLeft>(target, row, col, kLanes, flaws);
    }
    for (; col < end; col += kLanes) {
      const int count = Parts::least(kLanes, end - col);
      rebuild_tile<kRows, 1, kOut, kStreamed, kLeft>(target, row, col, count, flaws);
    }
  }

  template <int kRows>
  static void fetch(const Target& target, int64_t first) {
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kTileChunks; ++c) {
        __builtin_prefetch(target.matrix + first + r * target.cols + c * kLanes);
      }
    }
  }

  /// kRows rows by kChunks times `count` columns.
  template <int kRows, int kChunks, DType kOut, bool kStreamed, Left kLeft>
  static void rebuild_tile(const Target& target, int64_t row, int64_t col, int count, Int& flaws) {
    constexpr DType kRest = kLeft == Left::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
    Float sums[kRows][kChunks];
    multiply(target.exchanged, target.rank, row, col, count, sums);
    const Float scale = Lanes::set(target.scale);
    Int found = flaws;
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kChunks; ++c) {
        const int64_t i = (row + r) * target.cols + col + c * kLanes;
        Float stored = Lanes::mul(sums[r][c], scale);
        if (kStreamed && count == kLanes) {
          Lanes::stream(static_cast<float*>(target.out) + i, stored);
        } else {
          stored = Parts::template store<kOut>(target.out, i, count, stored);
        }
        found = Lanes::bit_or(found, Lanes::bits(Lanes::sub(stored, stored)));
      }
    }
    flaws = found;
    if constexpr (kLeft != Left::kNone) {
      if (!target.same) multiply(target.own, target.rank, row, col, count, sums);
      for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < kChunks; ++c) {
          const int64_t i = (row + r) * target.cols + col + c * kLanes;
          const Float left = Lanes::sub(Parts::load(target.matrix + i, count), sums[r][c]);
          Parts::template store<kRest>(target.rest, i, count, left);
        }
      }
    }
  }

  template <int kRows, int kChunks>
  static void multiply(const Factors& factors, int rank, int64_t row, int64_t col, int count,
                       Float (&sums)[kRows][kChunks]) {
    for (auto& of_row : sums) {
      for (Float& sum : of_row) sum = Lanes::set(0.0F);
    }
    for (int j = 0; j < rank; ++j) {
      const float* const p = column_of(factors.p, j) + row;
      const float* const q = column_of(factors.q, j) + col;
      Float values[kChunks];
      for (int c = 0; c < kChunks; ++c) values[c] = Parts::load(q + c * kLanes, count);
      for (int r = 0; r < kRows; ++r) {
        const Float share = Lanes::set(p[r]);
        for (int c = 0; c < kChunks; ++c) {
          sums[r][c] = Lanes::add(sums[r][c], Lanes::mul(share, values[c]));
        }
      }
    }
  }
};

}  // namespace lgreco::kernels
