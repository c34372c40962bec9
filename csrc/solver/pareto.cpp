// Sorting, dominance and hull of each row of choices.
#include "solver/pareto.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"

namespace lgreco::solver {
namespace {

/// Appends a point of no less error than the front's, unless one of them is as cheap.
void append(std::vector<Point>& front, size_t begin, const Point& point) {
  if (front.size() > begin) {
    if (point.cost >= front.back().cost) return;
    if (point.error == front.back().error) front.pop_back();
  }
  front.push_back(point);
}

/// The front of one row. A family's choices are sorted already, up or down, so runs are merged, less
/// what they dominate among themselves; a row without order is ranked, which needs no branches.
class FrontOfRow {
 public:
  const std::vector<Point>& operator()(const std::vector<Point>& row) {
    fronts_.clear();
    if (row.size() <= kMostRanked && runs_in(row) > 2 + row.size() / 8) {
      rank(row);
    } else {
      split(row);
      while (ends_.size() > 1) merge_pairs();
    }
    return fronts_;
  }

 private:
  static constexpr size_t kMostRanked = 64;

  /// Where the run ends that begins at `begin`: errors rise, or all fall.
  static size_t end_of_run(const std::vector<Point>& row, size_t begin, bool& falls) {
    size_t end = begin + 1;
    falls = end < row.size() && row[end].error < row[begin].error;
    while (end < row.size() && (row[end].error < row[end - 1].error) == falls) ++end;
    return end;
  }

  static size_t runs_in(const std::vector<Point>& row) {
    size_t turns = 0;
    for (size_t i = 2; i < row.size(); ++i)
      turns += (row[i].error < row[i - 1].error) != (row[i - 1].error < row[i - 2].error) ? 1 : 0;
    return 1 + turns / 2;
  }

  void rank(const std::vector<Point>& row) {
    double errors[kMostRanked];
    int64_t ranks[kMostRanked] = {};
    size_t order[kMostRanked];
    const size_t size = row.size();
    for (size_t i = 0; i < size; ++i) errors[i] = row[i].error;
    for (size_t i = 1; i < size; ++i) {
      const double error = errors[i];
      int64_t below = 0;
      for (size_t j = 0; j < i; ++j) {
        const int64_t is_below = errors[j] <= error ? 1 : 0;
        below += is_below;
        ranks[j] += 1 - is_below;
      }
      ranks[i] = below;
    }
    for (size_t i = 0; i < size; ++i) order[ranks[i]] = i;
    for (size_t i = 0; i < size; ++i) append(fronts_, 0, row[order[i]]);
  }

  /// Cuts the row into runs and makes each a front.
  void split(const std::vector<Point>& row) {
    ends_.clear();
    for (size_t begin = 0, end = 0; begin < row.size(); begin = end) {
      bool falls = false;
      end = end_of_run(row, begin, falls);
      const size_t first = fronts_.size();
      for (size_t i = begin; i < end; ++i) append(fronts_, first, row[falls ? begin + end - 1 - i : i]);
      ends_.push_back(fronts_.size());
    }
  }

  void merge_pairs() {
    merged_.clear();
    size_t begin = 0, runs = 0;
    for (size_t i = 0; i < ends_.size(); i += 2) {
      const size_t middle = ends_[i], end = ends_[std::min(i + 1, ends_.size() - 1)];
      const size_t first = merged_.size();
      size_t a = begin, b = middle;
      while (a < middle || b < end) {
        const bool takes_b = a == middle || (b < end && fronts_[b].error < fronts_[a].error);
        append(merged_, first, fronts_[takes_b ? b++ : a++]);
      }
      begin = end;
      ends_[runs++] = merged_.size();
    }
    ends_.resize(runs);
    fronts_.swap(merged_);
  }

  std::vector<Point> fronts_, merged_;
  std::vector<size_t> ends_;
};

void check_row(const Problem& problem, int64_t layer) {
  for (int64_t k = 0; k < problem.choices; ++k) {
    require(!(problem.error(layer, k) < 0), problem.error_name, "s must not be negative, got ",
            problem.error(layer, k), " for choice ", k, " of layer ", layer);
    require(!(problem.cost(layer, k) < 0), problem.cost_name, "s must not be negative, got ",
            problem.cost(layer, k), " for choice ", k, " of layer ", layer);
  }
}

/// The offered choices of a row.
void gather(const Problem& problem, int64_t layer, std::vector<Point>& row) {
  const double* errors = problem.errors + layer * problem.choices;
  const double* costs = problem.costs + layer * problem.choices;
  row.clear();
  bool negative = false;
  for (int64_t k = 0; k < problem.choices; ++k) {
    negative |= errors[k] < 0 || costs[k] < 0;
    // Of two finite numbers that are not negative neither is above the greatest; NaN compares false.
    if (errors[k] <= std::numeric_limits<double>::max() &&
        costs[k] <= std::numeric_limits<double>::max())
      row.push_back({errors[k], costs[k], static_cast<int32_t>(k)});
  }
  if (negative) check_row(problem, layer);
  require(!row.empty(), "layer ", layer,
          " (counted from 0) offers no choice: each has a NaN or infinite ", problem.error_name, " or ",
          problem.cost_name);
}

}  // namespace

int32_t Fronts::layer_of(int32_t point) const {
  return static_cast<int32_t>(std::upper_bound(begins.begin(), begins.end(), point) - begins.begin()) -
         1;
}

double Fronts::least_error() const {
  double sum = 0;
  for (int32_t i = 0; i < layers(); ++i) sum += points[best(i)].error;
  return sum;
}

double Fronts::cheapest_error() const {
  double sum = 0;
  for (int32_t i = 0; i < layers(); ++i) sum += points[cheapest(i)].error;
  return sum;
}

Fronts pareto_fronts(const Problem& problem) {
  Fronts fronts;
  fronts.begins.reserve(problem.layers + 1);
  fronts.points.reserve(problem.layers * problem.choices);
  fronts.begins.push_back(0);
  std::vector<Point> row;
  FrontOfRow front_of;
  double greatest_error = 0, greatest_cost = 0;
  for (int64_t i = 0; i < problem.layers; ++i) {
    gather(problem, i, row);
    const std::vector<Point>& front = front_of(row);
    fronts.points.insert(fronts.points.end(), front.begin(), front.end());
    greatest_error += fronts.points.back().error;
    greatest_cost += fronts.points[fronts.begins.back()].cost;
    fronts.begins.push_back(static_cast<int32_t>(fronts.points.size()));
  }
  require(std::isfinite(greatest_error) && std::isfinite(greatest_cost),
          "the sums over layers must be finite in float64, got a total ", problem.error_name,
          " of up to ", greatest_error, " and a total ", problem.cost_name, " of up to ", greatest_cost);
  return fronts;
}

void drop_unreachable(Fronts& fronts, double limit) {
  // The last term is what rounding may have taken off the room.
  const double room = limit - fronts.least_error() + 1e-11 * limit;
  int32_t kept = 0, begin = 0;
  for (int32_t i = 0; i < fronts.layers(); ++i) {
    const int32_t end = fronts.begins[i + 1];
    const double most = fronts.points[begin].error + room;
    for (int32_t p = begin; p < end && (p == begin || fronts.points[p].error <= most); ++p)
      fronts.points[kept++] = fronts.points[p];
    begin = end;
    fronts.begins[i + 1] = kept;
  }
  fronts.points.resize(kept);
}

std::vector<Edge> hull_edges(const Fronts& fronts) {
  std::vector<Edge> edges;
  edges.reserve(fronts.points.size());
  for (int32_t i = 0; i < fronts.layers(); ++i) {
    const size_t first = edges.size();
    for (int32_t p = fronts.begins[i] + 1; p < fronts.begins[i + 1]; ++p) {
      const Point& to = fronts.points[p];
      while (true) {
        const int32_t f = edges.size() > first ? edges.back().to : fronts.begins[i];
        const Point& from = fronts.points[f];
        const double error = to.error - from.error;
        // Two neighbours in float64 differ, so error > 0; the quotient may be too great.
        const double saving =
            std::min((from.cost - to.cost) / error, std::numeric_limits<double>::max());
        if (edges.size() == first || saving < edges.back().saving) {
          edges.push_back({saving, error, f, p});
          break;
        }
        edges.pop_back();
      }
    }
  }
  return edges;
}

std::vector<int32_t> choices_at(const Fronts& fronts, std::span<const int32_t> points) {
  std::vector<int32_t> choices(points.size());
  for (size_t i = 0; i < points.size(); ++i) choices[i] = fronts.points[points[i]].choice;
  return choices;
}

std::vector<int32_t> best_points(const Fronts& fronts) {
  return {fronts.begins.begin(), fronts.begins.end() - 1};
}

std::vector<int32_t> cheapest_points(const Fronts& fronts) {
  std::vector<int32_t> points(fronts.begins.begin() + 1, fronts.begins.end());
  for (int32_t& point : points) --point;
  return points;
}

}  // namespace lgreco::solver
