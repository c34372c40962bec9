// The linear relaxation: layers step along their hulls, greatest saving first, until the budget is
// spent. Gives the price of error, a plan that is a fraction of one step away, and a lower bound.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "solver/pareto.h"

namespace lgreco::solver {

/// A hull's edge as it is seen from the price of error: walked forwards it spends error, and backwards
/// it gives error back.
struct Step {
  double rate = 0;   ///< |saving - price|, >= 0: cost above the lower bound for each unit of error
  double error = 0;  ///< spent or given back, > 0
  int32_t layer = 0;
  int32_t to = 0;  ///< where it leads, in Fronts::points
};

/// Steps of lowest rate first, each layer's in the order they must be taken.
struct Steps {
  std::vector<Step> steps;
  bool more = false;  ///< there are others, at the last one's rate or above
};

struct Relaxation {
  std::vector<int32_t> points;  ///< [layers], in Fronts::points; least cost + price * error in each row
  double price = 0;             ///< cost of one unit of error where the budget is just spent
  double cost = 0;              ///< of the points, added in the order of the layers
  double error = 0;             ///< likewise; within the limit but for rounding
  /// Sum over layers of min(cost + price * error), less price * limit: below every plan's cost. May be
  /// negative, and -infinity where the price overflows.
  double lower_bound = 0;
  Steps spend, give;  ///< from the points on, and back; the first ones
};

/// The limit is not below the error of the best plan.
Relaxation relax(const Fronts& fronts, double limit);

/// Total cost and error of one point a layer, added in the order of the layers.
struct Totals {
  double cost = 0;
  double error = 0;
};
Totals totals_of(const Fronts& fronts, std::span<const int32_t> points);

/// Makes a plan within the limit, but for rounding, of one that need not be: gives error back with the
/// layers that `may_give` allows, then spends what is left, each at the lowest rate first.
void round_plan(const Fronts& fronts, const Relaxation& relaxation, double limit,
                const std::vector<uint8_t>& may_give, std::vector<int32_t>& points);

}  // namespace lgreco::solver
