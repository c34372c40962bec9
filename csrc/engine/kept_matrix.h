// The smaller matrix that is left where a mask keeps whole rows and columns: its elements, row by row,
// are the layer's run, so low rank can factor it in the layer's place.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/mask.h"

namespace lgreco::engine {

/// Ascending indices into a layer's matrix [all_rows, all_cols]; neither is empty.
struct KeptMatrix {
  int64_t all_rows = 0, all_cols = 0;
  std::vector<int64_t> rows, cols;
};

/// What a mask keeps of a matrix with `cols` columns, where that is just the elements which lie in a
/// kept row and in a kept column; none for a mask of any other kind, and where nothing is kept.
std::optional<KeptMatrix> kept_matrix(const Mask& mask, int64_t cols);

}  // namespace lgreco::engine
