// What the layers that are still to come can do at best: spend or give back error, each at its rate
// and up to its capacity. A lower bound, from the linear relaxation of those layers.
#pragma once

#include <cstdint>
#include <vector>

#include "solver/relaxation.h"

namespace lgreco::solver {

class Reach {
 public:
  /// `movable`, [layers]: which layers are to come; others stay where they are.
  Reach(const Relaxation& relaxation, const std::vector<uint8_t>& movable);

  /// A layer is no longer to come.
  void remove(int32_t layer);

  /// Least cost above the lower bound, with `left` error to spend or leave, or to be given back where
  /// it is negative; infinity where that much cannot be given back.
  double cost(double left) const;

  int64_t steps() const { return static_cast<int64_t>(spend_.steps.size() + give_.steps.size()); }

 private:
  struct Side {
    std::vector<Step> steps;
    std::vector<double> errors;  ///< [i]: of the steps before i
    std::vector<double> costs;   ///< likewise
    double last_rate = 0;        ///< beyond the steps

    void sum();
    double cost(double error) const;
  };
  Side spend_, give_;
};

}  // namespace lgreco::solver
