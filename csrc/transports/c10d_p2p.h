// Messages over a c10d backend with tagged point-to-point operations (Gloo).
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "transports/transport.h"

namespace lgreco::transports {

std::unique_ptr<Transport> make_c10d_p2p(c10::intrusive_ptr<c10d::Backend> backend);

}  // namespace lgreco::transports
