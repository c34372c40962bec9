// Selection of scores in device memory: the twin of select.h, with the same result.
//
// Both functions wait for the stream. Without CUDA they throw Error and name the build flag.
#pragma once

#include "kernels/batch.h"
#include "pruning/select.h"

namespace lgreco::pruning {

/// As find_threshold(); the arrays are in the current device's memory. The sample and so the bracket are
/// the CPU's; `collected` is too, where the bracket holds the score.
Threshold find_threshold_cuda(const std::vector<Scores>& arrays, int64_t kept, Order order,
                              kernels::CudaStream stream);

/// As mark_kept(), likewise.
int64_t mark_kept_cuda(const Scores& scores, Order order, int32_t key, int64_t ties, uint8_t* kept,
                       float* weights, kernels::CudaStream stream);

}  // namespace lgreco::pruning
