// What the low-rank tests share: matrices of many kinds and shapes, factors with gaps between their
// columns, products in double precision.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "kernel_cases.h"
#include "kernels/lowrank.h"

namespace lgreco::kernels {

struct Shape {
  int64_t rows, cols;
};

inline constexpr Shape kShapes[] = {{1, 1},   {1, 70},     {70, 1},    {3, 5},    {5, 16},
                                    {31, 33}, {256, 1024}, {1024, 33}, {64, 576}, {6, 2100}};

inline std::string text_of(const Shape& shape, int rank) {
  return concat(shape.rows, "x", shape.cols, " rank ", rank);
}

/// A factor whose columns have guards between them.
class Columns {
 public:
  static constexpr int64_t kGap = 5;
  static constexpr float kUntouched = -77.0F;

  Columns(int64_t length, int rank)
      : length_(length),
        rank_(rank),
        values_(static_cast<size_t>((length + kGap) * rank + kGap), kUntouched) {}
  Columns(int64_t length, int rank, int kind, uint32_t seed) : Columns(length, rank) {
    for (int j = 0; j < rank; ++j) set(j, make_values(kind, length, seed * 1000 + j));
  }

  Factor factor() { return {values_.data() + kGap, length_ + kGap}; }
  float* column(int j) { return values_.data() + kGap + j * (length_ + kGap); }
  const float* column(int j) const { return values_.data() + kGap + j * (length_ + kGap); }
  void set(int j, const std::vector<float>& values) { std::copy_n(values.data(), length_, column(j)); }
  std::vector<float> get(int j) const { return {column(j), column(j) + length_}; }

  bool gaps_hold() const {
    for (int j = 0; j <= rank_; ++j) {
      const float* const gap = values_.data() + j * (length_ + kGap);
      if (!std::all_of(gap, gap + kGap, [](float value) { return value == kUntouched; })) return false;
    }
    return true;
  }
  bool operator==(const Columns& other) const {
    return memcmp(values_.data(), other.values_.data(), values_.size() * sizeof(float)) == 0;
  }

 private:
  int64_t length_;
  int rank_;
  std::vector<float> values_;
};

inline double product_of(const float* a, const float* b, int64_t length) {
  double sum = 0;
  for (int64_t i = 0; i < length; ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum;
}

/// Sums of products are off by roundings of terms of this total magnitude.
inline double magnitude_of(const float* a, const float* b, int64_t length) {
  double sum = 0;
  for (int64_t i = 0; i < length; ++i) sum += std::fabs(static_cast<double>(a[i]) * b[i]);
  return sum;
}

inline std::vector<float> transposed(const std::vector<float>& matrix, const Shape& shape) {
  std::vector<float> turned(matrix.size());
  for (int64_t r = 0; r < shape.rows; ++r) {
    for (int64_t c = 0; c < shape.cols; ++c) turned[c * shape.rows + r] = matrix[r * shape.cols + c];
  }
  return turned;
}

/// Whether every element of p is a row of the matrix times a column of q, up to rounding.
inline void expect_product(const std::vector<float>& matrix, const Shape& shape, int rank,
                           const Columns& q, const Columns& p) {
  for (int j = 0; j < rank; ++j) {
    for (int64_t r = 0; r < shape.rows; ++r) {
      const float* const row = matrix.data() + r * shape.cols;
      const double expected = product_of(row, q.column(j), shape.cols);
      const double allowed = 1e-6 * magnitude_of(row, q.column(j), shape.cols) + 1e-42;
      ASSERT_NEAR(p.column(j)[r], expected, allowed) << "column " << j << " row " << r;
    }
  }
}

}  // namespace lgreco::kernels
