// The parts of the Python module, one function each.
#pragma once

#include <torch/csrc/utils/pybind.h>

namespace lgreco::bindings {

void bind_engine(pybind11::module_& module);
void bind_kernels(pybind11::module_& module);
void bind_cuda_kernels(pybind11::module_& module);
void bind_solver(pybind11::module_& module);
void bind_simulate(pybind11::module_& module);
void bind_lowrank(pybind11::module_& module);
void bind_masks(pybind11::module_& module);

}  // namespace lgreco::bindings
