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
    Gather::with_source(gradient, dtype, rows * cols, cols, feedback, matrix, [&](auto gathered) {
      using Gathered = decltype(gathered);
      alignas(64) float kept[kGroupRows * kKeptPitch];
      if (rank <= kTileColumns) {
        Made<Gathered, false> source{gathered, kept, 0, cols};
        project_all(source, product);
        findings = source.gathered.findings();
      } else {
        Made<Gathered, true> source{gathered, kept, 0, cols};
        project_all(source, product);
        findings = source.gathered.findings();
      }
    });
    return findings;
  }

  static void project(const float* matrix, int64_t rows, int64_t cols, int rank, const Factor& q,
                      const Factor& p) {
    Stored source{matrix, cols};
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

  static constexpr int kLanes = Parts::kLanes;
  static constexpr int kTileRows = Lanes::kRegisters >= 32 ? 4 : Lanes::kRegisters >= 8 ? 2 : 1;
  static constexpr int kTileColumns = Lanes::kRegisters >= 32 ? 4 : 2;
  static constexpr int kSummedRows = Lanes::kRegisters >= 32 ? 8 : Lanes::kRegisters >= 8 ? 4 : 1;
  static constexpr int kGroupRows = 4;
  /// Columns of a group of rows that are multiplied by all of q before the next ones, so that a second
  /// tile finds them in a near cache.
  static constexpr int kPieceColumns = 2048;
  /// Rows of a piece that is kept do not lie on each other's cache sets, as those of a matrix often do.
  static constexpr int kKeptPitch = kPieceColumns + kLanes;

  struct Product {
    const float* matrix;
    int64_t rows, cols;
    int rank;
    const Factor& q;
    const Factor& p;
  };

  /// Some columns of some neighbouring rows of the matrix.
  struct Place {
    int64_t row, col;
    int rows, width;
  };

  /// A group's products so far: of each row with each column of q, lane by lane.
  struct Sums {
    alignas(64) float lanes[kGroupRows][kFusedRanks][kLanes];
  };

  /// Rows of the matrix that is there already, `pitch` elements apart.
  struct Stored {
    const float* values;
    int64_t pitch;

    Stored at(const Product& product, const Place& place) const {
      return {product.matrix + place.row * product.cols + place.col, product.cols};
    }
    Stored again() const { return *this; }
    Stored below(int rows) const { return {values + rows * pitch, pitch}; }
    void keep(const Stored&) {}
    LGRECO_HD Float take(int row, int k, int count) {
      return Parts::load(values + row * pitch + k, count);
    }
  };

  /// Rows of the matrix that are made while they are read, and kept near for the next tile.
  template <class Gathered, bool kKept>
  struct Made {
    Gathered gathered;
    float* kept;
    int64_t first;  ///< element of the matrix
    int64_t pitch;

    Made at(const Product& product, const Place& place) const {
      return {gathered, kept, place.row * product.cols + place.col, product.cols};
    }
    Stored again() const { return {kept, kKeptPitch}; }
    Made below(int rows) const {
      return {gathered, kept + rows * kKeptPitch, first + rows * pitch, pitch};
    }
    void keep(const Made& other) { gathered = other.gathered; }
    LGRECO_HD Float take(int row, int k, int count) {
      const Float value = gathered.take(first + row * pitch + k, count);
      if constexpr (kKept) Parts::store(kept + row * kKeptPitch + k, kLanes, value);
      return value;
    }
  };

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
        for (int64_t col = begin; col < end; col += kPieceColumns) {
          project_piece(source, product, {row, col, count, least(kPieceColumns, end - col)}, sums);
        }
        for (int j = 0; j < product.rank; ++j) {
          float* const to = column_of(product.p, j) + row;
          for (int r = 0; r < count; ++r) {
            const float sum = Lanes::sum(Parts::load(sums.lanes[r][j], kLanes));
            to[r] = begin == 0 ? sum : to[r] + sum;
          }
        }
      }
    }
  }

  template <class Source>
  static void project_piece(Source& source, const Product& product, const Place& place, Sums& sums) {
    Source piece = source.at(product, place);
    project_rows(piece, product, place, 0, sums);
    source.keep(piece);
    for (int j = kTileColumns; j < product.rank; j += kTileColumns) {
      auto again = piece.again();
      project_rows(again, product, place, j, sums);
    }
  }

  /// The piece times columns j, j + 1, ... of q, as many as a tile has.
  template <class Source>
  static void project_rows(Source& piece, const Product& product, const Place& place, int j,
                           Sums& sums) {
    const float* const q = column_of(product.q, j) + place.col;
    const int columns = least(kTileColumns, product.rank - j);
    for (int r = 0; r < place.rows;) {
      const bool full = r + kTileRows <= place.rows;
      const Tile tile{q, product.q.stride, place.width, &sums.lanes[r][j]};
      Source rows = piece.below(r);
      full ? multiply<kTileRows>(rows, tile, columns) : multiply<1>(rows, tile, columns);
      piece.keep(rows);
      r += full ? kTileRows : 1;
    }
  }

  /// Columns of q `stride` elements apart, and where their products are added up.
  struct Tile {
    const float* q;
    int64_t stride;
    int width;
    float (*sums)[kLanes];
  };

  template <int kRows, class Source>
  static void multiply(Source& rows, const Tile& tile, int columns) {
    if constexpr (kTileColumns == 4) {
      if (columns == 4) return multiply<kRows, 4>(rows, tile);
      if (columns == 3) return multiply<kRows, 3>(rows, tile);
    }
    if (columns == 2) return multiply<kRows, 2>(rows, tile);
    multiply<kRows, 1>(rows, tile);
  }

  template <int kRows, int kColumns, class Source>
  static void multiply(Source& rows, const Tile& tile) {
    Source own = rows;  // what it finds stays in registers
    Float products[kRows][kColumns];
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kColumns; ++c) {
        products[r][c] = Parts::load(tile.sums[r * kFusedRanks + c], kLanes);
      }
    }
    const auto take = [&](int k, int count) __attribute__((always_inline)) {
      Float values[kRows];
      for (int r = 0; r < kRows; ++r) values[r] = own.take(r, k, count);
      for (int c = 0; c < kColumns; ++c) {
        const Float base = Parts::load(tile.q + c * tile.stride + k, count);
        for (int r = 0; r < kRows; ++r) {
          products[r][c] = Lanes::mul_add(values[r], base, products[r][c]);
        }
      }
    };
    int k = 0;
    for (; k + kLanes <= tile.width; k += kLanes) take(k, kLanes);
    if (k < tile.width) take(k, tile.width - k);
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kColumns; ++c) {
        Parts::store(tile.sums[r * kFusedRanks + c], kLanes, products[r][c]);
      }
    }
    rows.keep(own);
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
