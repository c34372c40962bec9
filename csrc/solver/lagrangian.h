// The solver of choice: Pareto fronts, linear relaxation on their hulls, then a search that closes the
// gap. Fast, with a bound that says how far from best the plan can be.
#pragma once

#include "solver/problem.h"

namespace lgreco::solver {

/// The same plan wherever it runs: no libm, no threads, no clock. A gap of 0 means best to 1e-9.
/// Throws ValueError as check and pareto_fronts do, and where no plan is within the budget.
Solution solve_lagrangian(const Problem& problem);

}  // namespace lgreco::solver
