// Relax, round, search.
#include "solver/lagrangian.h"

#include "solver/core.h"
#include "solver/incumbent.h"
#include "solver/pareto.h"
#include "solver/relaxation.h"

namespace lgreco::solver {

Solution solve_lagrangian(const Problem& problem) {
  check(problem);
  Fronts fronts = pareto_fronts(problem);
  const double limit = problem.limit();
  if (fronts.cheapest_error() <= limit)
    return solution_of(problem, choices_at(fronts, cheapest_points(fronts)), kProven);
  Incumbent incumbent = first_incumbent(problem, fronts);
  const Relaxation relaxation = relax(fronts, limit);
  std::vector<int32_t> points = relaxation.points;
  round_plan(fronts, relaxation, limit, std::vector<uint8_t>(fronts.layers(), 1), points);
  incumbent.improve(fronts, limit, points);
  const double lower_bound = close_gap(fronts, relaxation, limit, incumbent);
  return solution_of(problem, choices_at(fronts, incumbent.points), lower_bound);
}

}  // namespace lgreco::solver
