// The two collectives of an exchange on CUDA, in stream order, over DDP's own backend.
#include "transports/c10d_stream.h"

#include <torch/version.h>

namespace lgreco::transports {

void all_to_all(c10d::Backend& backend, at::Tensor& output, at::Tensor& input) {
  std::vector<int64_t> equal;  // no sizes: equal parts
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 15
  const auto work = backend.all_to_all_single(output, input, equal, equal);
#else
  const auto work = backend.alltoall_base(output, input, equal, equal);
#endif
  work->wait();
}

void all_gather(c10d::Backend& backend, at::Tensor& output, at::Tensor& input) {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 15
  const auto work = backend.all_gather_single(output, input);
#else
  const auto work = backend._allgather_base(output, input);
#endif
  work->wait();
}

}  // namespace lgreco::transports
