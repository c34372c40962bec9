// Binds the CPU kernels for tests and benchmarks: convert, check, release the GIL, call.
#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <tuple>

#include "bindings/bindings.h"
#include "core/cpu_dispatch.h"
#include "core/error.h"
#include "core/huge_pages.h"
#include "engine/tensor_dtype.h"
#include "kernels/dense.h"
#include "kernels/quantize.h"
#include "kernels/sparse.h"

namespace lgreco::bindings {
namespace {

namespace py = pybind11;
using at::Tensor;
using engine::dtype_of;
using kernels::Feedback;
using kernels::Findings;
using kernels::QuantizeSpec;
using kernels::SparseSpec;

/// (bits, block, grid, stochastic, bf16_scales)
using SpecFields = std::tuple<int, int, std::string, bool, bool>;
/// (density, block, value_bits, random)
using SparseFields = std::tuple<double, int, int, bool>;
/// (seed, step, stream, first_block)
using NoiseFields = std::tuple<uint64_t, uint32_t, uint32_t, uint32_t>;
/// A residual arena; none: no error feedback.
using Arena = std::optional<Tensor>;
/// (nonfinite, nonzero)
using FindingsFields = std::tuple<bool, bool>;

FindingsFields fields_of(const Findings& findings) { return {findings.nonfinite, findings.nonzero}; }

QuantizeSpec spec_from(const SpecFields& fields) {
  const auto& [bits, block, grid, stochastic, bf16_scales] = fields;
  require(bits >= 1 && bits <= 8, "bits must be 1..8, got ", bits);
  require(block >= 32 && block <= 4096 && block % 32 == 0,
          "block must be a multiple of 32, 32..4096, got ", block);
  return {bits, block, kernels::grid_named(grid), stochastic, bf16_scales};
}

SparseSpec spec_from(const SparseFields& fields) {
  const auto& [density, block, value_bits, random] = fields;
  require(density >= 1e-4 && density <= 0.5, "density must be 1e-4..0.5, got ", density);
  require(block >= 32 && block <= kernels::kMaxSparseBlockNumel && block % 32 == 0,
          "block must be a multiple of 32, 32..65536, got ", block);
  require((value_bits >= 2 && value_bits <= 8) || value_bits == 16 || value_bits == 32,
          "value_bits must be 2..8, 16 or 32, got ", value_bits);
  return {density, block, value_bits, random};
}

Noise noise_from(const NoiseFields& fields) {
  const auto& [seed, step, stream, first_block] = fields;
  return {seed, step, stream, first_block};
}

void check_tensor(const Tensor& tensor, const char* name, int64_t numel) {
  require(tensor.is_cpu() && tensor.is_contiguous(), name, " must be a contiguous CPU tensor");
  require(tensor.numel() == numel, name, " must have ", numel, " elements, got ", tensor.numel());
}

void check_wire(const Tensor& wire, const char* name, int64_t bytes) {
  require(wire.scalar_type() == at::kByte, name, " must be uint8, got ", wire.scalar_type());
  check_tensor(wire, name, bytes);
}

/// `committed` and `shadow` may be one tensor.
Feedback feedback_from(const Arena& committed, const Arena& shadow, float scale, int64_t numel) {
  require(committed.has_value() == shadow.has_value(), "both residual arenas must be given, or neither");
  if (!committed) return {};
  check_tensor(*committed, "the committed residual", numel);
  check_tensor(*shadow, "the shadow residual", numel);
  const DType dtype = dtype_of(*committed, "the residual");
  require(dtype != DType::kFloat16 && dtype_of(*shadow, "the residual") == dtype,
          "both residuals must be fp32 or both bf16");
  return {committed->const_data_ptr(), shadow->mutable_data_ptr(), dtype, scale, 1.0F / scale};
}

std::vector<const uint8_t*> wires_from(const std::vector<Tensor>& wires, int64_t bytes) {
  require(!wires.empty(), "there must be at least one wire");
  std::vector<const uint8_t*> pointers;
  for (const Tensor& wire : wires) {
    check_wire(wire, "each wire", bytes);
    pointers.push_back(wire.const_data_ptr<uint8_t>());
  }
  return pointers;
}

FindingsFields quantize_encode(const SpecFields& fields, const Tensor& gradient, const Arena& committed,
                               const Arena& shadow, float scale, const NoiseFields& noise,
                               const Tensor& wire) {
  const QuantizeSpec spec = spec_from(fields);
  const DType dtype = dtype_of(gradient, "the gradient");
  check_tensor(gradient, "the gradient", gradient.numel());
  check_wire(wire, "the wire", kernels::quantize_wire_bytes(spec, gradient.numel()));
  const Feedback feedback = feedback_from(committed, shadow, scale, gradient.numel());
  const py::gil_scoped_release release;
  return fields_of(kernels::quantize_encode(spec, gradient.const_data_ptr(), dtype, gradient.numel(),
                                            feedback, noise_from(noise),
                                            wire.mutable_data_ptr<uint8_t>()));
}

FindingsFields quantize_reduce(const SpecFields& fields, const std::vector<Tensor>& wires, float factor,
                               int64_t numel, const Arena& committed, const Arena& shadow, float scale,
                               const NoiseFields& noise, const Tensor& out) {
  const QuantizeSpec spec = spec_from(fields);
  const int64_t bytes = kernels::quantize_wire_bytes(spec, numel);
  const auto pointers = wires_from(wires, bytes);
  check_wire(out, "out", bytes);
  const Feedback feedback = feedback_from(committed, shadow, scale, numel);
  const py::gil_scoped_release release;
  return fields_of(kernels::quantize_reduce(spec, pointers.data(), static_cast<int>(pointers.size()),
                                            factor, numel, feedback, noise_from(noise),
                                            out.mutable_data_ptr<uint8_t>()));
}

bool quantize_decode(const SpecFields& fields, const Tensor& wire, const Tensor& out) {
  const QuantizeSpec spec = spec_from(fields);
  const DType dtype = dtype_of(out, "out");
  check_tensor(out, "out", out.numel());
  check_wire(wire, "the wire", kernels::quantize_wire_bytes(spec, out.numel()));
  const py::gil_scoped_release release;
  return kernels::quantize_decode(spec, wire.const_data_ptr<uint8_t>(), out.numel(),
                                  out.mutable_data_ptr(), dtype)
      .nonfinite;
}

bool quantize_decode_add(const SpecFields& fields, const Tensor& wire, const Tensor& sum) {
  const QuantizeSpec spec = spec_from(fields);
  check_tensor(sum, "the sum", sum.numel());
  require(sum.scalar_type() == at::kFloat, "the sum must be fp32, got ", sum.scalar_type());
  check_wire(wire, "the wire", kernels::quantize_wire_bytes(spec, sum.numel()));
  const py::gil_scoped_release release;
  return kernels::quantize_decode_add(spec, wire.const_data_ptr<uint8_t>(), sum.numel(),
                                      sum.mutable_data_ptr<float>())
      .nonfinite;
}

FindingsFields sparse_encode(const SparseFields& fields, const Tensor& gradient, const Arena& committed,
                             const Arena& shadow, float scale, const NoiseFields& noise,
                             const Tensor& wire) {
  const SparseSpec spec = spec_from(fields);
  const DType dtype = dtype_of(gradient, "the gradient");
  check_tensor(gradient, "the gradient", gradient.numel());
  check_wire(wire, "the wire", kernels::sparse_wire_bytes(spec, gradient.numel()));
  const Feedback feedback = feedback_from(committed, shadow, scale, gradient.numel());
  const py::gil_scoped_release release;
  return fields_of(kernels::sparse_encode(spec, gradient.const_data_ptr(), dtype, gradient.numel(),
                                          feedback, noise_from(noise),
                                          wire.mutable_data_ptr<uint8_t>()));
}

FindingsFields sparse_reduce(const SparseFields& fields, const std::vector<Tensor>& wires, float factor,
                             int64_t numel, const Arena& committed, const Arena& shadow, float scale,
                             const NoiseFields& noise, const Tensor& out) {
  const SparseSpec spec = spec_from(fields);
  const int64_t bytes = kernels::sparse_wire_bytes(spec, numel);
  const auto pointers = wires_from(wires, bytes);
  check_wire(out, "out", bytes);
  const Feedback feedback = feedback_from(committed, shadow, scale, numel);
  const py::gil_scoped_release release;
  return fields_of(kernels::sparse_reduce(spec, pointers.data(), static_cast<int>(pointers.size()),
                                          factor, numel, feedback, noise_from(noise),
                                          out.mutable_data_ptr<uint8_t>()));
}

bool sparse_decode(const SparseFields& fields, const Tensor& wire, const NoiseFields& noise,
                   const Tensor& out) {
  const SparseSpec spec = spec_from(fields);
  const DType dtype = dtype_of(out, "out");
  check_tensor(out, "out", out.numel());
  check_wire(wire, "the wire", kernels::sparse_wire_bytes(spec, out.numel()));
  const py::gil_scoped_release release;
  return kernels::sparse_decode(spec, wire.const_data_ptr<uint8_t>(), out.numel(), noise_from(noise),
                                out.mutable_data_ptr(), dtype)
      .nonfinite;
}

FindingsFields dense_encode(const std::string& wire_dtype, const Tensor& gradient,
                            const Arena& committed, const Arena& shadow, float scale,
                            const Tensor& wire) {
  const DType to = dtype_from(wire_dtype), dtype = dtype_of(gradient, "the gradient");
  check_tensor(gradient, "the gradient", gradient.numel());
  check_wire(wire, "the wire", gradient.numel() * element_bytes(to));
  const Feedback feedback = feedback_from(committed, shadow, scale, gradient.numel());
  const py::gil_scoped_release release;
  return fields_of(kernels::dense_encode(to, gradient.const_data_ptr(), dtype, gradient.numel(),
                                         feedback, wire.mutable_data_ptr<uint8_t>()));
}

FindingsFields dense_reduce(const std::string& wire_dtype, const std::vector<Tensor>& wires,
                            float factor, int64_t numel, const Arena& committed, const Arena& shadow,
                            float scale, const Tensor& out) {
  const DType dtype = dtype_from(wire_dtype);
  const auto pointers = wires_from(wires, numel * element_bytes(dtype));
  check_wire(out, "out", numel * element_bytes(dtype));
  const Feedback feedback = feedback_from(committed, shadow, scale, numel);
  const py::gil_scoped_release release;
  return fields_of(kernels::dense_reduce(dtype, pointers.data(), static_cast<int>(pointers.size()),
                                         factor, numel, feedback, out.mutable_data_ptr<uint8_t>()));
}

bool dense_decode(const std::string& wire_dtype, const Tensor& wire, const Tensor& out) {
  const DType from = dtype_from(wire_dtype), dtype = dtype_of(out, "out");
  check_tensor(out, "out", out.numel());
  check_wire(wire, "the wire", out.numel() * element_bytes(from));
  const py::gil_scoped_release release;
  return kernels::dense_decode(from, wire.const_data_ptr<uint8_t>(), out.numel(), out.mutable_data_ptr(),
                               dtype)
      .nonfinite;
}

// What the benchmark measures the kernels against, as fast as the processor can.
#define LGRECO_EVERY_LEVEL __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))

LGRECO_EVERY_LEVEL void add_to(float* sum, const float* values, int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) sum[i] += values[i];
}

LGRECO_EVERY_LEVEL uint32_t read_all(const uint32_t* values, int64_t numel) {
  uint32_t seen = 0;  // integers, so that the loop may be reordered
  for (int64_t i = 0; i < numel; ++i) seen += values[i];
  return seen;
}

void roof_add(const Tensor& sum, const Tensor& values) {
  check_tensor(sum, "the sum", values.numel());
  const py::gil_scoped_release release;
  add_to(sum.mutable_data_ptr<float>(), values.const_data_ptr<float>(), values.numel());
}

uint32_t roof_read(const Tensor& values) {
  check_tensor(values, "the values", values.numel());
  const py::gil_scoped_release release;
  return read_all(reinterpret_cast<const uint32_t*>(values.const_data_ptr<float>()), values.numel());
}

void roof_copy(const Tensor& to, const Tensor& from) {
  check_tensor(to, "the copy", from.numel());
  const py::gil_scoped_release release;
  memcpy(to.mutable_data_ptr<float>(), from.const_data_ptr<float>(), from.numel() * sizeof(float));
}

}  // namespace

void bind_kernels(py::module_& module) {
  module.def(
      "cpu_level", [] { return std::string(name_of(cpu_level())); }, "Instruction set level in use.");
  module.def("best_cpu_level", [] { return std::string(name_of(best_cpu_level())); });
  module.def(
      "set_cpu_level", [](const std::string& name) { set_cpu_level(cpu_level_from(name)); },
      py::arg("name"));
  module.def("quantize_wire_bytes", [](const SpecFields& spec, int64_t numel) {
    return kernels::quantize_wire_bytes(spec_from(spec), numel);
  });
  module.def("quantize_encode", &quantize_encode, py::arg("spec"), py::arg("gradient"),
             py::arg("committed"), py::arg("shadow"), py::arg("scale"), py::arg("noise"),
             py::arg("wire"));
  module.def("quantize_reduce", &quantize_reduce, py::arg("spec"), py::arg("wires"), py::arg("factor"),
             py::arg("numel"), py::arg("committed"), py::arg("shadow"), py::arg("scale"),
             py::arg("noise"), py::arg("out"));
  module.def("quantize_decode", &quantize_decode, py::arg("spec"), py::arg("wire"), py::arg("out"));
  module.def("quantize_decode_add", &quantize_decode_add, py::arg("spec"), py::arg("wire"),
             py::arg("sum"));
  module.def("sparse_wire_bytes", [](const SparseFields& spec, int64_t numel) {
    return kernels::sparse_wire_bytes(spec_from(spec), numel);
  });
  module.def("sparse_encode", &sparse_encode, py::arg("spec"), py::arg("gradient"), py::arg("committed"),
             py::arg("shadow"), py::arg("scale"), py::arg("noise"), py::arg("wire"));
  module.def("sparse_reduce", &sparse_reduce, py::arg("spec"), py::arg("wires"), py::arg("factor"),
             py::arg("numel"), py::arg("committed"), py::arg("shadow"), py::arg("scale"),
             py::arg("noise"), py::arg("out"));
  module.def("sparse_decode", &sparse_decode, py::arg("spec"), py::arg("wire"), py::arg("noise"),
             py::arg("out"));
  module.def("dense_encode", &dense_encode, py::arg("wire_dtype"), py::arg("gradient"),
             py::arg("committed"), py::arg("shadow"), py::arg("scale"), py::arg("wire"));
  module.def("dense_reduce", &dense_reduce, py::arg("wire_dtype"), py::arg("wires"), py::arg("factor"),
             py::arg("numel"), py::arg("committed"), py::arg("shadow"), py::arg("scale"),
             py::arg("out"));
  module.def("dense_decode", &dense_decode, py::arg("wire_dtype"), py::arg("wire"), py::arg("out"));
  module.def(
      "advise_huge_pages",
      [](const Tensor& fresh) {
        check_tensor(fresh, "the tensor", fresh.numel());
        advise_huge_pages(fresh.mutable_data_ptr(), static_cast<int64_t>(fresh.nbytes()));
      },
      "Asks for large pages under a tensor that was never written.", py::arg("fresh"));
  module.def("roof_add", &roof_add, "sum += values", py::arg("sum"), py::arg("values"));
  module.def("roof_read", &roof_read, "Reads all values once.", py::arg("values"));
  module.def("roof_copy", &roof_copy, "memcpy", py::arg("to"), py::arg("values"));
}

}  // namespace lgreco::bindings
