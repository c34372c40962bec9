// States are partial plans: which layers of the core moved where, all other layers at the relaxation.
#include "solver/core.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "solver/reach.h"

namespace lgreco::solver {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// A plan that is cheaper by less than this share is not looked for, nor a state kept for it.
constexpr double kPlanShare = 1e-12;
constexpr double kStateShare = 1e-14;
// States kept for each layer of the core, the most promising ones: few at first, more where states
// that were dropped leave too great a gap.
constexpr size_t kWidths[] = {256, 4096, 65536};
// A search ends after this many states, or after the lower number where the gap is small enough.
constexpr int64_t kMostStates = 1'000'000;
constexpr int64_t kEnoughStates = 6'000;
constexpr double kEnoughGap = 9e-4;

/// A layer's step away from the relaxation's point.
struct Move {
  double error = 0;    ///< added, negative where the move gives error back
  double cost = 0;     ///< added
  double reduced = 0;  ///< cost + price * error, >= 0: what the move adds to the lower bound
  int32_t point = 0;
};

struct CoreLayer {
  int32_t layer = 0;
  double grain = 0;  ///< error of its move of lowest rate
};

struct State {
  double error = 0;  ///< relative to the relaxation
  double cost = 0;   ///< likewise
  double bound = 0;  ///< below the cost of each plan that comes of it
  int32_t parent = -1;
  int32_t point = -1;  ///< of the layer that was added
};

class Search {
 public:
  /// `made`: states that were made so far, to which this search adds.
  Search(const Fronts& fronts, const Relaxation& relaxation, double limit, Incumbent& incumbent,
         size_t width, int64_t& made)
      : fronts_(fronts),
        base_(relaxation),
        limit_(limit),
        incumbent_(incumbent),
        width_(width),
        made_(made),
        to_come_(fronts.layers(), 0),
        core_(gather_core()),
        reach_(relaxation, to_come_) {}

  /// Returns a lower bound of every plan's cost: the incumbent's, where it is proven best.
  double run() {
    states_.push_back({.bound = base_.lower_bound});
    for (size_t depth = 0; depth < core_.size() && advance(depth); ++depth) {
      if (enough()) return std::min({dropped_bound_, least_bound(), incumbent_.cost});
    }
    return std::min(dropped_bound_, incumbent_.cost);
  }

  bool enough() const {
    if (made_ >= kMostStates) return true;
    if (made_ < kEnoughStates) return false;
    const double bound = std::min(dropped_bound_, least_bound());
    return incumbent_.cost - bound <= kEnoughGap * incumbent_.cost;
  }

 private:
  double worth_keeping() const { return incumbent_.cost * (1 - kPlanShare); }

  std::vector<CoreLayer> gather_core();
  template <typename Use>
  void for_each_move(int32_t layer, const Use& use) const;
  bool advance(size_t depth);
  void extend(int32_t parent, const Move& move);
  void keep_undominated();
  void keep_promising();
  void try_states(size_t depth);
  std::vector<int32_t> points_of(const State& state, size_t depth) const;
  double least_bound() const;

  const Fronts& fronts_;
  const Relaxation& base_;
  double limit_;
  Incumbent& incumbent_;
  size_t width_;
  int64_t& made_;

  std::vector<uint8_t> to_come_;  ///< [layers], whether it will be in the core and is not yet
  std::vector<CoreLayer> core_;   ///< in the order in which they come
  Reach reach_;                   ///< of those to come
  std::vector<State> states_;     ///< of all depths, one after another
  size_t level_begin_ = 0;        ///< where the last depth's begin
  std::vector<State> fresh_;      ///< of the depth that is being made
  std::vector<double> bounds_;
  double dropped_bound_ = kInfinity;
};

/// The layers that can leave the relaxation's point in a plan cheaper than the incumbent, coarsest
/// first: the finer ones fill what those leave, nearly as the relaxation would.
std::vector<CoreLayer> Search::gather_core() {
  std::vector<CoreLayer> core;
  for (int32_t i = 0; i < fronts_.layers(); ++i) {
    CoreLayer added{.layer = i};
    double least_rate = kInfinity;
    for_each_move(i, [&](const Move& move) {
      const double rate = move.reduced / std::abs(move.error);
      if (rate >= least_rate) return;
      least_rate = rate;
      added.grain = std::abs(move.error);
    });
    if (least_rate == kInfinity) continue;
    to_come_[i] = 1;
    core.push_back(added);
  }
  std::sort(core.begin(), core.end(), [](const CoreLayer& a, const CoreLayer& b) {
    return a.grain != b.grain ? a.grain > b.grain : a.layer < b.layer;
  });
  return core;
}

/// The moves of a layer that a plan cheaper than the incumbent can contain.
template <typename Use>
void Search::for_each_move(int32_t layer, const Use& use) const {
  const int32_t at = base_.points[layer];
  const Point& base = fronts_.points[at];
  const double most_reduced = worth_keeping() - base_.lower_bound;
  for (int32_t p = fronts_.begins[layer]; p < fronts_.begins[layer + 1]; ++p) {
    const double error = fronts_.points[p].error - base.error;
    const double cost = fronts_.points[p].cost - base.cost;
    const double reduced = std::max(cost + base_.price * error, 0.0);
    if (p != at && reduced < most_reduced) use(Move{error, cost, reduced, p});
  }
}

/// Adds a layer to the core; false: no state is left that could lead to a cheaper plan.
bool Search::advance(size_t depth) {
  const int32_t layer = core_[depth].layer;
  const size_t level_end = states_.size();
  reach_.remove(layer);
  to_come_[layer] = 0;
  made_ += reach_.steps() / 8 + fronts_.layers() / 4;  // what a depth costs besides its states
  fresh_.clear();
  const auto extend_all = [&](const Move& move) {
    for (size_t s = level_begin_; s < level_end; ++s) extend(static_cast<int32_t>(s), move);
  };
  extend_all({.point = base_.points[layer]});
  for_each_move(layer, extend_all);
  keep_undominated();
  keep_promising();
  level_begin_ = level_end;
  states_.insert(states_.end(), fresh_.begin(), fresh_.end());
  try_states(depth);
  return !fresh_.empty();
}

/// Every plan costs the lower bound, plus its moves' reduced costs, plus the price of what error it
/// leaves unspent.
void Search::extend(int32_t parent, const Move& move) {
  const State& state = states_[parent];
  State next{state.error + move.error, state.cost + move.cost, 0, parent, move.point};
  ++made_;
  const double reduced = base_.lower_bound + std::max(next.cost + base_.price * next.error, 0.0);
  if (reduced >= worth_keeping()) return;
  next.bound = reduced + reach_.cost(limit_ - base_.error - next.error);
  if (next.bound < worth_keeping()) fresh_.push_back(next);
}

void Search::keep_undominated() {
  std::sort(fresh_.begin(), fresh_.end(), [](const State& a, const State& b) {
    if (a.error != b.error) return a.error < b.error;
    if (a.cost != b.cost) return a.cost < b.cost;
    return a.parent != b.parent ? a.parent < b.parent : a.point < b.point;
  });
  // Sums of the same numbers in another order are no states of their own.
  const double least_saving = incumbent_.cost * kStateShare;
  double cost = kInfinity;
  std::erase_if(fresh_, [&](const State& state) {
    if (state.cost >= cost - least_saving) return true;
    cost = state.cost;
    return false;
  });
}

void Search::keep_promising() {
  if (fresh_.size() <= width_) return;
  bounds_.clear();
  for (const State& state : fresh_) bounds_.push_back(state.bound);
  std::nth_element(bounds_.begin(), bounds_.begin() + width_, bounds_.end());
  const double least_dropped = bounds_[width_];
  dropped_bound_ = std::min(dropped_bound_, least_dropped);
  auto ties =
      static_cast<int64_t>(width_) - std::count_if(bounds_.begin(), bounds_.begin() + width_,
                                                   [&](double bound) { return bound < least_dropped; });
  std::erase_if(fresh_, [&](const State& state) {
    return state.bound > least_dropped || (state.bound == least_dropped && ties-- <= 0);
  });
}

/// Offers the most promising state, rounded, and the cheapest one that is within the limit as it is.
void Search::try_states(size_t depth) {
  const State* promising = nullptr;
  const State* cheapest = nullptr;
  const double room = limit_ - base_.error;
  for (size_t s = level_begin_; s < states_.size(); ++s) {
    const State& state = states_[s];
    if (promising == nullptr || state.bound < promising->bound) promising = &state;
    if (state.error <= room && (cheapest == nullptr || state.cost < cheapest->cost)) cheapest = &state;
  }
  if (promising == nullptr) return;
  std::vector<int32_t> points = points_of(*promising, depth);
  round_plan(fronts_, base_, limit_, to_come_, points);
  incumbent_.improve(fronts_, limit_, points);
  if (cheapest != nullptr && base_.cost + cheapest->cost < incumbent_.cost)
    incumbent_.improve(fronts_, limit_, points_of(*cheapest, depth));
}

std::vector<int32_t> Search::points_of(const State& state, size_t depth) const {
  std::vector<int32_t> points = base_.points;
  for (const State* s = &state; s->parent >= 0; s = &states_[s->parent])
    points[core_[depth--].layer] = s->point;
  return points;
}

double Search::least_bound() const {
  double least = kInfinity;
  for (size_t s = level_begin_; s < states_.size(); ++s) least = std::min(least, states_[s].bound);
  return least;
}

}  // namespace

double close_gap(const Fronts& fronts, const Relaxation& relaxation, double limit,
                 Incumbent& incumbent) {
  if (!std::isfinite(relaxation.lower_bound)) return 0;
  double bound = relaxation.lower_bound;
  int64_t made = 0;
  for (const size_t width : kWidths) {
    Search search(fronts, relaxation, limit, incumbent, width, made);
    bound = std::max(bound, search.run());
    if (bound >= incumbent.cost * (1 - kPlanShare) || search.enough()) break;
  }
  // Where error is dear, what rounding does to its sums shows in the cost.
  const double rounding = 1e-14 * relaxation.price * limit;
  return rounding > 1e-9 * incumbent.cost ? bound - rounding : bound;
}

}  // namespace lgreco::solver
