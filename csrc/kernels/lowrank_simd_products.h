// Matrix times factor over sixteen lanes, with one read of the matrix: its rows in tiles, their sums in
// registers.
#pragma once

#include "kernels/lowrank_simd_gather.h"

namespace lgreco::kernels {

template <class Lanes>
class LowRankProducts {
 public:
  static Findings gather_project(const void* gradient, DType dtype, int64_t rows, int64_t cols,
                                 const Feedback& feedback, float* matrix, int rank, const Factor& q,
                                 const Factor& p) {
    Findings findings;
    const Product product{matrix, rows, cols, rank, q, p};
    Gather::with_source(gradient, dtype, feedback, matrix, [&](auto source) {
      project_all(source, product);
      findings = source.findings();
    });
    return findings;
  }

  static void project(const float* matrix, int64_t rows, int64_t cols, int rank, const Factor& q,
                      const Factor& p) {
    Stored source{matrix};
    project_all(source, {matrix, rows, cols, rank, q, p});
  }

  static void project_transposed(const float* matrix, int64_t rows, int64_t cols, int rank,
                                 const Factor& p, const Factor& q) {
    for (int64_t begin = 0; begin < cols; begin += block_columns(rank)) {
      const Strip strip{matrix + begin,
                        rows,
                        cols,
                        least(block_columns(rank), cols - begin),
                        rank,
                        p,
                        {q.data + begin, q.stride}};
      int64_t row = 0;
      for (; row + kSummedRows <= rows; row += kSummedRows) add_rows<kSummedRows>(strip, row);
      for (; row < rows; ++row) add_rows<1>(strip, row);
      if (rows == 0) clear(strip);
    }
  }

 private:
  using Gather = LowRankGather<Lanes>;
  using Parts = LowRankParts<Lanes>;
  using Float = typename Lanes::Float;
  using Stored = typename Gather::Stored;

  static constexpr int kLanes = Parts::kLanes;
  static constexpr int kTileRows = Lanes::kRegisters >= 32 ? 4 : Lanes::kRegisters >= 8 ? 2 : 1;
  static constexpr int kTileColumns = Lanes::kRegisters >= 32 ? 4 : 2;
  static constexpr int kSummedRows = Lanes::kRegisters >= 32 ? 8 : Lanes::kRegisters >= 8 ? 4 : 1;
  static constexpr int kGroupRows = 4;
  /// Columns of the matrix that a group of rows is read by, so that it is in L1 for the next tile.
  static constexpr int kPieceColumns = 1024;

  struct Product {
    const float* matrix;
    int64_t rows, cols;
    int rank;
    const Factor& q;
    const Factor& p;
  };

  /// A group's products so far.
  using Sums = float[kGroupRows][kFusedRanks];

  static int least(int64_t a, int64_t b) { return Parts::least(a, b); }

  /// As many columns as have their part of the other factor in half a megabyte of L2.
  static int block_columns(int rank) { return (1 << 17) / rank / kPieceColumns * kPieceColumns; }

  template <class Source>
  static void project_all(Source& source, const Product& product) {
    const int block = block_columns(product.rank);
    for (int64_t begin = 0; begin == 0 || begin < product.cols; begin += block) {
      const int64_t end = begin + least(block, product.cols - begin);
      for (int64_t row = 0; row < product.rows; row += kGroupRows) {
        const int count = least(kGroupRows, product.rows - row);
        Sums sums = {};
        project_group(source, product, row, count, begin, end, sums);
        for (int j = 0; j < product.rank; ++j) {
          float* const to = column_of(product.p, j) + row;
          for (int r = 0; r < count; ++r) to[r] = begin == 0 ? sums[r][j] : to[r] + sums[r][j];
        }
      }
    }
  }

  /// Rows [row, row + count) times q, over the columns [begin, end).
  template <class Source>
  static void project_group(Source& source, const Product& product, int64_t row, int count,
                            int64_t begin, int64_t end, Sums& sums) {
    for (int64_t col = begin; col < end; col += kPieceColumns) {
      const int width = least(kPieceColumns, end - col);
      for (int j = 0; j < product.rank; j += kTileColumns) {
        // Where the last tile is not full its missing columns repeat its first: nobody reads the sums.
        const int columns = least(kTileColumns, product.rank - j);
        const float* q[kTileColumns];
        for (int c = 0; c < kTileColumns; ++c) {
          q[c] = column_of(product.q, c < columns ? j + c : j) + col;
        }
        Stored stored{product.matrix};
        for (int r = 0; r < count;) {
          const bool full = r + kTileRows <= count;
          const int64_t first = (row + r) * product.cols + col;
          if (j == 0) {
            project_rows(source, full, columns, first, product.cols, width, q, sums, r, j);
          } else {
            project_rows(stored, full, columns, first, product.cols, width, q, sums, r, j);
          }
          r += full ? kTileRows : 1;
        }
      }
    }
  }

  template <class Source>
  static void project_rows(Source& source, bool full, int columns, int64_t first, int64_t cols,
                           int width, const float* const* q, Sums& sums, int r, int j) {
    if (full) return project_tile<kTileRows>(source, columns, first, cols, width, q, sums, r, j);
    project_tile<1>(source, columns, first, cols, width, q, sums, r, j);
  }

  template <int kRows, class Source>
  static void project_tile(Source& source, int columns, int64_t first, int64_t cols, int width,
                           const float* const* q, Sums& sums, int r, int j) {
    if (columns == 1) return multiply<kRows, 1>(source, first, cols, width, q, sums, r, j);
    if (columns == 2) return multiply<kRows, 2>(source, first, cols, width, q, sums, r, j);
    multiply<kRows, kTileColumns>(source, first, cols, width, q, sums, r, j);
  }

  /// Adds to sums[r...][j...] the products of kRows rows, which begin at element `first` and lie `cols`
  /// apart, and kColumns columns of q, over `width` columns of the matrix.
  template <int kRows, int kColumns, class Source>
  static void multiply(Source& source, int64_t first, int64_t cols, int width, const float* const* q,
                       Sums& sums, int r, int j) {
    Source own = source;  // what it found stays in registers
    Float products[kRows][kColumns];
    for (auto& row : products) {
      for (Float& product : row) product = Lanes::set(0.0F);
    }
    const auto take = [&](int k, int count) __attribute__((always_inline)) {
      Float values[kRows];
      for (int a = 0; a < kRows; ++a) values[a] = own.take(first + a * cols + k, count);
      for (int c = 0; c < kColumns; ++c) {
        const Float base = Parts::load(q[c] + k, count);
        for (int a = 0; a < kRows; ++a) {
          products[a][c] = Lanes::mul_add(values[a], base, products[a][c]);
        }
      }
    };
    int k = 0;
    for (; k + kLanes <= width; k += kLanes) take(k, kLanes);
    if (k < width) take(k, width - k);
    for (int a = 0; a < kRows; ++a) {
      for (int c = 0; c < kColumns; ++c) sums[r + a][j + c] += Lanes::sum(products[a][c]);
    }
    source = own;
  }

  /// A block of the matrix's columns, all rows of it.
  struct Strip {
    const float* matrix;
    int64_t rows, cols;
    int width;
    int rank;
    const Factor& p;
    Factor q;
  };

  static void clear(const Strip& strip) {
    for (int j = 0; j < strip.rank; ++j) {
      memset(column_of(strip.q, j), 0, sizeof(float) * static_cast<size_t>(strip.width));
    }
  }

  /// Adds kRows rows, each times its element of p, to q; the first rows begin q.
  template <int kRows>
  static void add_rows(const Strip& strip, int64_t row) {
    float shares[kFusedRanks][kRows];
    for (int j = 0; j < strip.rank; ++j) {
      for (int r = 0; r < kRows; ++r) shares[j][r] = column_of(strip.p, j)[row + r];
    }
    const float* const matrix = strip.matrix + row * strip.cols;
    const auto take = [&](int k, int count) __attribute__((always_inline)) {
      Float values[kRows];
      for (int r = 0; r < kRows; ++r) values[r] = Parts::load(matrix + r * strip.cols + k, count);
      for (int j = 0; j < strip.rank; ++j) {
        float* const to = column_of(strip.q, j) + k;
        Float sum = row == 0 ? Lanes::set(0.0F) : Parts::load(to, count);
        for (int r = 0; r < kRows; ++r) {
          sum = Lanes::mul_add(values[r], Lanes::set(shares[j][r]), sum);
        }
        Parts::store(to, count, sum);
      }
    };
    int k = 0;
    for (; k + kLanes <= strip.width; k += kLanes) take(k, kLanes);
    if (k < strip.width) take(k, strip.width - k);
  }
};

}  // namespace lgreco::kernels
