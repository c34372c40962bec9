// Binds selection: convert, check, release the GIL, call.
#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>

#include <optional>
#include <tuple>

#include "bindings/bindings.h"
#include "core/error.h"
#include "pruning/select.h"

namespace lgreco::bindings {
namespace {

namespace py = pybind11;
using at::Tensor;
using pruning::Order;
using pruning::Scores;

/// (key, ties, collected, counted)
using ThresholdFields = std::tuple<int32_t, int64_t, int64_t, bool>;

Order order_from(const std::string& name) {
  if (name == "magnitude") return Order::kMagnitude;
  if (name == "value") return Order::kValue;
  throw ValueError(concat("order must be magnitude or value, got ", name));
}

void check(const Tensor& tensor, at::ScalarType type, const char* name) {
  require(tensor.is_cpu() && tensor.is_contiguous(), name, " must be a contiguous CPU tensor");
  require(tensor.scalar_type() == type, name, " must be ", type, ", got ", tensor.scalar_type());
}

Scores scores_from(const Tensor& tensor) {
  check(tensor, at::kFloat, "scores");
  return {tensor.const_data_ptr<float>(), tensor.numel()};
}

ThresholdFields find_threshold(const std::vector<Tensor>& arrays, int64_t kept,
                               const std::string& order) {
  std::vector<Scores> scores;
  for (const Tensor& array : arrays) scores.push_back(scores_from(array));
  const Order by = order_from(order);
  const py::gil_scoped_release release;
  const pruning::Threshold found = pruning::find_threshold(scores, kept, by);
  return {found.key, found.ties, found.collected, found.counted};
}

int64_t mark_kept(const Tensor& scores, const std::string& order, int32_t key, int64_t ties,
                  const Tensor& kept, const std::optional<Tensor>& weights) {
  const Scores from = scores_from(scores);
  check(kept, at::kBool, "kept");
  require(kept.numel() == from.numel, "kept must have ", from.numel, " elements, got ", kept.numel());
  if (weights) {
    check(*weights, at::kFloat, "weights");
    require(weights->numel() == from.numel, "weights must have ", from.numel, " elements, got ",
            weights->numel());
  }
  const Order by = order_from(order);
  const py::gil_scoped_release release;
  return pruning::mark_kept(from, by, key, ties,
                            reinterpret_cast<uint8_t*>(kept.mutable_data_ptr<bool>()),
                            weights ? weights->mutable_data_ptr<float>() : nullptr);
}

void hold(const Tensor& kept, const Tensor& weights) {
  check(kept, at::kBool, "kept");
  check(weights, at::kFloat, "weights");
  require(kept.numel() == weights.numel(), "kept and weights must have as many elements, got ",
          kept.numel(), " and ", weights.numel());
  const py::gil_scoped_release release;
  pruning::hold(reinterpret_cast<const uint8_t*>(kept.const_data_ptr<bool>()), kept.numel(),
                weights.mutable_data_ptr<float>());
}

}  // namespace

void bind_pruning(py::module_& module) {
  module.def("find_threshold", &find_threshold, "The key and ties that keep the greatest scores.",
             py::arg("arrays"), py::arg("kept"), py::arg("order"));
  module.def("mark_kept", &mark_kept, "Writes which elements a threshold keeps; returns the ties left.",
             py::arg("scores"), py::arg("order"), py::arg("key"), py::arg("ties"), py::arg("kept"),
             py::arg("weights"));
  module.def("hold_mask", &hold, "Zeroes weights that are not kept.", py::arg("kept"),
             py::arg("weights"));
}

}  // namespace lgreco::bindings
