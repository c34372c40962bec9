// A layer's mask: which of its elements are exchanged. The kept ones, in order, are the layer's run,
// which is what codecs, tiles, owners and residuals see.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/mask.h"

namespace lgreco::engine {

class Mask {
 public:
  /// `bits`: one an element, 1 where it is kept, the lowest bit of a byte first; ceil(numel / 8) bytes.
  Mask(const uint8_t* bits, int64_t numel);

  int64_t numel() const { return numel_; }
  int64_t kept() const { return kept_; }
  /// Words of 64 bits, one more than the elements need.
  const std::vector<uint64_t>& words() const { return words_; }

  /// Where the elements of a run lie in the layer: from dense_begin(i) to dense_begin(j) for its
  /// elements [i, j). What is pruned before the first kept element or behind the last one counts as
  /// theirs, so that a run that is cut into pieces covers the layer.
  int64_t dense_begin(int64_t run_index) const;
  /// Kept elements before one of the layer; the inverse of dense_begin.
  int64_t run_begin(int64_t dense_index) const;
  kernels::MaskSpan span(int64_t dense_offset, int64_t dense_numel) const;
  kernels::MaskSpan whole() const { return {words_.data(), 0, numel_, kept_}; }

  /// Equal for equal masks.
  uint64_t hash() const { return hash_; }

 private:
  int64_t numel_ = 0;
  int64_t kept_ = 0;
  uint64_t hash_ = 0;
  std::vector<uint64_t> words_;
  std::vector<int64_t> kept_before_;  ///< each word
};

/// By layer; null: everything is kept. Empty: no layer has a mask.
using Masks = std::vector<std::shared_ptr<const Mask>>;

/// The layer's mask, or null.
inline const Mask* mask_of(const Masks& masks, size_t layer) {
  return masks.empty() ? nullptr : masks[layer].get();
}

}  // namespace lgreco::engine
