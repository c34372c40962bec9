// Binds the simulation of an exchange, which error tables are made of: convert, check, release, call.
#include "codecs/simulate.h"

#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>

#include <optional>

#include "bindings/bindings.h"
#include "bindings/choice_from.h"
#include "codecs/registry.h"
#include "core/error.h"

namespace lgreco::bindings {
namespace {

namespace py = pybind11;

const float* floats_of(const at::Tensor& tensor, const char* name, int64_t numel) {
  require(tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == at::kFloat, name,
          " must be contiguous fp32 on the CPU");
  require(tensor.numel() == numel, name, " must have ", numel, " elements, got ", tensor.numel());
  return tensor.const_data_ptr<float>();
}

double simulate_choice(const py::dict& fields, const std::vector<at::Tensor>& values, uint64_t seed,
                       const std::optional<at::Tensor>& owner) {
  const codecs::Choice choice = choice_from(fields);
  require(!values.empty(), "values must hold a tensor for each rank, got none");
  const int64_t numel = values[0].numel();
  std::vector<const float*> ranks;
  for (const at::Tensor& rank : values) ranks.push_back(floats_of(rank, "values", numel));
  const float* rest = owner ? floats_of(*owner, "owner", numel) : nullptr;
  const py::gil_scoped_release release;
  return codecs::simulate(*codecs::make_codec(choice), ranks, rest, numel, seed);
}

}  // namespace

void bind_simulate(py::module_& module) {
  module.def("simulate_choice", &simulate_choice,
             "Squared L2 distance between mean(values) + owner and what an exchange of them delivers.",
             py::arg("choice"), py::arg("values"), py::arg("seed"), py::arg("owner") = py::none());
}

}  // namespace lgreco::bindings
