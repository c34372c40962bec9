// Binds the low-rank CPU kernels for tests and benchmarks: convert, check, release the GIL, call.
#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>

#include <optional>
#include <utility>

#include "bindings/bindings.h"
#include "core/error.h"
#include "engine/tensor_dtype.h"
#include "kernels/lowrank.h"

namespace lgreco::bindings {
namespace {

namespace py = pybind11;
using at::Tensor;
using engine::dtype_of;
using kernels::Factor;
using kernels::Feedback;
using kernels::Findings;

/// (nonfinite, nonzero)
using FindingsFields = std::pair<bool, bool>;

void check_matrix(const Tensor& tensor, const char* name, int64_t rows, int64_t cols) {
  require(tensor.is_cpu() && tensor.is_contiguous(), name, " must be a contiguous CPU tensor");
  require(tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == cols, name,
          " must have shape [", rows, ", ", cols, "], got ", tensor.sizes());
}

float* floats_of(const Tensor& tensor, const char* name, int64_t rows, int64_t cols) {
  check_matrix(tensor, name, rows, cols);
  require(tensor.scalar_type() == at::kFloat, name, " must be fp32, got ", tensor.scalar_type());
  return tensor.mutable_data_ptr<float>();
}

/// A factor is a tensor whose rows are its columns.
Factor factor_of(const Tensor& tensor, const char* name, int64_t rank, int64_t length) {
  return {floats_of(tensor, name, rank, length), length};
}

int fused_rank_of(const Tensor& factor) {
  require(factor.dim() == 2 && factor.size(0) >= 1 && factor.size(0) <= kernels::kFusedRanks,
          "a factor must have shape [rank, length] with rank 1..", kernels::kFusedRanks, ", got ",
          factor.sizes());
  return static_cast<int>(factor.size(0));
}

std::pair<int64_t, int64_t> sides_of(const Tensor& matrix, const char* name) {
  require(matrix.dim() == 2, name, " must have two dimensions, got ", matrix.dim());
  return {matrix.size(0), matrix.size(1)};
}

FindingsFields gather_project(const Tensor& gradient, const std::optional<Tensor>& residual, float scale,
                              const Tensor& matrix, const Tensor& q, const Tensor& p) {
  const auto [rows, cols] = sides_of(gradient, "the gradient");
  check_matrix(gradient, "the gradient", rows, cols);
  const DType dtype = dtype_of(gradient, "the gradient");
  float* const to = floats_of(matrix, "the matrix", rows, cols);
  const int rank = fused_rank_of(q);
  const Factor from = factor_of(q, "q", rank, cols), product = factor_of(p, "p", rank, rows);
  Feedback feedback{.scale = scale, .inverse_scale = 1.0F / scale};
  if (residual) {
    check_matrix(*residual, "the residual", rows, cols);
    feedback.in = residual->const_data_ptr();
    feedback.dtype = dtype_of(*residual, "the residual");
    require(feedback.dtype != DType::kFloat16, "the residual must be fp32 or bf16");
  }
  const py::gil_scoped_release release;
  const Findings findings = kernels::lowrank_gather_project(gradient.const_data_ptr(), dtype, rows, cols,
                                                            feedback, to, rank, from, product);
  return {findings.nonfinite, findings.nonzero};
}

void project(const Tensor& matrix, const Tensor& q, const Tensor& p) {
  const auto [rows, cols] = sides_of(matrix, "the matrix");
  const int rank = fused_rank_of(q);
  const float* const from = floats_of(matrix, "the matrix", rows, cols);
  const Factor by = factor_of(q, "q", rank, cols), to = factor_of(p, "p", rank, rows);
  const py::gil_scoped_release release;
  kernels::lowrank_project(from, rows, cols, rank, by, to);
}

void project_transposed(const Tensor& matrix, const Tensor& p, const Tensor& q) {
  const auto [rows, cols] = sides_of(matrix, "the matrix");
  const int rank = fused_rank_of(p);
  const float* const from = floats_of(matrix, "the matrix", rows, cols);
  const Factor by = factor_of(p, "p", rank, rows), to = factor_of(q, "q", rank, cols);
  const py::gil_scoped_release release;
  kernels::lowrank_project_transposed(from, rows, cols, rank, by, to);
}

void orthonormalise(const Tensor& factor) {
  const auto [rank, length] = sides_of(factor, "the factor");
  const Factor columns = factor_of(factor, "the factor", rank, length);
  const py::gil_scoped_release release;
  kernels::lowrank_orthonormalise(columns, length, static_cast<int>(rank));
}

bool reconstruct(const Tensor& p, const Tensor& q, float scale, const Tensor& out,
                 const std::optional<Tensor>& matrix, const Tensor& own_p, const Tensor& own_q,
                 const std::optional<Tensor>& rest) {
  const auto [rank, rows] = sides_of(p, "p");
  const int64_t cols = sides_of(q, "q").second;
  const Factor exchanged_p = factor_of(p, "p", rank, rows), exchanged_q = factor_of(q, "q", rank, cols);
  const Factor kept_p = factor_of(own_p, "own p", rank, rows),
               kept_q = factor_of(own_q, "own q", rank, cols);
  check_matrix(out, "out", rows, cols);
  const DType dtype = dtype_of(out, "out");
  require(matrix.has_value() == rest.has_value(), "matrix and rest must both be given, or neither");
  const float* const values = matrix ? floats_of(*matrix, "the matrix", rows, cols) : nullptr;
  void* left = nullptr;
  DType left_dtype = DType::kFloat32;
  if (rest) {
    check_matrix(*rest, "rest", rows, cols);
    left_dtype = dtype_of(*rest, "rest");
    require(left_dtype != DType::kFloat16, "rest must be fp32 or bf16");
    left = rest->mutable_data_ptr();
  }
  const py::gil_scoped_release release;
  return kernels::lowrank_reconstruct(rows, cols, static_cast<int>(rank), exchanged_p, exchanged_q,
                                      scale, out.mutable_data_ptr(), dtype, values, kept_p, kept_q, left,
                                      left_dtype)
      .nonfinite;
}

void seed_column(const Tensor& factor, int column, uint64_t seed, uint32_t layer) {
  const auto [rank, length] = sides_of(factor, "the factor");
  require(column >= 0 && column < rank, "column must be 0..", rank - 1, ", got ", column);
  const Factor columns = factor_of(factor, "the factor", rank, length);
  const py::gil_scoped_release release;
  kernels::lowrank_seed_column(columns, length, column, seed, layer);
}

}  // namespace

void bind_lowrank(py::module_& module) {
  module.def("lowrank_gather_project", &gather_project, py::arg("gradient"), py::arg("residual"),
             py::arg("scale"), py::arg("matrix"), py::arg("q"), py::arg("p"));
  module.def("lowrank_project", &project, py::arg("matrix"), py::arg("q"), py::arg("p"));
  module.def("lowrank_project_transposed", &project_transposed, py::arg("matrix"), py::arg("p"),
             py::arg("q"));
  module.def("lowrank_orthonormalise", &orthonormalise, py::arg("factor"));
  module.def("lowrank_reconstruct", &reconstruct, py::arg("p"), py::arg("q"), py::arg("scale"),
             py::arg("out"), py::arg("matrix"), py::arg("own_p"), py::arg("own_q"), py::arg("rest"));
  module.def("lowrank_seed_column", &seed_column, py::arg("factor"), py::arg("column"), py::arg("seed"),
             py::arg("layer"));
}

}  // namespace lgreco::bindings
