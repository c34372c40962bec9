// What every solver shares: the rule of the budget, checks, and the totals of a plan.
#include "solver/problem.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "core/error.h"

namespace lgreco::solver {
namespace {

constexpr double kTolerance = 1e-12;
// Points are counted in 32 bits, a plan's choices too.
constexpr int64_t kMaxEntries = int64_t{1} << 30;

double total(const Problem& problem, const double* table, const int32_t* choices) {
  double sum = 0;
  for (int64_t i = 0; i < problem.layers; ++i) sum += table[i * problem.choices + choices[i]];
  return sum;
}

/// Digits enough to read back the same number: a budget may miss by little.
std::string shortest(double value) {
  char text[32];
  return {text, std::to_chars(text, text + sizeof(text), value).ptr};
}

double gap_of(double cost, double lower_bound) {
  if (cost <= lower_bound) return 0;
  return lower_bound > 0 ? (cost - lower_bound) / lower_bound : std::numeric_limits<double>::infinity();
}

}  // namespace

bool Problem::offered(int64_t layer, int64_t choice) const {
  return std::isfinite(error(layer, choice)) && std::isfinite(cost(layer, choice));
}

double Problem::limit() const { return budget * (1 + kTolerance); }

void check(const Problem& problem) {
  require(problem.layers >= 1 && problem.choices >= 1,
          "there must be at least one layer and one choice, got ", problem.layers, " layers and ",
          problem.choices, " choices");
  require(problem.layers <= kMaxEntries / problem.choices, "layers * choices must be at most ",
          kMaxEntries, ", got ", problem.layers, " * ", problem.choices);
  require(problem.budget >= 0, "the ", problem.error_name, " budget must be a number from 0, got ",
          problem.budget);
  if (problem.reference == nullptr) return;
  for (int64_t i = 0; i < problem.layers; ++i) {
    const int32_t choice = problem.reference[i];
    require(choice >= 0 && choice < problem.choices, "the reference choice of layer ", i, " must be 0..",
            problem.choices - 1, ", got ", choice);
    require(problem.offered(i, choice), "the reference choice of layer ", i,
            " must be offered, but choice ", choice, " has ", problem.error_name, " ",
            problem.error(i, choice), " and ", problem.cost_name, " ", problem.cost(i, choice));
  }
}

void throw_infeasible(const Problem& problem, double least_error) {
  throw ValueError(concat("the ", problem.error_name, " budget ", shortest(problem.budget),
                          " is below the least attainable total ", problem.error_name, " ",
                          shortest(least_error)));
}

Solution solution_of(const Problem& problem, std::vector<int32_t> choices, double lower_bound) {
  Solution solution;
  solution.cost = total(problem, problem.costs, choices.data());
  solution.error = total(problem, problem.errors, choices.data());
  solution.lower_bound = std::min(std::max(lower_bound, 0.0), solution.cost);
  solution.gap = gap_of(solution.cost, solution.lower_bound);
  solution.choices = std::move(choices);
  return solution;
}

bool reference_fits(const Problem& problem) {
  return problem.reference != nullptr &&
         total(problem, problem.errors, problem.reference) <= problem.limit();
}

}  // namespace lgreco::solver
