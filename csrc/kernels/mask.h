// Masked layers on the CPU: their kept elements gathered into a dense run, and scattered back.
//
// A mask has one bit an element, 1 where it is kept, in words of 64, the lowest bit first. Elements are
// moved, never computed with, so only their size matters: 2 or 4 bytes. They are aligned to it.
#pragma once

#include <cstdint>

namespace lgreco::kernels {

/// Elements [first, first + numel) of a mask, of which `kept` are kept. One more word than the elements
/// need must be readable behind them.
struct MaskSpan {
  const uint64_t* words = nullptr;
  int64_t first = 0;
  int64_t numel = 0;
  int64_t kept = 0;
};

/// run[j] = the j-th kept element of the span; `dense` [numel], `run` [kept], not overlapping.
void mask_gather(const MaskSpan& mask, const void* dense, int64_t element_bytes, void* run);

/// The inverse: `run` goes to the kept elements of `dense`, +0 to all others.
void mask_scatter(const MaskSpan& mask, const void* run, int64_t element_bytes, void* dense);

/// +0 for the elements of `dense` that are not kept; the others stay.
void mask_clear(const MaskSpan& mask, int64_t element_bytes, void* dense);

}  // namespace lgreco::kernels
