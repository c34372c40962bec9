// The exchange on CUDA: all kernels and collectives of a bucket enqueued on a side stream.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "engine/exchange.h"

namespace lgreco::engine {

/// `backend`: DDP's own CUDA backend (NCCL). Throws Error, naming the build flag, where lgreco was
/// built without CUDA.
std::unique_ptr<Exchange> make_stream_exchange(c10::intrusive_ptr<c10d::Backend> backend,
                                               const ExchangeOptions& options,
                                               std::vector<at::Tensor> parameters,
                                               std::shared_ptr<const Plan> plan);

}  // namespace lgreco::engine
