// The best plan so far, as points of the fronts; within the limit by the rule of the budget.
#pragma once

#include <cstdint>
#include <vector>

#include "solver/pareto.h"
#include "solver/problem.h"

namespace lgreco::solver {

struct Incumbent {
  std::vector<int32_t> points;  ///< [layers], in Fronts::points
  double cost = 0;

  /// Takes the points where they are within the limit and cost less.
  void improve(const Fronts& fronts, double limit, const std::vector<int32_t>& others);
};

/// The plan of least error or, where it costs less and is within the budget, the reference. Also drops
/// points that no plan within the budget reaches. Throws ValueError where there is no such plan.
Incumbent first_incumbent(const Problem& problem, Fronts& fronts);

}  // namespace lgreco::solver
