// A layer's mask: counting and finding kept elements.
#include "engine/mask.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/mask_words.h"

namespace lgreco::engine {

Mask::Mask(const uint8_t* bits, int64_t numel)
    : numel_(numel), words_(static_cast<size_t>(numel / kernels::kWordBits + 2)) {
  std::memcpy(words_.data(), bits, static_cast<size_t>((numel + 7) / 8));
  const int64_t tail = numel % kernels::kWordBits;
  words_[static_cast<size_t>(numel / kernels::kWordBits)] &= kernels::low_bits(tail);
  hash_ = 0xCBF29CE484222325ULL ^ static_cast<uint64_t>(numel);
  kept_before_.reserve(words_.size());
  for (const uint64_t word : words_) {
    kept_before_.push_back(kept_);
    kept_ += std::popcount(word);
    hash_ = (hash_ ^ word) * 0x100000001B3ULL;  // FNV-1a, a word at a time
    hash_ ^= hash_ >> 29;
  }
}

int64_t Mask::dense_begin(int64_t run_index) const {
  if (run_index == 0) return 0;
  if (run_index >= kept_) return numel_;
  const auto after = std::upper_bound(kept_before_.begin(), kept_before_.end(), run_index);
  const auto word = static_cast<size_t>(after - kept_before_.begin()) - 1;
  uint64_t bits = words_[word];
  for (int64_t left = run_index - kept_before_[word]; left > 0; --left) bits &= bits - 1;
  return static_cast<int64_t>(word) * kernels::kWordBits + std::countr_zero(bits);
}

int64_t Mask::run_begin(int64_t dense_index) const {
  const auto word = static_cast<size_t>(dense_index / kernels::kWordBits);
  return kept_before_[word] +
         std::popcount(words_[word] & kernels::low_bits(dense_index % kernels::kWordBits));
}

kernels::MaskSpan Mask::span(int64_t dense_offset, int64_t dense_numel) const {
  return {words_.data(), dense_offset, dense_numel,
          run_begin(dense_offset + dense_numel) - run_begin(dense_offset)};
}

}  // namespace lgreco::engine
