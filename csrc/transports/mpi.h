// Messages over MPI, from memory of the host.
#pragma once

#include <memory>
#include <string>

#include "transports/transport.h"

namespace lgreco::transports {

/// Collective over MPI_COMM_WORLD, whose ranks must be those of the caller's group.
///
/// Throws ValueError where rank or size differ or MPI's threads do not suffice.
std::unique_ptr<Transport> make_mpi(int rank, int size);

}  // namespace lgreco::transports
