// A plan to begin with.
#include "solver/incumbent.h"

#include "solver/relaxation.h"

namespace lgreco::solver {
namespace {

/// For each layer the cheapest point of no more error than its reference choice: no costlier either.
std::vector<int32_t> reference_points(const Problem& problem, const Fronts& fronts) {
  std::vector<int32_t> points = best_points(fronts);
  for (int32_t i = 0; i < fronts.layers(); ++i) {
    const double error = problem.error(i, problem.reference[i]);
    while (points[i] < fronts.cheapest(i) && fronts.points[points[i] + 1].error <= error) ++points[i];
  }
  return points;
}

}  // namespace

void Incumbent::improve(const Fronts& fronts, double limit, const std::vector<int32_t>& others) {
  const Totals totals = totals_of(fronts, others);
  if (totals.error > limit || (!points.empty() && totals.cost >= cost)) return;
  points = others;
  cost = totals.cost;
}

Incumbent first_incumbent(const Problem& problem, Fronts& fronts) {
  const double limit = problem.limit();
  if (fronts.least_error() > limit) throw_infeasible(problem, fronts.least_error());
  drop_unreachable(fronts, limit);
  Incumbent incumbent;
  incumbent.improve(fronts, limit, best_points(fronts));
  if (reference_fits(problem)) incumbent.improve(fronts, limit, reference_points(problem, fronts));
  return incumbent;
}

}  // namespace lgreco::solver
