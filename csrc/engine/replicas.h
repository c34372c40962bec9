// A hash of the parameters' bytes, by which ranks find out that their replicas differ.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace lgreco::engine {

/// Never 0. Equal bytes give equal hashes on every machine; the parameters must be on the CPU.
uint64_t hash_of(const std::vector<at::Tensor>& parameters);

}  // namespace lgreco::engine
