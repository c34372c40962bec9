// How the sixteen-lane sparse encoders find the elements of largest magnitude. Part of sparse_simd.h.
//
// The k-th largest of all vectors' greatest magnitudes is a lower bound of the k-th largest element. So
// the elements that reach it are candidates: few more than k, because k vectors have one each.
#pragma once

namespace lgreco::kernels {

/// Narrows `bounds` until from `wanted` to `most` reach `low`, or until low and high are neighbours.
template <class Level>
template <typename Count>
typename SimdSparse<Level>::Bounds SimdSparse<Level>::search(Bounds bounds, int wanted, int most,
                                                             uint32_t guess, uint32_t step,
                                                             const Count& count) {
  bool from_below = false, from_above = false;
  uint32_t at = guess;
  while (bounds.low_count > most && bounds.high - bounds.low > 1) {
    const uint32_t middle = bounds.low + (bounds.high - bounds.low) / 2;
    if (from_below && from_above) at = middle;
    if (at <= bounds.low || at >= bounds.high) at = middle;
    const int reached = count(at);
    const bool enough = reached >= wanted;
    bounds.low = enough ? at : bounds.low;
    bounds.low_count = enough ? reached : bounds.low_count;
    bounds.high = enough ? bounds.high : at;
    bounds.high_count = enough ? bounds.high_count : reached;
    from_below |= enough;
    from_above |= !enough;
    at = enough ? at + step : at > step ? at - step : 0;
    step *= 2;
  }
  return bounds;
}

/// Leaves candidates in scratch.index and scratch.picked, ascending by index: all elements from some
/// magnitude on, at least `kept` of them. `highest`: the high half of the greatest magnitude.
template <class Level>
typename SimdSparse<Level>::Candidates SimdSparse<Level>::find_candidates(const SparseShape& shape,
                                                                          uint32_t highest, Hint& hint,
                                                                          SparseScratch& scratch) {
  const int vectors = vectors_of(shape.numel), kept = shape.kept;
  const Int lanes = Level::lanes();
  int found = 0;
  uint32_t least_magnitude;
  const auto append = [&](uint32_t vector, Int least) {
    const Int value = Level::load_bits(scratch.values + vector * kLanes);
    const uint32_t mask = Level::reaching(value, least);
    Level::append(scratch.index + found, mask,
                  Level::add(lanes, Level::set(static_cast<int>(vector) * kLanes)));
    Level::append(scratch.picked + found, mask, value);
    found += __builtin_popcount(mask);
  };
  if (kept <= vectors / 4 * 3) {
    const uint32_t guess = hint.top != 0 ? hint.top : highest - 0x40;
    const Bounds bounds =
        search({0, highest + 1, vectors, 0}, kept, kept + kept / 8 + 1, guess, 2,
               [&](uint32_t at) { return Level::count_tops(scratch.tops, vectors, at); });
    hint.top = bounds.low;
    least_magnitude = bounds.low << 16;
    const Int least = Level::set(static_cast<int>(least_magnitude));
    const int rows = Level::list_tops(scratch.tops, vectors, bounds.low, scratch.rows);
    for (int i = 0; i < rows; ++i) append(scratch.rows[i], least);
  } else {
    const uint32_t top = (highest + 1) << 16;
    const uint32_t guess = hint.magnitude != 0 ? hint.magnitude : top - (1U << 24);
    const Bounds bounds =
        search({0, top, shape.numel, 0}, kept, kept + kept / 4 + 1, guess, 1U << 17,
               [&](uint32_t at) { return Level::count_reaching(scratch.values, vectors, at); });
    hint.magnitude = least_magnitude = bounds.low;
    const Int least = Level::set(static_cast<int>(least_magnitude));
    for (int vector = 0; vector < vectors; ++vector) append(vector, least);
  }
  // Where zeros are candidates, so is what pads the last vector.
  while (scratch.index[found - 1] >= static_cast<uint32_t>(shape.numel)) --found;
  return {found, least_magnitude};
}

/// Leaves the `kept` elements of largest magnitude in scratch.index and scratch.picked; of equal
/// magnitudes those of lowest index.
template <class Level>
void SimdSparse<Level>::pick_largest(const SparseShape& shape, uint32_t highest, Hint& hint,
                                     SparseScratch& scratch) {
  const auto [found, least_magnitude] = find_candidates(shape, highest, hint, scratch);
  const int kept = shape.kept;
  if (found == kept) return;
  Level::store_bits(scratch.picked + found, Level::zero());
  const auto count = [&](uint32_t at) {
    return Level::count_reaching(scratch.picked, vectors_of(found), at);
  };
  Bounds bounds{least_magnitude, (highest + 1) << 16, found, 0};
  if (least_magnitude == 0 && count(1) < kept) {  // all that is left are zeros
    bounds.high = 1;
    bounds.high_count = count(1);
  }
  bounds = search(bounds, kept, kept, least_magnitude + (1U << 16), 1U << 16, count);
  int ties = bounds.low_count == kept ? kept : kept - bounds.high_count, taken = 0;
  const Int least = Level::set(static_cast<int>(bounds.low));
  const Int above = Level::set(static_cast<int>(bounds.low + 1));
  for (int first = 0; first < found; first += kLanes) {
    const Int value = Level::load_bits(scratch.picked + first);
    const Int index = Level::load_bits(scratch.index + first);
    const uint32_t there = found - first < kLanes ? (1U << (found - first)) - 1U : 0xFFFFU;
    const uint32_t greater = Level::reaching(value, above);
    const uint32_t equal = Level::reaching(value, least) & ~greater & there;
    const uint32_t tied = _pdep_u32((1U << (ties < kLanes ? ties : kLanes)) - 1U, equal);
    const uint32_t mask = greater | tied;
    ties -= __builtin_popcount(tied);
    Level::append(scratch.index + taken, mask, index);
    Level::append(scratch.picked + taken, mask, value);
    taken += __builtin_popcount(mask);
  }
}

}  // namespace lgreco::kernels
