// The passes of selection over sixteen lanes, for any level that offers them (AVX2, AVX-512).
#pragma once

#include <algorithm>

#include "pruning/select_levels.h"
#include "pruning/select_math.h"

namespace lgreco::pruning {

/// `Level` adds keys to PickLanes: see select_avx512.cpp.
template <class Level>
class SimdSelect {
 public:
  static void scan(const Scores& scores, Order order, const Bracket& bracket, Seen& seen,
                   Collected& inside) {
    const int64_t whole = scores.numel / kLanes * kLanes;
    for (int64_t begin = 0; begin < whole; begin += kTurn) {
      if (bracket.low < bracket.high && inside.count + kTurn > inside.most) {  // exactly, one by one
        return scalar::scan({scores.values + begin, scores.numel - begin}, order, bracket, seen, inside);
      }
      const Scores turn{scores.values + begin, std::min(kTurn, whole - begin)};
      if (order == Order::kMagnitude) {
        scan_turn<Order::kMagnitude>(turn, bracket, seen, inside);
      } else {
        scan_turn<Order::kValue>(turn, bracket, seen, inside);
      }
    }
    scalar::scan({scores.values + whole, scores.numel - whole}, order, bracket, seen, inside);
  }

  static int64_t mark_kept(const Scores& scores, Order order, int32_t key, int64_t ties, uint8_t* kept,
                           float* weights) {
    const int64_t whole = scores.numel / kLanes * kLanes;
    const Scores begin{scores.values, whole};
    ties = order == Order::kMagnitude ? mark<Order::kMagnitude>(begin, key, ties, kept, weights)
                                      : mark<Order::kValue>(begin, key, ties, kept, weights);
    return scalar::mark_kept({scores.values + whole, scores.numel - whole}, order, key, ties,
                             kept + whole, weights == nullptr ? nullptr : weights + whole);
  }

  static void hold(const uint8_t* kept, int64_t numel, float* weights) {
    const int64_t whole = numel / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) zero_others(weights + i, Level::kept_mask(kept + i));
    scalar::hold(kept + whole, numel - whole, weights + whole);
  }

 private:
  using Int = typename Level::Int;
  static constexpr int64_t kLanes = 16, kTurn = 4096;
  static constexpr int kAhead = 1024;  ///< elements that are fetched before they are needed

  template <Order order>
  static Int keys_at(const float* at) {
    const Int bits = Level::load_bits(at);
    return order == Order::kMagnitude ? Level::magnitudes(bits) : Level::value_keys(bits);
  }

  template <Order order>
  static void scan_turn(const Scores& scores, const Bracket& bracket, Seen& seen, Collected& inside) {
    const Int low = Level::set(bracket.low), high = Level::set(bracket.high);
    Int most = Level::zero();  // of magnitudes: a NaN's is the greatest
    int64_t below_high = 0;
    int32_t* to = inside.keys + inside.count;
    for (int64_t i = 0; i < scores.numel; i += kLanes) {
      __builtin_prefetch(scores.values + i + kAhead);
      const Int bits = Level::load_bits(scores.values + i), magnitudes = Level::magnitudes(bits);
      const Int keys = order == Order::kMagnitude ? magnitudes : Level::value_keys(bits);
      most = Level::greatest(most, magnitudes);
      const uint32_t below = Level::greater(high, keys);
      const uint32_t wanted = below & Level::greater(keys, low);
      below_high += __builtin_popcount(below);
      Level::append(reinterpret_cast<uint32_t*>(to), wanted, keys);
      to += __builtin_popcount(wanted);
    }
    seen.from_high += scores.numel - below_high;
    seen.nan |= Level::reaching(most, Level::set(kNanMagnitude)) != 0;
    inside.count = to - inside.keys;
  }

  template <Order order>
  static int64_t mark(const Scores& scores, int32_t threshold, int64_t ties, uint8_t* kept,
                      float* weights) {
    const Int least = Level::set(threshold);
    for (int64_t i = 0; i < scores.numel; i += kLanes) {
      __builtin_prefetch(scores.values + i + kAhead);
      const Int keys = keys_at<order>(scores.values + i);
      const uint32_t greater = Level::greater(keys, least);
      uint32_t mask = greater;
      if (ties > 0) {
        const uint32_t equal = ~greater & ~Level::greater(least, keys) & 0xFFFF;
        const auto allowed = static_cast<uint32_t>(std::min<int64_t>(ties, kLanes));
        const uint32_t tied = _pdep_u32((1U << allowed) - 1U, equal);
        ties -= __builtin_popcount(tied);
        mask |= tied;
      }
      Level::store_kept(kept + i, mask);
      if (weights != nullptr) zero_others(weights + i, mask);
    }
    return ties;
  }

  /// Memory is written only where a weight changes: late in a ramp few do.
  static void zero_others(float* weights, uint32_t mask) {
    const Int bits = Level::load_bits(weights);
    const uint32_t nonzero = Level::any_bit(bits);
    if ((nonzero & ~mask) != 0) Level::store_bits(weights, Level::only(mask, bits));
  }
};

}  // namespace lgreco::pruning
