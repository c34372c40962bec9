// Binds the solvers: convert, check, release the GIL, call.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <tuple>

#include "bindings/bindings.h"
#include "core/error.h"
#include "solver/dp.h"
#include "solver/exhaustive.h"
#include "solver/lagrangian.h"

namespace lgreco::bindings {
namespace {

namespace py = pybind11;
using solver::Problem;
using solver::Solution;

template <typename T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;
/// (choices, cost, error, lower_bound, gap)
using SolutionFields = std::tuple<py::array_t<int32_t>, double, double, double, double>;

Solution dispatch(const std::string& method, const Problem& problem) {
  if (method == "lagrangian") return solver::solve_lagrangian(problem);
  if (method == "dp") return solver::solve_dp(problem);
  if (method == "exhaustive") return solver::solve_exhaustive(problem);
  throw ValueError(concat("method must be lagrangian, dp or exhaustive, got ", method));
}

SolutionFields solve(const std::string& method, const Array<double>& errors, const Array<double>& costs,
                     double budget, const std::optional<Array<int32_t>>& reference,
                     const std::string& error_name, const std::string& cost_name) {
  require(errors.ndim() == 2 && costs.ndim() == 2 && errors.shape(0) == costs.shape(0) &&
              errors.shape(1) == costs.shape(1),
          "both tables must be [layers, choices], of one shape");
  require(!reference || (reference->ndim() == 1 && reference->shape(0) == errors.shape(0)),
          "the reference must be [layers]");
  const Problem problem{errors.shape(0),    errors.shape(1),  errors.data(),
                        costs.data(),       budget,           reference ? reference->data() : nullptr,
                        error_name.c_str(), cost_name.c_str()};
  Solution solution;
  {
    const py::gil_scoped_release release;
    solution = dispatch(method, problem);
  }
  const auto layers = static_cast<py::ssize_t>(solution.choices.size());
  return {py::array_t<int32_t>(layers, solution.choices.data()), solution.cost, solution.error,
          solution.lower_bound, solution.gap};
}

}  // namespace

void bind_solver(py::module_& module) {
  module.def("solve", &solve, "One choice a layer: least total cost within an error budget.",
             py::arg("method"), py::arg("errors"), py::arg("costs"), py::arg("budget"),
             py::arg("reference"), py::arg("error_name"), py::arg("cost_name"));
}

}  // namespace lgreco::bindings
