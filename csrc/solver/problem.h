// The problem: one choice for each layer, least total cost, total error within a budget.
//
// A multiple-choice knapsack (L-GreCo, arXiv 2210.17357). Exchange the two tables, and it is the one
// of least total error within a total cost: nothing here depends on which table holds what.
//
// The rule of the budget: a plan is within it where its errors, added in float64 in the order of the
// layers, are at most budget * (1 + 1e-12). So a plan whose own total was made the budget is within
// it, in whatever order that total was added up.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace lgreco::solver {

/// Borrowed tables, dense and row-major [layers][choices]. NaN or infinity in either: not offered.
struct Problem {
  int64_t layers = 0;
  int64_t choices = 0;
  const double* errors = nullptr;
  const double* costs = nullptr;
  double budget = 0;                   ///< of the total error; infinity: none
  const int32_t* reference = nullptr;  ///< [layers], a choice for each; where it is within the budget,
                                       ///< no solver returns anything costlier
  const char* error_name = "error";    ///< in messages: what `errors` holds
  const char* cost_name = "cost";      ///< in messages: what `costs` holds

  double error(int64_t layer, int64_t choice) const { return errors[layer * choices + choice]; }
  double cost(int64_t layer, int64_t choice) const { return costs[layer * choices + choice]; }
  bool offered(int64_t layer, int64_t choice) const;
  double limit() const;  ///< the greatest total error that is within the budget
};

struct Solution {
  std::vector<int32_t> choices;  ///< one for each layer
  double cost = 0;               ///< added in the order of the layers
  double error = 0;              ///< added in the order of the layers; at most Problem::limit()
  double lower_bound = 0;        ///< no plan within the budget costs less
  double gap = 0;                ///< (cost - lower_bound) / lower_bound; 0: proven best
};

/// Throws ValueError for a size, budget or reference that is not allowed. Rows are checked where they
/// are read, by pareto_fronts.
void check(const Problem& problem);

/// Throws ValueError: no plan is within the budget, and `least_error` is the least total.
[[noreturn]] void throw_infeasible(const Problem& problem, double least_error);

/// As a lower bound: the plan is proven best.
inline constexpr double kProven = std::numeric_limits<double>::infinity();

/// The totals of a plan and its gap. A lower bound above the cost, which rounding can make, is the cost.
Solution solution_of(const Problem& problem, std::vector<int32_t> choices, double lower_bound);

/// Whether a reference was given and is within the budget.
bool reference_fits(const Problem& problem);

}  // namespace lgreco::solver
