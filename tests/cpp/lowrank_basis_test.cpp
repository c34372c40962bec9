// Orthonormalisation, reconstruction and seeds: the same bits at every level, and what they promise.
#include <limits>

#include "lowrank_cases.h"

namespace lgreco::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Columns of norm one or zero, orthogonal to each other. Returns how many are not zero.
int expect_orthonormal(const Columns& columns, int64_t length, int rank) {
  int nonzero = 0;
  for (int a = 0; a < rank; ++a) {
    const double norm = product_of(columns.column(a), columns.column(a), length);
    if (norm != 0.0) {
      EXPECT_NEAR(norm, 1.0, 1e-5) << "column " << a;
      ++nonzero;
    }
    for (int b = 0; b < a; ++b) {
      EXPECT_NEAR(product_of(columns.column(a), columns.column(b), length), 0.0, 1e-5)
          << "columns " << a << " and " << b;
    }
  }
  return nonzero;
}

/// Orthonormalises at every level. Returns the result, which is the same bits at each.
Columns orthonormalised(const Columns& columns, int64_t length, int rank) {
  Columns expected = columns;
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    Columns own = columns;
    lowrank_orthonormalise(own.factor(), length, rank);
    EXPECT_TRUE(own.gaps_hold());
    if (level == CpuLevel::kBaseline) expected = own;
    EXPECT_TRUE(own == expected) << name_of(level);
  }
  return expected;
}

constexpr int kRanks[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 64, 80};

TEST(LowRankBasis, ColumnsBecomeOrthonormalAndSpanWhatTheyDid) {
  for (const int64_t length : {1, 2, 5, 16, 33, 64, 513, 1024, 3000}) {
    for (const int rank : kRanks) {
      SCOPED_TRACE(concat("length ", length, " rank ", rank));
      const Columns before(length, rank, 0, 7);
      const Columns after = orthonormalised(before, length, rank);
      EXPECT_EQ(expect_orthonormal(after, length, rank), std::min<int64_t>(rank, length));
      for (int j = 0; j < rank; ++j) {
        std::vector<double> left(before.column(j), before.column(j) + length);
        for (int k = 0; k <= j; ++k) {
          const double share = product_of(before.column(j), after.column(k), length);
          for (int64_t i = 0; i < length; ++i) left[i] -= share * after.column(k)[i];
        }
        double rest = 0;
        for (const double value : left) rest += value * value;
        EXPECT_LE(std::sqrt(rest),
                  2e-5 * std::sqrt(product_of(before.column(j), before.column(j), length)));
      }
      if (HasFailure()) return;
    }
  }
}

TEST(LowRankBasis, MagnitudesDoNotMatter) {
  for (const float factor : {1e-36F, 1e-30F, 1e-3F, 1e30F, 1e37F}) {
    Columns columns(700, 9, 0, 2);
    for (int j = 0; j < 9; j += 2) {
      for (int64_t i = 0; i < 700; ++i) columns.column(j)[i] *= factor;
    }
    EXPECT_EQ(expect_orthonormal(orthonormalised(columns, 700, 9), 700, 9), 9) << factor;
  }
}

TEST(LowRankBasis, DependentColumnsBecomeZero) {
  Columns columns(300, 12, 0, 4);
  columns.set(0, std::vector<float>(300, -1.3F));
  columns.set(1, std::vector<float>(300, 0.7F));  // the column before it
  columns.set(3, std::vector<float>(300, 0.0F));  // zero
  for (int64_t i = 0; i < 300; ++i) {
    columns.column(5)[i] = 2 * columns.column(2)[i] - columns.column(4)[i];  // in the panel
    columns.column(10)[i] = columns.column(2)[i] + columns.column(8)[i];     // across panels
  }
  const Columns after = orthonormalised(columns, 300, 12);
  EXPECT_EQ(expect_orthonormal(after, 300, 12), 8);
  for (const int j : {1, 3, 5, 10}) EXPECT_EQ(after.get(j), std::vector<float>(300, 0.0F)) << j;
}

TEST(LowRankBasis, NearlyDependentColumnsStayOrthogonal) {
  for (const float distance : {1e-2F, 1e-3F, 1e-4F, 1e-5F, 3e-6F, 1e-6F, 1e-7F}) {
    Columns columns(2000, 20, 0, 4);
    for (int j = 1; j < 20; ++j) {
      for (int64_t i = 0; i < 2000; ++i) {
        columns.column(j)[i] = columns.column(0)[i] + distance * columns.column(j)[i];
      }
    }
    const int nonzero = expect_orthonormal(orthonormalised(columns, 2000, 20), 2000, 20);
    if (distance >= 1e-5F) {
      EXPECT_EQ(nonzero, 20) << distance;
    } else if (distance <= 1e-6F) {
      EXPECT_EQ(nonzero, 1) << distance;
    }
  }
}

TEST(LowRankBasis, WhatIsNotANumberOrDenormalBecomesZero) {
  for (const float bad : {kInf, -kInf, kNan, 0.0F}) {
    Columns columns(77, 3, 0, 4);
    if (bad == 0.0F) {
      columns.set(1, make_values(3, 77, 1));  // denormal
    } else {
      columns.column(1)[76] = bad;
    }
    const Columns after = orthonormalised(columns, 77, 3);
    EXPECT_EQ(after.get(1), std::vector<float>(77, 0.0F));
    EXPECT_EQ(expect_orthonormal(after, 77, 3), 2);
  }
}

TEST(LowRankBasis, LongColumnsAreSummedExactlyEnough) {
  const int64_t length = 1000003;
  Columns columns(length, 3, 5, 4);
  EXPECT_EQ(expect_orthonormal(orthonormalised(columns, length, 3), length, 3), 3);
}

TEST(LowRankBasis, NoColumnsOrElements) {
  Columns columns(0, 3);
  lowrank_orthonormalise(columns.factor(), 0, 3);
  lowrank_orthonormalise(columns.factor(), 0, 0);
  EXPECT_TRUE(columns.gaps_hold());
}

TEST(LowRankBasis, SeedsAreNormalAndOfTheirOwn) {
  Columns columns(20000, 3);
  for (int j = 0; j < 3; ++j) lowrank_seed_column(columns.factor(), 20000, j, 11, 5);
  EXPECT_TRUE(columns.gaps_hold());
  for (int a = 0; a < 3; ++a) {
    const std::vector<float> ones(20000, 1.0F);
    EXPECT_NEAR(product_of(columns.column(a), ones.data(), 20000) / 20000, 0.0, 0.03);
    for (int b = 0; b <= a; ++b) {
      EXPECT_NEAR(product_of(columns.column(a), columns.column(b), 20000) / 20000, a == b, 0.03);
    }
  }
  Columns other(20000, 3), shorter(100, 3);
  lowrank_seed_column(other.factor(), 20000, 1, 11, 6);
  EXPECT_NEAR(product_of(columns.column(1), other.column(1), 20000) / 20000, 0.0, 0.03);
  lowrank_seed_column(other.factor(), 20000, 1, 12, 5);
  EXPECT_NEAR(product_of(columns.column(1), other.column(1), 20000) / 20000, 0.0, 0.03);
  lowrank_seed_column(shorter.factor(), 100, 1, 11, 5);
  EXPECT_TRUE(std::equal(shorter.column(1), shorter.column(1) + 100, columns.column(1)));
}

}  // namespace
}  // namespace lgreco::kernels
