// The baseline level of selection, which runs anywhere and finishes the last elements of the others.
#include "pruning/select_levels.h"
#include "pruning/select_math.h"

namespace lgreco::pruning::scalar {
namespace {

template <Order order>
void scan_as(const Scores& scores, const Bracket& bracket, Seen& seen, Collected& inside) {
  for (int64_t i = 0; i < scores.numel; ++i) {
    seen.nan |= is_nan(scores.values[i]);
    const int32_t key = key_of<order>(scores.values[i]);
    seen.from_high += key >= bracket.high;
    if (!in_bracket(bracket, key)) continue;
    if (inside.count == inside.most) {
      inside.overflown = true;
      return;
    }
    inside.keys[inside.count++] = key;
  }
}

template <Order order>
int64_t mark_as(const Scores& scores, int32_t threshold, int64_t ties, uint8_t* kept, float* weights) {
  for (int64_t i = 0; i < scores.numel; ++i) {
    const int32_t key = key_of<order>(scores.values[i]);
    const bool tied = key == threshold && ties > 0;
    ties -= tied;
    kept[i] = key > threshold || tied;
    if (weights != nullptr && kept[i] == 0) weights[i] = 0.0F;
  }
  return ties;
}

}  // namespace

void scan(const Scores& scores, Order order, const Bracket& bracket, Seen& seen, Collected& inside) {
  if (order == Order::kMagnitude) {
    scan_as<Order::kMagnitude>(scores, bracket, seen, inside);
  } else {
    scan_as<Order::kValue>(scores, bracket, seen, inside);
  }
}

int64_t mark_kept(const Scores& scores, Order order, int32_t key, int64_t ties, uint8_t* kept,
                  float* weights) {
  return order == Order::kMagnitude ? mark_as<Order::kMagnitude>(scores, key, ties, kept, weights)
                                    : mark_as<Order::kValue>(scores, key, ties, kept, weights);
}

void hold(const uint8_t* kept, int64_t numel, float* weights) {
  for (int64_t i = 0; i < numel; ++i) {
    if (kept[i] == 0) weights[i] = 0.0F;
  }
}

}  // namespace lgreco::pruning::scalar
