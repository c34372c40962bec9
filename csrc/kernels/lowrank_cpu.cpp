// Low-rank products on the CPU.
#include <algorithm>
#include <cmath>

#include "kernels/elements.h"
#include "kernels/lowrank.h"
#include "kernels/lowrank_math.h"

namespace lgreco::kernels {
namespace {

float* column_of(const Factor& factor, int column) { return factor.data + column * factor.stride; }

float dot(const float* a, const float* b, int64_t length) {
  float lanes[kSumLanes] = {};
  for (int64_t begin = 0; begin < length; begin += kSumChunk) {
    const int64_t end = std::min(length, begin + kSumChunk);
    float some[kSumLanes] = {};
    for (int64_t i = begin; i < end; ++i) some[i % kSumLanes] += a[i] * b[i];
    for (int l = 0; l < kSumLanes; ++l) lanes[l] += some[l];
  }
  return sum_lanes(lanes);
}

/// Takes out of columns [column, column + columns) what lies along columns [first, first + count).
void subtract(const Factor& factor, int64_t length, int first, int count, int column, int columns) {
  for (int v = column; v < column + columns; ++v) {
    float share[kBlockColumns];
    for (int k = 0; k < count; ++k) {
      share[k] = dot(column_of(factor, first + k), column_of(factor, v), length);
    }
    for (int k = 0; k < count; ++k) {
      const float* base = column_of(factor, first + k);
      float* to = column_of(factor, v);
      for (int64_t i = 0; i < length; ++i) to[i] -= base[i] * share[k];
    }
  }
}

void normalise(float* column, int64_t length, float least) {
  const float norm = std::sqrt(dot(column, column, length));
  if (!(norm > least)) {
    std::fill_n(column, length, 0.0F);
    return;
  }
  const float inverse = 1.0F / norm;
  for (int64_t i = 0; i < length; ++i) column[i] *= inverse;
}

void orthonormalise_panel(const Factor& factor, int64_t length, int panel, int columns,
                          const float* least) {
  for (int first = 0; first < panel; first += kBlockColumns) {
    subtract(factor, length, first, std::min(kBlockColumns, panel - first), panel, columns);
  }
  for (int k = 0; k < columns; ++k) {
    subtract(factor, length, panel, k, panel + k, 1);
    normalise(column_of(factor, panel + k), length, least[k]);
  }
}

/// Returns the norm of the scaled column; 0: it became zero.
float prepare(float* column, int64_t length) {
  uint32_t greatest = 0;
  for (int64_t i = 0; i < length; ++i) greatest = std::max(greatest, magnitude_bits(column[i]));
  const float scale = column_scale(greatest);
  if (scale == 0.0F) {
    std::fill_n(column, length, 0.0F);
    return 0.0F;
  }
  for (int64_t i = 0; i < length; ++i) column[i] *= scale;
  return std::sqrt(dot(column, column, length));
}

float entry(const Factor& p, const Factor& q, int rank, int64_t row, int64_t col) {
  float sum = 0.0F;
  for (int j = 0; j < rank; ++j) {
    const float product = column_of(p, j)[row] * column_of(q, j)[col];
    sum = j == 0 ? product : sum + product;
  }
  return sum;
}

}  // namespace

Findings lowrank_gather(const void* gradient, DType dtype, int64_t numel, const Feedback& feedback,
                        float* matrix) {
  Findings findings;
  for (int64_t i = 0; i < numel; ++i) {
    float value = load_element(gradient, dtype, i);
    findings.nonzero |= value != 0.0F;
    value *= feedback.inverse_scale;
    if (feedback.in != nullptr) value += load_element(feedback.in, feedback.dtype, i);
    findings.nonfinite |= !is_finite(value);
    matrix[i] = value;
  }
  return findings;
}

Findings lowrank_gather_project(const void* gradient, DType dtype, int64_t rows, int64_t cols,
                                const Feedback& feedback, float* matrix, int rank, const Factor& q,
                                const Factor& p) {
  const Findings findings = lowrank_gather(gradient, dtype, rows * cols, feedback, matrix);
  lowrank_project(matrix, rows, cols, rank, q, p);
  return findings;
}

void lowrank_project(const float* matrix, int64_t rows, int64_t cols, int rank, const Factor& q,
                     const Factor& p) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int j = 0; j < rank; ++j) {
      column_of(p, j)[row] = dot(matrix + row * cols, column_of(q, j), cols);
    }
  }
}

void lowrank_project_transposed(const float* matrix, int64_t rows, int64_t cols, int rank,
                                const Factor& p, const Factor& q) {
  for (int j = 0; j < rank; ++j) {
    float* to = column_of(q, j);
    std::fill_n(to, cols, 0.0F);
    for (int64_t row = 0; row < rows; ++row) {
      const float share = column_of(p, j)[row];
      for (int64_t col = 0; col < cols; ++col) to[col] += matrix[row * cols + col] * share;
    }
  }
}

void lowrank_orthonormalise(const Factor& factor, int64_t length, int rank) {
  constexpr float kSecond[kPanelColumns] = {kSecondShare, kSecondShare, kSecondShare, kSecondShare,
                                            kSecondShare, kSecondShare, kSecondShare, kSecondShare};
  for (int panel = 0; panel < rank; panel += kPanelColumns) {
    const int columns = std::min(kPanelColumns, rank - panel);
    float least[kPanelColumns];
    for (int k = 0; k < columns; ++k) {
      least[k] = prepare(column_of(factor, panel + k), length) * kIndependentShare;
    }
    orthonormalise_panel(factor, length, panel, columns, least);
    orthonormalise_panel(factor, length, panel, columns, kSecond);
  }
}

Findings lowrank_reconstruct(int64_t rows, int64_t cols, int rank, const Factor& p, const Factor& q,
                             float scale, void* out, DType dtype, const float* matrix,
                             const Factor& own_p, const Factor& own_q, void* rest, DType rest_dtype) {
  Findings findings;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      const int64_t i = row * cols + col;
      const float stored = store_element(out, dtype, i, scale * entry(p, q, rank, row, col));
      findings.nonfinite |= !is_finite(stored);
      if (rest == nullptr) continue;
      store_element(rest, rest_dtype, i, matrix[i] - entry(own_p, own_q, rank, row, col));
    }
  }
  return findings;
}

void lowrank_seed_column(const Factor& factor, int64_t length, int column, uint64_t seed,
                         uint32_t layer) {
  float* const to = column_of(factor, column);
  for (int64_t i = 0; i < length; ++i) {
    to[i] = seed_value(seed, layer, static_cast<uint32_t>(column), static_cast<uint32_t>(i));
  }
}

}  // namespace lgreco::kernels
