// A host array as bytes in device memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstring>
#include <vector>

namespace lgreco::engine {

template <typename T>
at::Tensor to_device(const std::vector<T>& values, at::Device device) {
  const at::Tensor host = at::empty({static_cast<int64_t>(values.size() * sizeof(T))}, at::kByte);
  if (!values.empty()) std::memcpy(host.mutable_data_ptr(), values.data(), values.size() * sizeof(T));
  return host.to(device);
}

}  // namespace lgreco::engine
