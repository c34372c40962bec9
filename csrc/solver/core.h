// Closes the gap that the relaxation leaves: dynamic programming over a growing core of layers, in the
// spirit of Pisinger (A minimal algorithm for the multiple-choice knapsack problem, 1995), but coarse
// layers first and each state bounded by the relaxation of the layers to come.
#pragma once

#include "solver/incumbent.h"
#include "solver/pareto.h"
#include "solver/relaxation.h"

namespace lgreco::solver {

/// Improves the incumbent and returns a lower bound of every plan's cost: the incumbent's own where it
/// is proven best (to 1e-9), else the relaxation's or better.
double close_gap(const Fronts& fronts, const Relaxation& relaxation, double limit, Incumbent& incumbent);

}  // namespace lgreco::solver
