// Gather and products: against double precision at every level, and what becomes of infs and NaNs.
#include <limits>

#include "lowrank_cases.h"

namespace lgreco::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(LowRankProducts, ProjectMatchesDoublePrecision) {
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    for (const Shape& shape : kShapes) {
      for (int rank = 1; rank <= kFusedRanks; ++rank) {
        SCOPED_TRACE(text_of(shape, rank) + " " + name_of(level));
        const auto matrix = make_values(rank == 3 ? 4 : 0, shape.rows * shape.cols, 3);
        Columns q(shape.cols, rank, 0, 1), p(shape.rows, rank);
        lowrank_project(matrix.data(), shape.rows, shape.cols, rank, q.factor(), p.factor());
        expect_product(matrix, shape, rank, q, p);
        EXPECT_TRUE(p.gaps_hold());
        if (HasFailure()) return;
      }
    }
  }
}

TEST(LowRankProducts, ProjectTransposedMatchesDoublePrecision) {
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    for (const Shape& shape : kShapes) {
      for (int rank = 1; rank <= kFusedRanks; ++rank) {
        SCOPED_TRACE(text_of(shape, rank) + " " + name_of(level));
        const auto matrix = make_values(0, shape.rows * shape.cols, 3);
        Columns p(shape.rows, rank, 0, 1), q(shape.cols, rank);
        lowrank_project_transposed(matrix.data(), shape.rows, shape.cols, rank, p.factor(), q.factor());
        expect_product(transposed(matrix, shape), {shape.cols, shape.rows}, rank, p, q);
        EXPECT_TRUE(q.gaps_hold());
        if (HasFailure()) return;
      }
    }
  }
}

TEST(LowRankProducts, WideMatricesAreReadBlockByBlock) {
  const Shape shape{5, 40000};  // rank 8 takes 16384 columns at a time
  const auto matrix = make_values(0, shape.rows * shape.cols, 3);
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    Columns q(shape.cols, 8, 0, 1), p(shape.rows, 8), turned(shape.cols, 8);
    lowrank_project(matrix.data(), shape.rows, shape.cols, 8, q.factor(), p.factor());
    expect_product(matrix, shape, 8, q, p);
    lowrank_project_transposed(matrix.data(), shape.rows, shape.cols, 8, p.factor(), turned.factor());
    expect_product(transposed(matrix, shape), {shape.cols, shape.rows}, 8, p, turned);
  }
}

TEST(LowRankProducts, NoElementsGiveZeros) {
  Columns q(7, 2, 0, 1), p(7, 2, 0, 2);
  lowrank_project(nullptr, 7, 0, 2, q.factor(), p.factor());
  lowrank_project_transposed(nullptr, 0, 7, 2, p.factor(), q.factor());
  for (int j = 0; j < 2; ++j) {
    EXPECT_EQ(p.get(j), std::vector<float>(7, 0.0F));
    EXPECT_EQ(q.get(j), std::vector<float>(7, 0.0F));
  }
}

TEST(LowRankProducts, AnInfOrNanReachesItsRowAlsoThroughZeros) {
  const Shape shape{9, 37};
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    for (int rank = 1; rank <= kFusedRanks; ++rank) {
      for (const float bad : {kInf, -kInf, kNan}) {
        for (const int64_t where : {0L, 17L, 36L, 4 * 37 + 33L, 8 * 37 + 36L}) {
          auto matrix = make_values(0, shape.rows * shape.cols, 1);
          matrix[where] = bad;
          const Columns zeros(shape.cols, rank, 1, 1);
          Columns q = zeros, p(shape.rows, rank), turned(shape.cols, rank);
          const Feedback feedback;
          std::vector<float> copy(matrix.size());
          const Findings findings =
              lowrank_gather_project(matrix.data(), DType::kFloat32, shape.rows, shape.cols, feedback,
                                     copy.data(), rank, q.factor(), p.factor());
          EXPECT_TRUE(findings.nonfinite && findings.nonzero);
          const Columns fused = p;
          lowrank_project(matrix.data(), shape.rows, shape.cols, rank, q.factor(), p.factor());
          Columns none(shape.rows, rank, 1, 1);
          lowrank_project_transposed(matrix.data(), shape.rows, shape.cols, rank, none.factor(),
                                     turned.factor());
          for (int j = 0; j < rank; ++j) {
            EXPECT_TRUE(std::isnan(p.column(j)[where / shape.cols]));
            EXPECT_TRUE(std::isnan(fused.column(j)[where / shape.cols]));
            EXPECT_TRUE(std::isnan(turned.column(j)[where % shape.cols]));
          }
        }
      }
    }
  }
}

/// Where the matrix lies.
enum class Place { kApart, kOverIn, kOverOut };

/// The memory of one gathering.
struct Gathering {
  Gathering(int kind, int64_t numel, DType dtype, bool with_residual, DType residual_dtype, Place place)
      : gradient(numel * element_bytes(dtype), 3),
        committed(numel * element_bytes(residual_dtype)),
        shadow(numel * element_bytes(residual_dtype)),
        apart(numel * 4) {
    fill(gradient, dtype, make_values(kind, numel, 5));
    fill(committed, residual_dtype, make_values(0, numel, 77));
    feedback.scale = 8.0F;
    feedback.inverse_scale = 0.125F;
    feedback.dtype = residual_dtype;
    if (with_residual) {
      feedback.in = committed.data();
      feedback.out = shadow.data();
    }
    Buffer& own = place == Place::kApart ? apart : place == Place::kOverIn ? committed : shadow;
    matrix = reinterpret_cast<float*>(own.data());
  }

  Buffer gradient, committed, shadow, apart;
  Feedback feedback;
  float* matrix;
};

template <typename Body>
void for_each_gathering(const Body& body) {
  for (const DType dtype : kAllDTypes) {
    for (const int residual : {0, 1, 2}) {
      const DType residual_dtype = residual == 2 ? DType::kBFloat16 : DType::kFloat32;
      for (const Place place : {Place::kApart, Place::kOverIn, Place::kOverOut}) {
        if (residual != 1 && place != Place::kApart) continue;
        SCOPED_TRACE(concat(name_of(dtype), " residual ", residual, " place ", static_cast<int>(place)));
        body(dtype, residual != 0, residual_dtype, place);
      }
    }
  }
}

TEST(LowRankProducts, GatherIsTheScaledGradientPlusResidual) {
  for_each_gathering([](DType dtype, bool with_residual, DType residual_dtype, Place place) {
    for (const int64_t numel : kSizes) {
      for (const CpuLevel level : available_levels()) {
        const WithLevel guard(level);
        Gathering memory(0, numel, dtype, with_residual, residual_dtype, place);
        const auto owed = read(memory.committed, residual_dtype);
        const Findings findings =
            lowrank_gather(memory.gradient.data(), dtype, numel, memory.feedback, memory.matrix);
        EXPECT_EQ(findings.nonzero, numel > 0);
        EXPECT_FALSE(findings.nonfinite);
        for (int64_t i = 0; i < numel; ++i) {
          float expected = load_element(memory.gradient.data(), dtype, i) * 0.125F;
          if (with_residual) expected += owed[i];
          ASSERT_EQ(memory.matrix[i], expected) << i << " of " << numel << " " << name_of(level);
        }
        EXPECT_TRUE(memory.apart.guards_hold() && memory.shadow.guards_hold() &&
                    memory.committed.guards_hold());
      }
    }
  });
}

TEST(LowRankProducts, GatherProjectIsGatherAndProject) {
  for_each_gathering([](DType dtype, bool with_residual, DType residual_dtype, Place place) {
    for (const Shape& shape : kShapes) {
      const int64_t numel = shape.rows * shape.cols;
      for (const CpuLevel level : available_levels()) {
        const WithLevel guard(level);
        for (const int rank : {1, 2, 4, 7}) {
          Gathering expected(0, numel, dtype, with_residual, residual_dtype, place);
          Gathering memory(0, numel, dtype, with_residual, residual_dtype, place);
          Columns q(shape.cols, rank, 0, 1), p(shape.rows, rank), separate(shape.rows, rank);
          lowrank_gather(expected.gradient.data(), dtype, numel, expected.feedback, expected.matrix);
          lowrank_project(expected.matrix, shape.rows, shape.cols, rank, q.factor(), separate.factor());
          const Findings findings =
              lowrank_gather_project(memory.gradient.data(), dtype, shape.rows, shape.cols,
                                     memory.feedback, memory.matrix, rank, q.factor(), p.factor());
          EXPECT_FALSE(findings.nonfinite);
          EXPECT_TRUE(findings.nonzero);
          EXPECT_TRUE(memory.apart == expected.apart && memory.committed == expected.committed &&
                      memory.shadow == expected.shadow);
          EXPECT_TRUE(p == separate) << text_of(shape, rank);
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  });
}

TEST(LowRankProducts, LargeMatricesAreWrittenPastTheCachesAlike) {
  const Shape shape{1030, 1040};
  const int64_t numel = shape.rows * shape.cols;
  const auto gradient = make_values(0, numel, 5), residual = make_values(0, numel, 6);
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    for (const int rank : {2, 7}) {
      const Feedback feedback{residual.data(), nullptr, DType::kFloat32, 8.0F, 0.125F};
      Columns q(shape.cols, rank, 0, 1), p(shape.rows, rank), cached_p(shape.rows, rank);
      Buffer aligned(numel * 4), cached(numel * 4, 4), flat(numel * 4);
      lowrank_gather_project(gradient.data(), DType::kFloat32, shape.rows, shape.cols, feedback,
                             reinterpret_cast<float*>(aligned.data()), rank, q.factor(), p.factor());
      lowrank_gather_project(gradient.data(), DType::kFloat32, shape.rows, shape.cols, feedback,
                             reinterpret_cast<float*>(cached.data()), rank, q.factor(),
                             cached_p.factor());
      lowrank_gather(gradient.data(), DType::kFloat32, numel, feedback,
                     reinterpret_cast<float*>(flat.data()));
      EXPECT_TRUE(aligned == cached && flat == cached && p == cached_p) << name_of(level);
      EXPECT_TRUE(aligned.guards_hold() && flat.guards_hold());
    }
  }
}

TEST(LowRankProducts, FindingsSeeOneElement) {
  const int64_t numel = 21 * 45;
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    for (const int64_t where : {0L, 700L, numel - 1}) {
      std::vector<float> gradient(numel, -0.0F), residual(numel, 1.0F), matrix(numel);
      const Feedback feedback{residual.data(), residual.data()};
      EXPECT_FALSE(
          lowrank_gather(gradient.data(), DType::kFloat32, numel, feedback, matrix.data()).nonzero);
      gradient[where] = 1e-45F;
      EXPECT_TRUE(
          lowrank_gather(gradient.data(), DType::kFloat32, numel, feedback, matrix.data()).nonzero);
      gradient[where] = 0.0F;
      residual[where] = kNan;
      const Findings findings =
          lowrank_gather(gradient.data(), DType::kFloat32, numel, feedback, matrix.data());
      EXPECT_TRUE(findings.nonfinite);
      EXPECT_FALSE(findings.nonzero);
    }
  }
}

}  // namespace
}  // namespace lgreco::kernels
