// Recognising masks that keep whole rows and columns.
#include "engine/kept_matrix.h"

#include <algorithm>
#include <bit>

#include "kernels/mask_words.h"

namespace lgreco::engine {
namespace {

using kernels::kWordBits;

uint64_t bits_at(const Mask& mask, int64_t first, int64_t count) {
  return kernels::mask_bits(mask.words().data(), first, std::min<int64_t>(count, kWordBits));
}

/// Whether the `cols` elements from `first` on are kept as those from `other` on are.
bool alike(const Mask& mask, int64_t first, int64_t other, int64_t cols) {
  for (int64_t at = 0; at < cols; at += kWordBits) {
    if (bits_at(mask, first + at, cols - at) != bits_at(mask, other + at, cols - at)) return false;
  }
  return true;
}

}  // namespace

std::optional<KeptMatrix> kept_matrix(const Mask& mask, int64_t cols) {
  if (mask.kept() == 0) return std::nullopt;
  KeptMatrix made{.all_rows = mask.numel() / cols, .all_cols = cols, .rows = {}, .cols = {}};
  int64_t first = -1;  // the first kept row: every other one must keep what it keeps
  for (int64_t begin = 0; begin < mask.numel(); begin += cols) {
    if (mask.run_begin(begin) == mask.run_begin(begin + cols)) continue;
    if (first < 0) first = begin;
    if (!alike(mask, begin, first, cols)) return std::nullopt;
    made.rows.push_back(begin / cols);
  }
  for (int64_t at = 0; at < cols; at += kWordBits) {
    for (uint64_t bits = bits_at(mask, first + at, cols - at); bits != 0; bits &= bits - 1) {
      made.cols.push_back(at + std::countr_zero(bits));
    }
  }
  return made;
}

}  // namespace lgreco::engine
