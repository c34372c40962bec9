// Piecewise linear and convex to either side, so a binary search among the sums finds the cost.
#include "solver/reach.h"

#include <algorithm>
#include <limits>

namespace lgreco::solver {

Reach::Reach(const Relaxation& relaxation, const std::vector<uint8_t>& movable) {
  spend_.steps = relaxation.spend.steps;
  give_.steps = relaxation.give.steps;
  // Error may also stay unspent, at the price; none can be given back beyond the last step.
  spend_.last_rate = relaxation.spend.more ? spend_.steps.back().rate : relaxation.price;
  give_.last_rate =
      relaxation.give.more ? give_.steps.back().rate : std::numeric_limits<double>::infinity();
  for (Side* side : {&spend_, &give_}) {
    std::erase_if(side->steps, [&](const Step& step) { return movable[step.layer] == 0; });
    side->sum();
  }
}

void Reach::remove(int32_t layer) {
  for (Side* side : {&spend_, &give_}) {
    std::erase_if(side->steps, [&](const Step& step) { return step.layer == layer; });
    side->sum();
  }
}

double Reach::cost(double left) const { return left >= 0 ? spend_.cost(left) : give_.cost(-left); }

void Reach::Side::sum() {
  errors.resize(steps.size() + 1);
  costs.resize(steps.size() + 1);
  double error = 0, cost = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    errors[i] = error;
    costs[i] = cost;
    error += steps[i].error;
    cost += steps[i].error * steps[i].rate;
  }
  errors[steps.size()] = error;
  costs[steps.size()] = cost;
}

double Reach::Side::cost(double error) const {
  const size_t i = std::upper_bound(errors.begin() + 1, errors.end(), error) - errors.begin() - 1;
  const double rate = i < steps.size() ? steps[i].rate : last_rate;
  const double beyond = error - errors[i];
  return beyond > 0 ? costs[i] + rate * beyond : costs[i];
}

}  // namespace lgreco::solver
