// Gathering and scattering on the CPU: the choice of instruction set level, and the scalar level that
// runs anywhere and that the other levels are tested against.
#include "core/cpu_dispatch.h"
#include "kernels/mask_levels.h"
#include "kernels/mask_words.h"

namespace lgreco::kernels {
namespace scalar {

void mask_gather(const MaskSpan& mask, const void* dense, int64_t element_bytes, void* run) {
  gather_words<NoPack>(mask, dense, element_bytes, run);
}

void mask_scatter(const MaskSpan& mask, const void* run, int64_t element_bytes, void* dense) {
  scatter_words<NoPack>(mask, run, element_bytes, dense);
}

}  // namespace scalar

void mask_gather(const MaskSpan& mask, const void* dense, int64_t element_bytes, void* run) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512: return avx512::mask_gather(mask, dense, element_bytes, run);
    case CpuLevel::kAvx2: return avx2::mask_gather(mask, dense, element_bytes, run);
    case CpuLevel::kBaseline: break;
  }
  scalar::mask_gather(mask, dense, element_bytes, run);
}

void mask_scatter(const MaskSpan& mask, const void* run, int64_t element_bytes, void* dense) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512: return avx512::mask_scatter(mask, run, element_bytes, dense);
    case CpuLevel::kAvx2: return avx2::mask_scatter(mask, run, element_bytes, dense);
    case CpuLevel::kBaseline: break;
  }
  scalar::mask_scatter(mask, run, element_bytes, dense);
}

void mask_clear(const MaskSpan& mask, int64_t element_bytes, void* dense) {
  with_element(element_bytes, [&]<typename Element>(Element*) {
    auto* elements = static_cast<Element*>(dense);
    for (int64_t at = 0; at < mask.numel; at += kWordBits) {
      const int64_t left = mask.numel - at, count = left < kWordBits ? left : kWordBits;
      uint64_t pruned = ~mask_bits(mask.words, mask.first + at, count) & low_bits(count);
      for (; pruned != 0; pruned &= pruned - 1) elements[at + __builtin_ctzll(pruned)] = 0;
    }
  });
}

}  // namespace lgreco::kernels
