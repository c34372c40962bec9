// One row of least costs by cells spent, carried from layer to layer; one table of what led there.
#include "solver/dp.h"

#include <cmath>
#include <limits>

#include "core/error.h"
#include "solver/incumbent.h"
#include "solver/pareto.h"
#include "solver/relaxation.h"

namespace lgreco::solver {
namespace {

// Room is measured to here, within the limit of the budget, so that a plan of exactly the budget fits
// and sums in another order do too.
constexpr double kRoundingShare = 4e-13;

/// Cells that the point takes more than its layer's best; above kErrorCells: more than there are.
int cells_of(const Point& point, const Point& best, double room) {
  const double cells = std::ceil((point.error - best.error) / room * kErrorCells);
  return cells <= kErrorCells ? static_cast<int>(cells) : kErrorCells + 1;
}

class Table {
 public:
  Table(const Fronts& fronts, double room)
      : fronts_(fronts),
        room_(room),
        costs_(kErrorCells + 1, 0),
        previous_(kErrorCells + 1),
        chosen_(static_cast<size_t>(fronts.layers()) * (kErrorCells + 1)) {
    for (int32_t i = 0; i < fronts.layers(); ++i) add(i);
  }

  std::vector<int32_t> best_plan() const {
    std::vector<int32_t> points = best_points(fronts_);
    int cell = kErrorCells;
    for (int32_t i = fronts_.layers() - 1; i >= 0; --i) {
      points[i] += row(i)[cell];
      cell -= cells_of(fronts_.points[points[i]], fronts_.points[fronts_.best(i)], room_);
    }
    return points;
  }

 private:
  const uint16_t* row(int32_t layer) const {
    return chosen_.data() + static_cast<size_t>(layer) * (kErrorCells + 1);
  }

  void add(int32_t layer) {
    const std::span<const Point> front = fronts_.of(layer);
    uint16_t* chosen = chosen_.data() + static_cast<size_t>(layer) * (kErrorCells + 1);
    costs_.swap(previous_);
    for (int cell = 0; cell <= kErrorCells; ++cell) costs_[cell] = previous_[cell] + front[0].cost;
    for (size_t p = 1; p < front.size(); ++p) {
      const int taken = cells_of(front[p], front[0], room_);
      for (int cell = taken; cell <= kErrorCells; ++cell) {
        const double cost = previous_[cell - taken] + front[p].cost;
        const bool better = cost < costs_[cell];
        costs_[cell] = better ? cost : costs_[cell];
        chosen[cell] = better ? static_cast<uint16_t>(p) : chosen[cell];
      }
    }
  }

  const Fronts& fronts_;
  double room_;
  std::vector<double> costs_;     ///< [cells + 1], least cost with at most so many cells
  std::vector<double> previous_;  ///< of the layers before
  std::vector<uint16_t> chosen_;  ///< [layers][cells + 1], points counted from the layer's best
};

}  // namespace

Solution solve_dp(const Problem& problem) {
  check(problem);
  require(problem.choices <= std::numeric_limits<uint16_t>::max(),
          "method dp takes at most 65535 choices, got ", problem.choices);
  Fronts fronts = pareto_fronts(problem);
  const double limit = problem.limit();
  if (fronts.cheapest_error() <= limit)
    return solution_of(problem, choices_at(fronts, cheapest_points(fronts)), kProven);
  Incumbent incumbent = first_incumbent(problem, fronts);
  const Relaxation relaxation = relax(fronts, limit);
  const double room = limit * (1 - kRoundingShare) - fronts.least_error();
  if (room > 0) {
    std::vector<int32_t> points = Table(fronts, room).best_plan();
    incumbent.improve(fronts, limit, points);
    round_plan(fronts, relaxation, limit, std::vector<uint8_t>(fronts.layers(), 0), points);
    incumbent.improve(fronts, limit, points);
  }
  return solution_of(problem, choices_at(fronts, incumbent.points), relaxation.lower_bound);
}

}  // namespace lgreco::solver
