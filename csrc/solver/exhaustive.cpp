// Depth first over the layers, in order, so that sums are those of the budget's rule.
#include "solver/exhaustive.h"

#include <algorithm>
#include <limits>

#include "core/error.h"
#include "solver/pareto.h"

namespace lgreco::solver {
namespace {

constexpr double kMostPlans = 1e7;

class Enumeration {
 public:
  explicit Enumeration(const Problem& problem) : problem_(problem), choices_(problem.layers) {
    double plans = 1;
    for (int64_t i = 0; i < problem.layers; ++i) {
      int64_t offered = 0;
      for (int64_t k = 0; k < problem.choices; ++k) offered += problem.offered(i, k) ? 1 : 0;
      plans *= static_cast<double>(offered);
    }
    require(plans <= kMostPlans, "method exhaustive takes at most ", kMostPlans, " plans, got ", plans);
    descend(0, 0, 0);
  }

  /// Empty: none is within the budget.
  const std::vector<int32_t>& best() const { return best_; }

 private:
  void descend(int64_t layer, double error, double cost) {
    if (error > problem_.limit()) return;
    if (layer == problem_.layers) {
      if (!best_.empty() && (cost > cost_ || (cost == cost_ && error >= error_))) return;
      best_ = choices_;
      cost_ = cost;
      error_ = error;
      return;
    }
    for (int64_t k = 0; k < problem_.choices; ++k) {
      if (!problem_.offered(layer, k)) continue;
      choices_[layer] = static_cast<int32_t>(k);
      descend(layer + 1, error + problem_.error(layer, k), cost + problem_.cost(layer, k));
    }
  }

  const Problem& problem_;
  std::vector<int32_t> choices_, best_;
  double cost_ = 0;
  double error_ = 0;
};

}  // namespace

Solution solve_exhaustive(const Problem& problem) {
  check(problem);
  const double least_error = pareto_fronts(problem).least_error();
  std::vector<int32_t> best = Enumeration(problem).best();
  if (best.empty()) throw_infeasible(problem, least_error);
  return solution_of(problem, std::move(best), kProven);
}

}  // namespace lgreco::solver
