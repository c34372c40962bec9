// Binds the CUDA kernels for tests and benchmarks, as lgreco._C.cuda: convert, check, call.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <tuple>

#include "bindings/bindings.h"
#include "core/error.h"
#include "engine/tensor_dtype.h"
#include "kernels/batch.h"

namespace lgreco::bindings {
namespace {

namespace py = pybind11;
using at::Tensor;
using engine::dtype_of;
using kernels::BatchRun;
using kernels::DeviceTransaction;
using kernels::QuantizeSpec;
using kernels::SparseSpec;

/// (gradient_offset, residual_offset, wire_offset, bit, numel, first_block, stream)
using RunFields = std::tuple<int64_t, int64_t, int64_t, int64_t, int32_t, uint32_t, uint32_t>;
/// (bits, block, grid, stochastic, bf16_scales)
using SpecFields = std::tuple<int, int, std::string, bool, bool>;
/// (density, block, value_bits, random)
using SparseFields = std::tuple<double, int, int, bool>;
/// Both residual arenas; none: no error feedback.
using Arenas = std::optional<std::array<Tensor, 2>>;

QuantizeSpec spec_from(const SpecFields& fields) {
  const auto& [bits, block, grid, stochastic, bf16_scales] = fields;
  return {bits, block, kernels::grid_named(grid), stochastic, bf16_scales};
}

SparseSpec spec_from(const SparseFields& fields) {
  const auto& [density, block, value_bits, random] = fields;
  return {density, block, value_bits, random};
}

void check_tensor(const Tensor& tensor, const char* name, int64_t least_numel) {
  require(tensor.is_cuda() && tensor.is_contiguous(), name, " must be a contiguous CUDA tensor");
  require(tensor.numel() >= least_numel, name, " must have at least ", least_numel, " elements, got ",
          tensor.numel());
}

Tensor on_device(const void* data, size_t bytes, at::Device device) {
  // An empty tensor has no memory to copy.
  const Tensor host = at::from_blob(const_cast<void*>(data), {static_cast<int64_t>(bytes)}, at::kByte);
  return bytes == 0 ? at::empty({1}, host.options().device(device)) : host.to(device, false, true);
}

/// A batch on the device, and how much memory its runs reach.
class CudaBatch {
 public:
  CudaBatch(const std::vector<RunFields>& fields, int block_numel, at::Device device)
      : block_numel_(block_numel) {
    for (const auto& [gradient, residual, wire, bit, numel, first_block, stream] : fields) {
      runs_.push_back({gradient, residual, wire, bit, numel, first_block, stream, 0});
    }
    const std::vector<uint32_t> block_runs = kernels::number_blocks(runs_, block_numel);
    block_count_ = static_cast<uint32_t>(block_runs.size());
    device_runs_ = on_device(runs_.data(), runs_.size() * sizeof(BatchRun), device);
    device_block_runs_ = on_device(block_runs.data(), block_runs.size() * sizeof(uint32_t), device);
  }

  kernels::Batch view() const {
    return {static_cast<const BatchRun*>(device_runs_.const_data_ptr()),
            static_cast<const uint32_t*>(device_block_runs_.const_data_ptr()),
            static_cast<uint32_t>(runs_.size()), block_count_, block_numel_};
  }

  void check_bucket(const Tensor& bucket) const {
    int64_t end = 0;
    for (const BatchRun& run : runs_) end = std::max(end, run.gradient_offset + run.numel);
    check_tensor(bucket, "the bucket", end);
  }

  /// `wire_bytes_of`: of a run's elements.
  template <typename WireBytes>
  void check_wire(const Tensor& wire, const char* name, const WireBytes& wire_bytes_of) const {
    int64_t end = 0;
    for (const BatchRun& run : runs_) {
      end = std::max({end, run.wire_offset + wire_bytes_of(run.numel), (run.bit / 32 + 1) * 4});
    }
    require(wire.scalar_type() == at::kByte, name, " must be uint8, got ", wire.scalar_type());
    check_tensor(wire, name, end);
  }

  kernels::BatchFeedback feedback(const Arenas& arenas, const std::optional<Tensor>& scale) const {
    if (!arenas) return {};
    int64_t end = 0;
    for (const BatchRun& run : runs_) {
      if (run.residual_offset >= 0) end = std::max(end, run.residual_offset + run.numel);
    }
    for (const Tensor& arena : *arenas) check_tensor(arena, "an arena", end);
    if (scale) check_tensor(*scale, "scale", 1);
    return {{(*arenas)[0].mutable_data_ptr(), (*arenas)[1].mutable_data_ptr()},
            dtype_of((*arenas)[0], "an arena"),
            scale ? scale->const_data_ptr<float>() : nullptr};
  }

 private:
  int32_t block_numel_;
  uint32_t block_count_ = 0;
  std::vector<BatchRun> runs_;
  Tensor device_runs_, device_block_runs_;
};

kernels::CudaStream stream_from(uint64_t handle) {
  return reinterpret_cast<kernels::CudaStream>(handle);
}

DeviceTransaction* transaction_in(const Tensor& tensor) {
  require(tensor.scalar_type() == at::kInt,
          "transaction must be int32 [committed, step, flagged, pending], got ", tensor.scalar_type());
  check_tensor(tensor, "transaction", 4);
  return static_cast<DeviceTransaction*>(tensor.mutable_data_ptr());
}

kernels::BatchPayloads payloads_in(const Tensor& inbox, int count, int own_rank, const Tensor& own) {
  check_tensor(inbox, "inbox", 1);
  require(count >= 1 && inbox.numel() % count == 0,
          "inbox must hold one part of equal size for each of ", count, " ranks, got ", inbox.numel(),
          " bytes");
  return {inbox.const_data_ptr<uint8_t>(), inbox.numel() / count, count, own_rank,
          own.const_data_ptr<uint8_t>()};
}

void bind_transactions(py::module_& module) {
  module.def("transaction_begin", [](const Tensor& transaction, uint64_t stream) {
    kernels::transaction_begin(transaction_in(transaction), stream_from(stream));
  });
  module.def("transaction_settle", [](const Tensor& transaction, uint64_t stream) {
    kernels::transaction_settle(transaction_in(transaction), stream_from(stream));
  });
  module.def("transaction_discard", [](const Tensor& transaction, uint64_t stream) {
    kernels::transaction_discard(transaction_in(transaction), stream_from(stream));
  });
  module.def("transaction_poison", [](const Tensor& transaction, const Tensor& bucket, uint64_t stream) {
    check_tensor(bucket, "the bucket", 0);
    kernels::transaction_poison(transaction_in(transaction), bucket.mutable_data_ptr(),
                                dtype_of(bucket, "the bucket"), bucket.numel(), stream_from(stream));
  });
}

void bind_quantize(py::module_& module) {
  module.def("quantize_encode", [](const SpecFields& fields, const CudaBatch& batch,
                                   const Tensor& gradient, const Arenas& arenas,
                                   const std::optional<Tensor>& scale, const Tensor& transaction,
                                   uint64_t seed, const Tensor& wire, uint64_t stream) {
    const QuantizeSpec spec = spec_from(fields);
    batch.check_bucket(gradient);
    batch.check_wire(wire, "wire",
                     [&](int64_t numel) { return kernels::quantize_wire_bytes(spec, numel); });
    kernels::batch_quantize_encode(spec, batch.view(), gradient.const_data_ptr(),
                                   dtype_of(gradient, "the bucket"), batch.feedback(arenas, scale),
                                   transaction_in(transaction), seed, wire.mutable_data_ptr<uint8_t>(),
                                   stream_from(stream));
  });
  module.def("quantize_reduce", [](const SpecFields& fields, const CudaBatch& batch, const Tensor& inbox,
                                   int count, int own_rank, float factor, const Arenas& arenas,
                                   const std::optional<Tensor>& scale, const Tensor& transaction,
                                   uint64_t seed, const Tensor& out, uint64_t stream) {
    const QuantizeSpec spec = spec_from(fields);
    batch.check_wire(out, "out",
                     [&](int64_t numel) { return kernels::quantize_wire_bytes(spec, numel); });
    kernels::batch_quantize_reduce(spec, batch.view(), payloads_in(inbox, count, own_rank, out), factor,
                                   batch.feedback(arenas, scale), transaction_in(transaction), seed,
                                   out.mutable_data_ptr<uint8_t>(), stream_from(stream));
  });
  module.def("quantize_decode", [](const SpecFields& fields, const CudaBatch& batch, const Tensor& wire,
                                   const Tensor& out, const Arenas& arenas, const Tensor& transaction,
                                   uint64_t stream) {
    const QuantizeSpec spec = spec_from(fields);
    batch.check_bucket(out);
    batch.check_wire(wire, "wire",
                     [&](int64_t numel) { return kernels::quantize_wire_bytes(spec, numel); });
    kernels::batch_quantize_decode(spec, batch.view(), wire.const_data_ptr<uint8_t>(),
                                   out.mutable_data_ptr(), dtype_of(out, "the bucket"),
                                   batch.feedback(arenas, std::nullopt), transaction_in(transaction),
                                   stream_from(stream));
  });
}

void bind_sparse(py::module_& module) {
  module.def("sparse_encode",
             [](const SparseFields& fields, const CudaBatch& batch, const Tensor& gradient,
                const Arenas& arenas, const std::optional<Tensor>& scale, const Tensor& transaction,
                uint64_t seed, const Tensor& wire, uint64_t stream) {
               const SparseSpec spec = spec_from(fields);
               batch.check_bucket(gradient);
               batch.check_wire(wire, "wire",
                                [&](int64_t numel) { return kernels::sparse_wire_bytes(spec, numel); });
               kernels::batch_sparse_encode(spec, batch.view(), gradient.const_data_ptr(),
                                            dtype_of(gradient, "the bucket"),
                                            batch.feedback(arenas, scale), transaction_in(transaction),
                                            seed, wire.mutable_data_ptr<uint8_t>(), stream_from(stream));
             });
  module.def("sparse_reduce", [](const SparseFields& fields, const CudaBatch& batch, const Tensor& inbox,
                                 int count, int own_rank, float factor, const Arenas& arenas,
                                 const std::optional<Tensor>& scale, const Tensor& transaction,
                                 uint64_t seed, const Tensor& out, uint64_t stream) {
    const SparseSpec spec = spec_from(fields);
    batch.check_wire(out, "out", [&](int64_t numel) { return kernels::sparse_wire_bytes(spec, numel); });
    kernels::batch_sparse_reduce(spec, batch.view(), payloads_in(inbox, count, own_rank, out), factor,
                                 batch.feedback(arenas, scale), transaction_in(transaction), seed,
                                 out.mutable_data_ptr<uint8_t>(), stream_from(stream));
  });
  module.def("sparse_decode", [](const SparseFields& fields, const CudaBatch& batch, const Tensor& wire,
                                 const Tensor& out, const Arenas& arenas, const Tensor& transaction,
                                 uint64_t seed, uint64_t stream) {
    const SparseSpec spec = spec_from(fields);
    batch.check_bucket(out);
    batch.check_wire(wire, "wire",
                     [&](int64_t numel) { return kernels::sparse_wire_bytes(spec, numel); });
    kernels::batch_sparse_decode(spec, batch.view(), wire.const_data_ptr<uint8_t>(),
                                 out.mutable_data_ptr(), dtype_of(out, "the bucket"),
                                 batch.feedback(arenas, std::nullopt), transaction_in(transaction), seed,
                                 stream_from(stream));
  });
}

void bind_dense(py::module_& module) {
  module.def(
      "dense_encode", [](const std::string& wire_dtype, const CudaBatch& batch, const Tensor& gradient,
                         const Arenas& arenas, const std::optional<Tensor>& scale,
                         const Tensor& transaction, const Tensor& wire, uint64_t stream) {
        const DType dtype = dtype_from(wire_dtype);
        batch.check_bucket(gradient);
        batch.check_wire(wire, "wire", [&](int64_t numel) { return numel * element_bytes(dtype); });
        kernels::batch_dense_encode(dtype, batch.view(), gradient.const_data_ptr(),
                                    dtype_of(gradient, "the bucket"), batch.feedback(arenas, scale),
                                    transaction_in(transaction), wire.mutable_data_ptr<uint8_t>(),
                                    stream_from(stream));
      });
  module.def("dense_reduce", [](const std::string& wire_dtype, const CudaBatch& batch,
                                const Tensor& inbox, int count, int own_rank, float factor,
                                const Arenas& arenas, const std::optional<Tensor>& scale,
                                const Tensor& transaction, const Tensor& out, uint64_t stream) {
    const DType dtype = dtype_from(wire_dtype);
    batch.check_wire(out, "out", [&](int64_t numel) { return numel * element_bytes(dtype); });
    kernels::batch_dense_reduce(dtype, batch.view(), payloads_in(inbox, count, own_rank, out), factor,
                                batch.feedback(arenas, scale), transaction_in(transaction),
                                out.mutable_data_ptr<uint8_t>(), stream_from(stream));
  });
  module.def("dense_decode", [](const std::string& wire_dtype, const CudaBatch& batch,
                                const Tensor& wire, const Tensor& out, const Arenas& arenas,
                                const Tensor& transaction, uint64_t stream) {
    const DType dtype = dtype_from(wire_dtype);
    batch.check_bucket(out);
    batch.check_wire(wire, "wire", [&](int64_t numel) { return numel * element_bytes(dtype); });
    kernels::batch_dense_decode(dtype, batch.view(), wire.const_data_ptr<uint8_t>(),
                                out.mutable_data_ptr(), dtype_of(out, "the bucket"),
                                batch.feedback(arenas, std::nullopt), transaction_in(transaction),
                                stream_from(stream));
  });
}

}  // namespace

void bind_cuda_kernels(py::module_& module) {
  py::module_ cuda = module.def_submodule("cuda", "The CUDA kernels, for tests and benchmarks.");
  py::class_<CudaBatch>(cuda, "Batch", "Runs of one codec on a device.")
      .def(py::init<const std::vector<RunFields>&, int, at::Device>(), py::arg("runs"), py::arg("block"),
           py::arg("device"));
  cuda.def("clear_bits", [](const CudaBatch& batch, const Tensor& wire, uint64_t stream) {
    batch.check_wire(wire, "wire", [](int64_t) { return int64_t{0}; });
    kernels::batch_clear_bits(batch.view(), wire.mutable_data_ptr<uint8_t>(), stream_from(stream));
  });
  bind_transactions(cuda);
  bind_quantize(cuda);
  bind_sparse(cuda);
  bind_dense(cuda);
}

}  // namespace lgreco::bindings
