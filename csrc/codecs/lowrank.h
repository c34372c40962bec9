// The codec that averages two factors of a matrix in its place (PowerSGD, arXiv 1905.13727).
//
// It is no Codec of its own: the exchange codes its factors P [rows, rank] and Q [cols, rank] like any
// other vectors, by dense or quantize, and what becomes of them is engine/factors.h.
#pragma once

#include <cstdint>
#include <vector>

#include "codecs/choice.h"

namespace lgreco::codecs {

/// How one factor lies in memory and is coded: column by column, each column padded with zeros to a
/// whole number of the codec's blocks, so that no block has elements of two columns.
struct FactorCoding {
  Choice choice;
  int64_t length = 0;  ///< of a column
  int64_t stride = 0;  ///< between columns' beginnings
};

struct LowRank {
  int rank = 0;
  int64_t rows = 0;  ///< the layer's first dimension
  int64_t cols = 0;  ///< the product of the others
  bool alternate = false;
  FactorCoding p, q;
};

/// Reads a choice for a layer of this shape. Throws ValueError for a parameter out of range.
LowRank make_lowrank(const Choice& choice, const std::vector<int64_t>& shape);

}  // namespace lgreco::codecs
