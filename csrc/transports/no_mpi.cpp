// Stands in for the MPI transport in a build without MPI: making one throws.
#include "core/error.h"
#include "transports/mpi.h"

namespace lgreco::transports {

std::unique_ptr<Transport> make_mpi(int, int) {
  throw ValueError(
      "this build of lgreco has no MPI transport; install again where mpicxx is found, with "
      "LGRECO_MPI=1 "
      "(python -m lgreco info says why it was left out)");
}

}  // namespace lgreco::transports
