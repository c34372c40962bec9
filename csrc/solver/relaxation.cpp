// Greedy over the hulls' edges, by selection instead of sorting.
#include "solver/relaxation.h"

#include <algorithm>

namespace lgreco::solver {
namespace {

// The greedy keeps this far below the limit, so that a sum in another order does not pass it.
constexpr double kRoundingShare = 4e-13;
constexpr size_t kSorted = 64;
// Steps that are kept to either side of the price: at most, and of how many edges near it.
constexpr size_t kSteps = 1024;
constexpr size_t kNear = 8 * kSteps;

/// A total order, so that no result depends on how a library sorts. Within a layer savings fall, so it
/// takes each layer's edges in turn.
bool before(const Edge& a, const Edge& b) {
  if (a.saving != b.saving) return a.saving > b.saving;
  return a.to < b.to;
}

bool after(const Edge& a, const Edge& b) { return before(b, a); }

Edge median_of(const Edge& a, const Edge& b, const Edge& c) {
  if (before(a, b)) return before(b, c) ? b : before(a, c) ? c : a;
  return before(a, c) ? a : before(b, c) ? c : b;
}

/// Puts the edges before `pivot`, which is one of them, first, then itself; returns its place.
size_t partition(std::span<Edge> edges, const Edge& pivot) {
  size_t place = 0;
  for (size_t i = 0; i < edges.size(); ++i) {
    const Edge edge = edges[i];
    edges[i] = edges[place];
    edges[place] = edge;
    place += before(edge, pivot) ? 1 : 0;
  }
  size_t pivot_at = place;
  while (edges[pivot_at].to != pivot.to) ++pivot_at;
  std::swap(edges[pivot_at], edges[place]);
  return place;
}

/// Where the budget ends among edges that are ordered so far: all before `near_begin` come before the
/// others, all from `near_end` on after them, and those before `taken` are within the budget.
struct Cut {
  size_t taken = 0;
  size_t near_begin = 0;
  size_t near_end = 0;
};

/// Orders the edges so far that the first ones, `taken` of them, come first and together add at most
/// `room`; the next one, if any, is the first that does not fit.
Cut select(std::span<Edge> edges, double room) {
  size_t begin = 0, end = edges.size();
  Cut cut{.near_end = end};
  double spent = 0;
  while (end - begin > kSorted) {
    if (end - begin > kNear) cut = {0, begin, end};
    const Edge pivot = median_of(edges[begin], edges[begin + (end - begin) / 2], edges[end - 1]);
    const size_t place = begin + partition(edges.subspan(begin, end - begin), pivot);
    double error = spent;
    for (size_t i = begin; i < place; ++i) error += edges[i].error;
    if (error > room) {
      end = place;
    } else if (error + pivot.error > room) {
      cut.taken = place;
      return cut;
    } else {
      spent = error + pivot.error;
      begin = place + 1;
    }
  }
  std::sort(edges.begin() + begin, edges.begin() + end, before);
  while (begin < end && spent + edges[begin].error <= room) spent += edges[begin++].error;
  cut.taken = begin;
  return cut;
}

/// Each layer's farthest point that the edges lead to.
void follow(const Fronts& fronts, std::span<const Edge> edges, std::vector<int32_t>& points) {
  std::vector<uint8_t> reached(fronts.points.size(), 0);
  for (const Edge& edge : edges) reached[edge.to] = 1;
  for (int32_t i = 0; i < fronts.layers(); ++i) {
    points[i] = fronts.cheapest(i);
    while (points[i] > fronts.best(i) && reached[points[i]] == 0) --points[i];
  }
}

/// The first edges, backwards the last ones, as steps. `more`: there are edges beyond these.
Steps first_steps(const Fronts& fronts, std::span<Edge> edges, double price, bool backwards, bool more) {
  const auto precedes = backwards ? after : before;
  const size_t count = std::min(edges.size(), kSteps);
  std::nth_element(edges.begin(), edges.begin() + count, edges.end(), precedes);
  std::sort(edges.begin(), edges.begin() + count, precedes);
  Steps steps;
  steps.more = more || count < edges.size();
  for (const Edge& edge : edges.first(count)) {
    const double rate = backwards ? edge.saving - price : price - edge.saving;
    steps.steps.push_back({rate, edge.error, fronts.layer_of(edge.to), backwards ? edge.from : edge.to});
  }
  return steps;
}

/// Sum over layers of min(0, least reduced cost): rounding, but for prices that overflow.
double shortfall(const Fronts& fronts, const Relaxation& relaxation) {
  double sum = 0;
  for (int32_t i = 0; i < fronts.layers(); ++i) {
    const Point& base = fronts.points[relaxation.points[i]];
    double least = 0;
    for (const Point& point : fronts.of(i)) {
      const double reduced = (point.cost - base.cost) + relaxation.price * (point.error - base.error);
      least = std::min(least, reduced);
    }
    sum += least;
  }
  return sum;
}

}  // namespace

Totals totals_of(const Fronts& fronts, std::span<const int32_t> points) {
  Totals totals;
  for (const int32_t p : points) {
    totals.cost += fronts.points[p].cost;
    totals.error += fronts.points[p].error;
  }
  return totals;
}

Relaxation relax(const Fronts& fronts, double limit) {
  std::vector<Edge> edges = hull_edges(fronts);
  const Cut cut = select(edges, limit * (1 - kRoundingShare) - fronts.least_error());
  Relaxation relaxation;
  relaxation.points.resize(fronts.layers());
  follow(fronts, std::span(edges).first(cut.taken), relaxation.points);
  relaxation.price = cut.taken < edges.size() ? edges[cut.taken].saving : 0;
  const Totals totals = totals_of(fronts, relaxation.points);
  relaxation.cost = totals.cost;
  relaxation.error = totals.error;
  relaxation.lower_bound = totals.cost + relaxation.price * (totals.error - limit);
  relaxation.lower_bound += shortfall(fronts, relaxation);
  // A side that is nearly empty near the price is completed from farther off.
  const size_t from = cut.taken - cut.near_begin < kSteps ? 0 : cut.near_begin;
  const size_t until = cut.near_end - cut.taken < kSteps ? edges.size() : cut.near_end;
  const std::span<Edge> all(edges);
  relaxation.spend = first_steps(fronts, all.subspan(cut.taken, until - cut.taken), relaxation.price,
                                 false, until < edges.size());
  relaxation.give =
      first_steps(fronts, all.subspan(from, cut.taken - from), relaxation.price, true, from > 0);
  return relaxation;
}

void round_plan(const Fronts& fronts, const Relaxation& relaxation, double limit,
                const std::vector<uint8_t>& may_give, std::vector<int32_t>& points) {
  double room = limit * (1 - kRoundingShare) - totals_of(fronts, points).error;
  const auto go = [&](int32_t& point, int32_t to) {
    room -= fronts.points[to].error - fronts.points[point].error;
    point = to;
  };
  for (const Step& step : relaxation.give.steps) {
    if (room >= 0) break;
    if (may_give[step.layer] != 0 && step.to < points[step.layer]) go(points[step.layer], step.to);
  }
  const auto fits = [&](int32_t point, int32_t to) {
    return fronts.points[to].error - fronts.points[point].error <= room;
  };
  for (const Step& step : relaxation.spend.steps) {
    if (step.to > points[step.layer] && fits(points[step.layer], step.to))
      go(points[step.layer], step.to);
  }
  // What no hull's edge fits may still fit a step between two points of a front.
  for (int32_t i = 0; i < fronts.layers(); ++i) {
    int32_t to = points[i];
    while (to < fronts.cheapest(i) && fits(points[i], to + 1)) ++to;
    if (to > points[i]) go(points[i], to);
  }
}

}  // namespace lgreco::solver
