// Every plan, one after another: what the other solvers are tested against.
#pragma once

#include "solver/problem.h"

namespace lgreco::solver {

/// The cheapest plan within the budget; of equally cheap ones that of least error, then of lowest
/// indices. Knows nothing of fronts or rounding beyond the rule of the budget.
/// Throws ValueError as solve_lagrangian does, and for more than 10 million plans.
Solution solve_exhaustive(const Problem& problem);

}  // namespace lgreco::solver
