// Binds selection: convert, check, release the GIL, call.
#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>

#include <optional>
#include <tuple>

#include "bindings/bindings.h"
#include "core/error.h"
#include "pruning/select.h"
#include "pruning/select_cuda.h"

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

void check(const Tensor& tensor, at::ScalarType type, const char* name, c10::DeviceType device) {
  require(tensor.device().type() == device && tensor.is_contiguous(), name, " must be a contiguous ",
          c10::DeviceTypeName(device), " tensor");
  require(tensor.scalar_type() == type, name, " must be ", type, ", got ", tensor.scalar_type());
}

Scores scores_from(const Tensor& tensor, c10::DeviceType device) {
  check(tensor, at::kFloat, "scores", device);
  return {tensor.const_data_ptr<float>(), tensor.numel()};
}

/// CUDA's stream as torch hands it out; none: the tensors are on the CPU.
using Stream = std::optional<uint64_t>;

c10::DeviceType device_of(const Stream& stream) {
  return stream ? c10::DeviceType::CUDA : c10::DeviceType::CPU;
}

kernels::CudaStream handle_of(const Stream& stream) {
  return reinterpret_cast<kernels::CudaStream>(*stream);
}

ThresholdFields find_threshold(const std::vector<Tensor>& arrays, int64_t kept, const std::string& order,
                               const Stream& stream) {
  std::vector<Scores> scores;
  for (const Tensor& array : arrays) scores.push_back(scores_from(array, device_of(stream)));
  const Order by = order_from(order);
  const py::gil_scoped_release release;
  const pruning::Threshold found =
      stream ? pruning::find_threshold_cuda(scores, kept, by, handle_of(stream))
             : pruning::find_threshold(scores, kept, by);
  return {found.key, found.ties, found.collected, found.counted};
}

int64_t mark_kept(const Tensor& scores, const std::string& order, int32_t key, int64_t ties,
                  const Tensor& kept, const std::optional<Tensor>& weights, const Stream& stream) {
  const c10::DeviceType device = device_of(stream);
  const Scores from = scores_from(scores, device);
  check(kept, at::kBool, "kept", device);
  require(kept.numel() == from.numel, "kept must have ", from.numel, " elements, got ", kept.numel());
  if (weights) {
    check(*weights, at::kFloat, "weights", device);
    require(weights->numel() == from.numel, "weights must have ", from.numel, " elements, got ",
            weights->numel());
  }
  const Order by = order_from(order);
  const py::gil_scoped_release release;
  auto* out = reinterpret_cast<uint8_t*>(kept.mutable_data_ptr<bool>());
  float* zeroed = weights ? weights->mutable_data_ptr<float>() : nullptr;
  return stream ? pruning::mark_kept_cuda(from, by, key, ties, out, zeroed, handle_of(stream))
                : pruning::mark_kept(from, by, key, ties, out, zeroed);
}

void hold(const Tensor& kept, const Tensor& weights) {
  check(kept, at::kBool, "kept", c10::DeviceType::CPU);
  check(weights, at::kFloat, "weights", c10::DeviceType::CPU);
  require(kept.numel() == weights.numel(), "kept and weights must have as many elements, got ",
          kept.numel(), " and ", weights.numel());
  const py::gil_scoped_release release;
  pruning::hold(reinterpret_cast<const uint8_t*>(kept.const_data_ptr<bool>()), kept.numel(),
                weights.mutable_data_ptr<float>());
}

}  // namespace

void bind_pruning(py::module_& module) {
  module.def("find_threshold", &find_threshold, "The key and ties that keep the greatest scores.",
             py::arg("arrays"), py::arg("kept"), py::arg("order"), py::arg("stream") = std::nullopt);
  module.def("mark_kept", &mark_kept, "Writes which elements a threshold keeps; returns the ties left.",
             py::arg("scores"), py::arg("order"), py::arg("key"), py::arg("ties"), py::arg("kept"),
             py::arg("weights"), py::arg("stream") = std::nullopt);
  module.def("hold_mask", &hold, "Zeroes weights that are not kept.", py::arg("kept"),
             py::arg("weights"));
}

}  // namespace lgreco::bindings
