// Stands in for the CUDA exchange where lgreco was built without CUDA.
#include "core/error.h"
#include "engine/stream_exchange.h"

namespace lgreco::engine {

std::unique_ptr<Exchange> make_stream_exchange(c10::intrusive_ptr<c10d::Backend>, const ExchangeOptions&,
                                               std::vector<at::Tensor>, std::shared_ptr<const Plan>) {
  throw Error(
      "lgreco was built without CUDA, so it cannot average CUDA gradients: put nvcc on PATH, install "
      "a CUDA build of torch and reinstall with LGRECO_CUDA=1");
}

}  // namespace lgreco::engine
