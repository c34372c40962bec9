// The two collectives of an exchange on CUDA, in stream order, over DDP's own backend.
//
// The one file that knows by which names torch's versions call them.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>

namespace lgreco::transports {

/// Part i of `input` goes to rank i; part i of `output` comes from rank i. uint8, equal parts.
/// The current stream waits for it; with NCCL the host does not.
void all_to_all(c10d::Backend& backend, at::Tensor& output, at::Tensor& input);

/// Part i of `output` comes from rank i, whose `input` it was; `input` may be the own part.
void all_gather(c10d::Backend& backend, at::Tensor& output, at::Tensor& input);

}  // namespace lgreco::transports
