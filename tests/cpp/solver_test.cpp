// The solvers against every plan there is, and on problems of the sizes and kinds that training meets.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "core/error.h"
#include "solver/dp.h"
#include "solver/exhaustive.h"
#include "solver/lagrangian.h"
#include "solver/pareto.h"
#include "solver/reach.h"
#include "solver/relaxation.h"

namespace lgreco::solver {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

/// Owns the tables that a Problem borrows.
struct Tables {
  int64_t layers = 0;
  int64_t choices = 0;
  std::vector<double> errors;
  std::vector<double> costs;
  std::vector<int32_t> reference;

  Problem within(double budget) const {
    return {layers,       choices, errors.data(),
            costs.data(), budget,  reference.empty() ? nullptr : reference.data()};
  }
};

enum class Kind { kWhole, kReal, kQuantized, kLowRank, kSubsetSum, kWideRange };
constexpr Kind kKinds[] = {Kind::kWhole,   Kind::kReal,      Kind::kQuantized,
                           Kind::kLowRank, Kind::kSubsetSum, Kind::kWideRange};

class Random {
 public:
  explicit Random(uint64_t seed) : bits_(seed) {}
  double uniform() { return static_cast<double>(bits_() >> 11) * 0x1p-53; }
  int64_t below(int64_t count) { return static_cast<int64_t>(uniform() * static_cast<double>(count)); }

 private:
  std::mt19937_64 bits_;
};

void fill_entry(Kind kind, Random& random, double numel, int64_t k, double& error, double& cost) {
  const auto step = static_cast<double>(k);
  switch (kind) {
    case Kind::kWhole:
      error = static_cast<double>(random.below(10));
      cost = static_cast<double>(random.below(10));
      break;
    case Kind::kReal:
      error = random.uniform();
      cost = random.uniform();
      break;
    case Kind::kQuantized:
      error = numel * std::pow(4.0, -step) * (0.5 + random.uniform());
      cost = std::ceil(numel * (step + 1) / 8);
      break;
    case Kind::kLowRank:
      error = numel / (1 + step) * (0.8 + 0.4 * random.uniform());
      cost = std::ceil(std::sqrt(numel) * (step + 1));
      break;
    case Kind::kSubsetSum:
      cost = static_cast<double>(random.below(1000));
      error = 1000 - cost;
      break;
    case Kind::kWideRange:
      error = std::pow(10.0, 60 * random.uniform() - 30);
      cost = std::pow(10.0, 60 * random.uniform() - 30);
      break;
  }
}

Tables tables_of(Kind kind, int64_t layers, int64_t choices, uint64_t seed) {
  Random random(seed);
  Tables tables{layers, choices, {}, {}, {}};
  for (int64_t i = 0; i < layers; ++i) {
    const double numel = std::round(std::pow(10.0, 2 + 6 * random.uniform()));
    for (int64_t k = 0; k < choices; ++k) {
      double error = 0, cost = 0;
      fill_entry(kind, random, numel, k, error, cost);
      if (k > 0 && random.uniform() < 0.1) (random.uniform() < 0.5 ? error : cost) = kNan;
      tables.errors.push_back(error);
      tables.costs.push_back(cost);
    }
  }
  return tables;
}

/// A budget between those of the best and of the cheapest plan, on a logarithmic scale for `share`.
double budget_of(const Tables& tables, double share) {
  const Fronts fronts = pareto_fronts(tables.within(0));
  const double least = fronts.least_error(), most = fronts.cheapest_error();
  if (least > 0 && most > 100 * least) return least * std::pow(most / least, share);
  return least + share * (most - least);
}

void expect_sound(const Tables& tables, double budget, const Solution& solution) {
  const Problem problem = tables.within(budget);
  double error = 0, cost = 0;
  ASSERT_EQ(solution.choices.size(), static_cast<size_t>(tables.layers));
  for (int64_t i = 0; i < tables.layers; ++i) {
    ASSERT_TRUE(problem.offered(i, solution.choices[i]));
    error += problem.error(i, solution.choices[i]);
    cost += problem.cost(i, solution.choices[i]);
  }
  EXPECT_EQ(solution.error, error);
  EXPECT_EQ(solution.cost, cost);
  EXPECT_LE(error, budget * (1 + 1e-12));
  EXPECT_LE(solution.lower_bound, solution.cost);
  EXPECT_GE(solution.gap, 0);
}

class SmallProblems : public testing::TestWithParam<Kind> {};

TEST_P(SmallProblems, LagrangianIsBestOrSaysHowFarItMayBe) {
  int proven = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const Tables tables = tables_of(GetParam(), 1 + seed % 6, 1 + seed / 6 % 6, seed);
    for (const double share : {0.0, 0.1, 0.5, 0.9}) {
      const double budget = budget_of(tables, share);
      const Solution best = solve_exhaustive(tables.within(budget));
      const Solution found = solve_lagrangian(tables.within(budget));
      expect_sound(tables, budget, found);
      EXPECT_GE(found.cost, best.cost * (1 - 1e-12)) << "seed " << seed << " share " << share;
      EXPECT_LE(found.lower_bound, best.cost * (1 + 1e-9)) << "seed " << seed << " share " << share;
      if (found.gap == 0) {
        ++proven;
        EXPECT_LE(found.cost, best.cost * (1 + 1e-9)) << "seed " << seed << " share " << share;
      }
    }
  }
  EXPECT_GE(proven, 1190) << "of 1200 problems";
}

TEST_P(SmallProblems, DpIsWithinOneCellALayerOfBest) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const Tables tables = tables_of(GetParam(), 1 + seed % 6, 1 + seed / 6 % 6, seed);
    const double least = pareto_fronts(tables.within(0)).least_error();
    for (const double share : {0.0, 0.1, 0.5, 0.9}) {
      const double budget = budget_of(tables, share);
      const Solution found = solve_dp(tables.within(budget));
      expect_sound(tables, budget, found);
      const double cells = static_cast<double>(tables.layers) / kErrorCells;
      const Solution best = solve_exhaustive(tables.within(budget));
      const Solution smaller = solve_exhaustive(tables.within(budget - cells * (budget - least)));
      EXPECT_GE(found.cost, best.cost * (1 - 1e-12)) << "seed " << seed << " share " << share;
      EXPECT_LE(found.cost, smaller.cost * (1 + 1e-12)) << "seed " << seed << " share " << share;
      EXPECT_LE(found.lower_bound, best.cost * (1 + 1e-9)) << "seed " << seed << " share " << share;
    }
  }
}

TEST_P(SmallProblems, FrontsKeepWhatIsUndominated) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const Tables tables = tables_of(GetParam(), 3, 1 + static_cast<int64_t>(seed) * 3, seed);
    const Problem problem = tables.within(0);
    const Fronts fronts = pareto_fronts(problem);
    for (int32_t i = 0; i < fronts.layers(); ++i) {
      std::vector<int32_t> expected;
      for (int32_t k = 0; k < tables.choices; ++k) {
        bool dominated = !problem.offered(i, k);
        for (int32_t j = 0; j < tables.choices && !dominated; ++j) {
          if (j == k || !problem.offered(i, j)) continue;
          const bool as_good =
              problem.error(i, j) <= problem.error(i, k) && problem.cost(i, j) <= problem.cost(i, k);
          const bool equal =
              problem.error(i, j) == problem.error(i, k) && problem.cost(i, j) == problem.cost(i, k);
          dominated = as_good && (!equal || j < k);
        }
        if (!dominated) expected.push_back(k);
      }
      std::vector<int32_t> found;
      double error = -1;
      for (const Point& point : fronts.of(i)) {
        EXPECT_GT(point.error, error);
        error = point.error;
        found.push_back(point.choice);
      }
      std::sort(found.begin(), found.end());
      EXPECT_EQ(found, expected);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, SmallProblems, testing::ValuesIn(kKinds));

class LargeProblems : public testing::TestWithParam<Kind> {};

TEST_P(LargeProblems, TenThousandLayersHaveASmallGap) {
  const Tables tables = tables_of(GetParam(), 10'000, 32, 1);
  for (const double share : {0.1, 0.5, 0.9}) {
    const double budget = budget_of(tables, share);
    const Solution found = solve_lagrangian(tables.within(budget));
    expect_sound(tables, budget, found);
    EXPECT_LE(found.gap, 1e-3) << "share " << share;
    EXPECT_EQ(found.choices, solve_lagrangian(tables.within(budget)).choices);
  }
}

TEST_P(LargeProblems, RelaxationBoundsWhatLayersToComeCanDo) {
  const Tables tables = tables_of(GetParam(), 40, 8, 3);
  const double budget = budget_of(tables, 0.5);
  Fronts fronts = pareto_fronts(tables.within(budget));
  const Relaxation relaxation = relax(fronts, tables.within(budget).limit());
  Reach reach(relaxation, std::vector<uint8_t>(40, 1));
  EXPECT_EQ(reach.cost(0), 0);
  double before = 0;
  for (double left = relaxation.error / 64; left < relaxation.error * 64; left *= 2) {
    EXPECT_GE(reach.cost(left), before) << "more error left costs no less";
    EXPECT_LE(reach.cost(left), relaxation.price * left * (1 + 1e-12)) << "it may stay unspent";
    before = reach.cost(left);
  }
  EXPECT_EQ(reach.cost(-2 * relaxation.error), std::numeric_limits<double>::infinity());
  for (int32_t i = 0; i < 40; ++i) reach.remove(i);
  EXPECT_EQ(reach.steps(), 0);
  EXPECT_EQ(reach.cost(1), relaxation.price);
  EXPECT_EQ(reach.cost(-1), std::numeric_limits<double>::infinity());
}

INSTANTIATE_TEST_SUITE_P(Kinds, LargeProblems,
                         testing::Values(Kind::kReal, Kind::kQuantized, Kind::kLowRank,
                                         Kind::kSubsetSum));

TEST(Solver, FiftyEqualLayersAtTheReferenceChoiceStayFeasible) {
  Tables tables{50, 5, {}, {}, std::vector<int32_t>(50, 2)};
  double budget = 0;
  for (int i = 0; i < 50; ++i) {
    tables.errors.insert(tables.errors.end(), {0.013, 0.1, 0.3, 0.7, 1.9});
    tables.costs.insert(tables.costs.end(), {16, 8, 4, 3, 1});
  }
  for (int i = 0; i < 50; ++i) budget += 0.3;
  for (const double total : {budget, 50 * 0.3}) {
    for (const auto& solver : {solve_lagrangian, solve_dp}) {
      const Solution found = solver(tables.within(total));
      expect_sound(tables, total, found);
      EXPECT_LE(found.cost, 50 * 4);
    }
  }
}

TEST(Solver, ThousandsOfEqualLayersHaveAllTheirStepsAtOnePrice) {
  constexpr int64_t kLayers = 10'000;
  Tables tables{kLayers, 3, {}, {}, {}};
  for (int64_t i = 0; i < kLayers; ++i) {
    tables.errors.insert(tables.errors.end(), {1, 4, 16});
    tables.costs.insert(tables.costs.end(), {9, 3, 1});
  }
  for (const int64_t moved : {int64_t{0}, int64_t{1}, int64_t{77}, kLayers / 2, kLayers}) {
    const auto budget = static_cast<double>(kLayers + 3 * moved);
    const Solution found = solve_lagrangian(tables.within(budget));
    expect_sound(tables, budget, found);
    EXPECT_EQ(found.cost, static_cast<double>(9 * kLayers - 6 * moved));
    EXPECT_EQ(found.gap, 0);
  }
}

TEST(Solver, ADominatedReferenceIsStillABound) {
  Tables tables{2, 3, {1, 2, 3, 1, 2, 3}, {5, 1, 9, 5, 1, 9}, {2, 2}};
  EXPECT_EQ(solve_lagrangian(tables.within(6)).choices, (std::vector<int32_t>{1, 1}));
  EXPECT_EQ(solve_dp(tables.within(6)).choices, (std::vector<int32_t>{1, 1}));
}

TEST(Solver, OfEqualChoicesTheLowestIndexIsTaken) {
  const Tables tables{2, 4, {2, 1, 1, 2, 2, 1, 1, 2}, {3, 5, 5, 3, 3, 5, 5, 3}, {}};
  for (const auto& solver : {solve_lagrangian, solve_dp, solve_exhaustive}) {
    EXPECT_EQ(solver(tables.within(2)).choices, (std::vector<int32_t>{1, 1}));
    EXPECT_EQ(solver(tables.within(4)).choices, (std::vector<int32_t>{0, 0}));
  }
}

TEST(Solver, PricesThatOverflowStillGiveAPlan) {
  const Tables tables{2, 2, {0, 5e-324, 0, 1e-300}, {1e300, 0, 1e300, 1}, {}};
  const Solution found = solve_lagrangian(tables.within(5e-324));
  expect_sound(tables, 5e-324, found);
  EXPECT_EQ(found.choices, (std::vector<int32_t>{1, 0}));
}

TEST(Solver, ProblemsThatAreNoneAreRefused) {
  const Tables tables{2, 2, {1, 2, 1, 2}, {2, 1, 2, 1}, {}};
  EXPECT_THROW(solve_lagrangian(tables.within(-1)), ValueError);
  EXPECT_THROW(solve_lagrangian(tables.within(kNan)), ValueError);
  EXPECT_THROW(solve_lagrangian(tables.within(1.9)), ValueError);
  EXPECT_THROW(solve_lagrangian({}), ValueError);
  const Tables negative{1, 2, {1, -2}, {2, 1}, {}};
  EXPECT_THROW(solve_lagrangian(negative.within(3)), ValueError);
  const Tables beyond{2, 1, {1.7e308, 1.7e308}, {1, 1}, {}};
  EXPECT_THROW(solve_lagrangian(beyond.within(1)), ValueError);
  const Tables many{30, 4, std::vector<double>(120, 1), std::vector<double>(120, 1), {}};
  EXPECT_THROW(solve_exhaustive(many.within(100)), ValueError);
}

}  // namespace
}  // namespace lgreco::solver
