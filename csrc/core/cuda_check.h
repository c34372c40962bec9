// Checked CUDA calls: an error carries the call, CUDA's code and the place.
//
// Streams, events and device guards come from ATen where the engine needs them.
#pragma once

#include <cuda_runtime_api.h>

#include <source_location>

#include "core/error.h"

namespace lgreco {

/// Throws Error unless `status` is success.
inline void check_cuda(cudaError_t status, const char* call,
                       const std::source_location place = std::source_location::current()) {
  if (status == cudaSuccess) return;
  throw Error(concat(call, " failed: ", cudaGetErrorName(status), " (", static_cast<int>(status), ", ",
                     cudaGetErrorString(status), ") at ", place.file_name(), ":", place.line()));
}

/// After a kernel launch: throws where the launch was refused. What a kernel does wrong while it runs
/// shows at a later call, as CUDA has it.
inline void check_launch(const char* kernel,
                         const std::source_location place = std::source_location::current()) {
  check_cuda(cudaGetLastError(), kernel, place);
}

}  // namespace lgreco
