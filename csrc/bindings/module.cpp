// The Python module lgreco._C.
#include "bindings/bindings.h"
#include "core/cpu_dispatch.h"
#include "core/error.h"

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
  const std::string cuda_reason = LGRECO_CUDA_REASON;
  info["cuda"] = cuda_reason.empty();
  info["cuda_reason"] = cuda_reason;
  info["cuda_archs"] = LGRECO_CUDA_ARCHS;
  info["nccl"] = cuda_reason.empty();  // through torch's own
  const std::string mpi_reason = LGRECO_MPI_REASON;
  info["mpi"] = mpi_reason.empty();
  info["mpi_reason"] = mpi_reason;
  info["torch"] = LGRECO_TORCH_VERSION;
  info["torch_cuda"] = LGRECO_TORCH_CUDA;
  info["compiler"] = "g++ " __VERSION__;
  info["isa"] = lgreco::name_of(lgreco::cpu_level());
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Native part of lgreco: codecs, exchange and communication hook.";
  pybind11::register_local_exception<lgreco::ValueError>(module, "ValueError_", PyExc_ValueError);
  module.def("build_info", &build_info, "What is built in, what is missing and why.");
  lgreco::bindings::bind_engine(module);
  lgreco::bindings::bind_kernels(module);
  lgreco::bindings::bind_cuda_kernels(module);
  lgreco::bindings::bind_solver(module);
  lgreco::bindings::bind_simulate(module);
  lgreco::bindings::bind_lowrank(module);
  lgreco::bindings::bind_pruning(module);
  lgreco::bindings::bind_masks(module);
}
