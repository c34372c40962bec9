// Walks over a mask a word at a time: whole words are copied or skipped, mixed ones packed by a level's
// instructions, sixteen elements at a time, where its full vectors stay within the run.
#pragma once

#include <cstring>

#include "core/host_device.h"
#include "kernels/mask.h"

namespace lgreco::kernels {

inline constexpr int kWordBits = 64;
inline constexpr int kPackLanes = 16;

LGRECO_HD uint64_t low_bits(int64_t count) {
  return count >= kWordBits ? ~uint64_t{0} : (uint64_t{1} << count) - 1;
}

/// The next `count` bits, 1..64, from any bit on.
LGRECO_HD uint64_t mask_bits(const uint64_t* words, int64_t bit, int64_t count) {
  const int64_t shift = bit % kWordBits;
  uint64_t bits = words[bit / kWordBits] >> shift;
  if (shift != 0) bits |= words[bit / kWordBits + 1] << (kWordBits - shift);
  return bits & low_bits(count);
}

/// A level without instructions for it.
struct NoPack {
  static constexpr bool kPacks = false;
};

/// `Pack` moves full vectors: compress(from, bits, to) writes sixteen elements, of which as many mean
/// something as there are bits; expand(from, bits, to) reads sixteen. A type of each level's own, so
/// that no two levels share a function.
template <class Pack>
struct MaskWords {
  template <typename Element>
  static void gather(const MaskSpan& mask, const Element* dense, Element* run) {
    int64_t done = 0;
    for (int64_t at = 0; at < mask.numel; at += kWordBits) {
      const int64_t count = least(mask.numel - at);
      uint64_t bits = mask_bits(mask.words, mask.first + at, count);
      const int kept = __builtin_popcountll(bits);
      if (kept == count) {
        std::memcpy(run + done, dense + at, count * sizeof(Element));
      } else if (fits(count, done + kept, mask.kept)) {
        if constexpr (Pack::kPacks) {
          Element* to = run + done;
          for (int i = 0; i < kWordBits; i += kPackLanes) {
            const auto part = static_cast<uint32_t>(bits >> i) & 0xFFFFU;
            Pack::compress(dense + at + i, part, to);
            to += __builtin_popcount(part);
          }
        }
      } else {
        for (Element* to = run + done; bits != 0; bits &= bits - 1) {
          *to++ = dense[at + __builtin_ctzll(bits)];
        }
      }
      done += kept;
    }
  }

  template <typename Element>
  static void scatter(const MaskSpan& mask, const Element* run, Element* dense) {
    int64_t done = 0;
    for (int64_t at = 0; at < mask.numel; at += kWordBits) {
      const int64_t count = least(mask.numel - at);
      uint64_t bits = mask_bits(mask.words, mask.first + at, count);
      const int kept = __builtin_popcountll(bits);
      if (kept == count) {
        std::memcpy(dense + at, run + done, count * sizeof(Element));
      } else if (kept > 0 && fits(count, done + kept, mask.kept)) {
        if constexpr (Pack::kPacks) {
          const Element* from = run + done;
          for (int i = 0; i < kWordBits; i += kPackLanes) {
            const auto part = static_cast<uint32_t>(bits >> i) & 0xFFFFU;
            Pack::expand(from, part, dense + at + i);
            from += __builtin_popcount(part);
          }
        }
      } else {
        std::memset(dense + at, 0, count * sizeof(Element));
        for (const Element* from = run + done; bits != 0; bits &= bits - 1) {
          dense[at + __builtin_ctzll(bits)] = *from++;
        }
      }
      done += kept;
    }
  }

 private:
  LGRECO_HD static int64_t least(int64_t left) { return left < kWordBits ? left : kWordBits; }
  /// Whether full vectors stay within the word and the run.
  LGRECO_HD static bool fits(int64_t count, int64_t end, int64_t kept) {
    return Pack::kPacks && count == kWordBits && end + kPackLanes <= kept;
  }
};

/// Calls `visit` with a null pointer to the type that elements of this size are moved as.
template <typename Visit>
LGRECO_HD void with_element(int64_t element_bytes, const Visit& visit) {
  if (element_bytes == 2) {
    visit(static_cast<uint16_t*>(nullptr));
  } else {
    visit(static_cast<uint32_t*>(nullptr));
  }
}

template <class Pack>
LGRECO_HD void gather_words(const MaskSpan& mask, const void* dense, int64_t element_bytes, void* run) {
  with_element(element_bytes, [&]<typename Element>(Element*) {
    MaskWords<Pack>::gather(mask, static_cast<const Element*>(dense), static_cast<Element*>(run));
  });
}

template <class Pack>
LGRECO_HD void scatter_words(const MaskSpan& mask, const void* run, int64_t element_bytes, void* dense) {
  with_element(element_bytes, [&]<typename Element>(Element*) {
    MaskWords<Pack>::scatter(mask, static_cast<const Element*>(run), static_cast<Element*>(dense));
  });
}

}  // namespace lgreco::kernels
