// The paper's solver: dynamic programming over error cut into cells (L-GreCo, algorithm 1).
#pragma once

#include "solver/problem.h"

namespace lgreco::solver {

inline constexpr int kErrorCells = 10'000;

/// Cuts into cells what the budget leaves above the layers' least errors, and rounds what a choice adds
/// to its layer's least error up. So the plan of least error takes no cell and is always found, no plan
/// is over the budget, and the cost is at most the best one's of a budget smaller by one cell a layer.
/// What rounding left is spent greedily; a reference within the budget is returned where nothing
/// cheaper was found. Takes layers * 20 kB of memory and layers * 10 000 * choices steps: far more
/// than solve_lagrangian, for no better plan. The lower bound is the linear relaxation's.
/// Throws ValueError as solve_lagrangian does.
Solution solve_dp(const Problem& problem);

}  // namespace lgreco::solver
