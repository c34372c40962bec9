// Per layer, the choices that can be part of a best plan: its Pareto front, and the front's convex hull.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "solver/problem.h"

namespace lgreco::solver {

struct Point {
  double error = 0;
  double cost = 0;
  int32_t choice = 0;
};

/// All layers' fronts behind one another. Within a layer errors rise and costs fall, both strictly; of
/// equal choices the one of lowest index is there.
struct Fronts {
  std::vector<Point> points;
  std::vector<int32_t> begins;  ///< [layers + 1]

  int32_t layers() const { return static_cast<int32_t>(begins.size()) - 1; }
  int32_t layer_of(int32_t point) const;
  std::span<const Point> of(int32_t layer) const {
    return {points.data() + begins[layer], points.data() + begins[layer + 1]};
  }
  int32_t best(int32_t layer) const { return begins[layer]; }              ///< point of least error
  int32_t cheapest(int32_t layer) const { return begins[layer + 1] - 1; }  ///< point of least cost

  double least_error() const;     ///< sum over the layers, in order
  double cheapest_error() const;  ///< sum over the layers' cheapest points, in order
};

/// A step along a layer's hull, from one point to the next one of more error and less cost.
struct Edge {
  double saving = 0;  ///< cost saved for each unit of error, finite; falls along a layer's hull
  double error = 0;   ///< what it adds, > 0
  int32_t from = 0;   ///< in Fronts::points
  int32_t to = 0;     ///< in Fronts::points
};

/// Throws ValueError for a negative value, a layer without a choice, or totals beyond float64.
Fronts pareto_fronts(const Problem& problem);

/// Drops points that leave no room for the other layers' least errors; at least one a layer stays.
void drop_unreachable(Fronts& fronts, double limit);

/// The edges of each layer's lower convex hull, layer by layer, from least error on.
std::vector<Edge> hull_edges(const Fronts& fronts);

/// The choices of one point a layer.
std::vector<int32_t> choices_at(const Fronts& fronts, std::span<const int32_t> points);

/// The plans of least error and of least cost.
std::vector<int32_t> best_points(const Fronts& fronts);
std::vector<int32_t> cheapest_points(const Fronts& fronts);

}  // namespace lgreco::solver
