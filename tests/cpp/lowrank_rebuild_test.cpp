// Reconstruction: against the order of operations written out, at every level, and what is left over.
#include <limits>

#include "lowrank_cases.h"

namespace lgreco::kernels {
namespace {

/// sum_j p_j[row] * q_j[col], in the contract's order.
float entry(const Columns& p, const Columns& q, int rank, int64_t row, int64_t col) {
  float sum = 0.0F;
  for (int j = 0; j < rank; ++j) sum += p.column(j)[row] * q.column(j)[col];
  return sum;
}

/// One reconstruction: what goes in, what it has to give.
struct Rebuild {
  Rebuild(const Shape& of, int rank_of, DType out, DType rest, bool own_apart)
      : shape(of),
        rank(rank_of),
        dtype(out),
        rest_dtype(rest),
        numel(of.rows * of.cols),
        p(of.rows, rank_of, 0, 1),
        q(of.cols, rank_of, 0, 2),
        own_p(of.rows, rank_of, 0, own_apart ? 3 : 1),
        own_q(of.cols, rank_of, 0, own_apart ? 4 : 2),
        matrix(make_values(0, numel, 5)) {}

  Findings run(void* out, const float* values, void* rest, bool own_named) {
    return lowrank_reconstruct(shape.rows, shape.cols, rank, p.factor(), q.factor(), kScale, out, dtype,
                               values, own_named ? own_p.factor() : p.factor(),
                               own_named ? own_q.factor() : q.factor(), rest, rest_dtype);
  }
  void expect(const Buffer& out, const Buffer* rest) const {
    Buffer expected(numel * element_bytes(dtype)), left(numel * element_bytes(rest_dtype));
    for (int64_t i = 0; i < numel; ++i) {
      const int64_t row = i / shape.cols, col = i % shape.cols;
      store_element(expected.data(), dtype, i, entry(p, q, rank, row, col) * kScale);
      store_element(left.data(), rest_dtype, i, matrix[i] - entry(own_p, own_q, rank, row, col));
    }
    EXPECT_TRUE(out == expected && out.guards_hold());
    EXPECT_TRUE(rest == nullptr || (*rest == left && rest->guards_hold()));
  }

  static constexpr float kScale = 0.3F;
  Shape shape;
  int rank;
  DType dtype, rest_dtype;
  int64_t numel;
  Columns p, q, own_p, own_q;
  std::vector<float> matrix;
};

constexpr int kRanks[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 64, 70};

TEST(LowRankRebuild, EveryLevelKeepsTheOrder) {
  for (const Shape& shape : kShapes) {
    for (const int rank : kRanks) {
      const DType dtype = kAllDTypes[(rank + shape.rows) % 3];
      const DType rest_dtype = rank % 2 == 0 ? DType::kFloat32 : DType::kBFloat16;
      SCOPED_TRACE(concat(text_of(shape, rank), " ", name_of(dtype), " rest ", name_of(rest_dtype)));
      for (const CpuLevel level : available_levels()) {
        const WithLevel guard(level);
        for (const bool own_apart : {false, true}) {
          Rebuild rebuild(shape, rank, dtype, rest_dtype, own_apart);
          const size_t misalignment = rank % 5 * 4;
          Buffer out(rebuild.numel * element_bytes(dtype), misalignment);
          Buffer rest(rebuild.numel * element_bytes(rest_dtype), misalignment);
          EXPECT_FALSE(rebuild.run(out.data(), rebuild.matrix.data(), rest.data(), own_apart).nonfinite);
          rebuild.expect(out, &rest);
          EXPECT_FALSE(rebuild.run(out.data(), nullptr, nullptr, own_apart).nonfinite);
          rebuild.expect(out, nullptr);
        }
      }
      if (HasFailure()) return;
    }
  }
}

TEST(LowRankRebuild, LargeMatricesAreWrittenPastTheCachesAlike) {
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    Rebuild rebuild({1030, 1040}, 3, DType::kFloat32, DType::kFloat32, true);
    for (const size_t misalignment : {0, 4}) {
      Buffer out(rebuild.numel * 4, misalignment), rest(rebuild.numel * 4);
      EXPECT_FALSE(rebuild.run(out.data(), rebuild.matrix.data(), rest.data(), true).nonfinite);
      rebuild.expect(out, &rest);
    }
    rebuild.q.column(1)[1039] = std::numeric_limits<float>::infinity();
    Buffer out(rebuild.numel * 4);
    EXPECT_TRUE(rebuild.run(out.data(), nullptr, nullptr, true).nonfinite);
  }
}

TEST(LowRankRebuild, TheRestMayBeTheMatrix) {
  for (const Shape& shape : kShapes) {
    for (const CpuLevel level : available_levels()) {
      const WithLevel guard(level);
      for (const bool own_apart : {false, true}) {
        Rebuild rebuild(shape, 4, DType::kFloat32, DType::kFloat32, own_apart);
        Buffer out(rebuild.numel * 4), rest(rebuild.numel * 4);
        fill(rest, DType::kFloat32, rebuild.matrix);
        rebuild.run(out.data(), reinterpret_cast<const float*>(rest.data()), rest.data(), own_apart);
        rebuild.expect(out, &rest);
      }
    }
  }
}

TEST(LowRankRebuild, OwnReconstructionAndRestAreTheMatrix) {
  const Shape shape{256, 1024};
  Rebuild rebuild(shape, 8, DType::kFloat32, DType::kFloat32, false);
  Buffer out(rebuild.numel * 4), rest(rebuild.numel * 4);
  rebuild.run(out.data(), rebuild.matrix.data(), rest.data(), false);
  const auto rebuilt = read(out, DType::kFloat32), left = read(rest, DType::kFloat32);
  for (int64_t i = 0; i < rebuild.numel; ++i) {
    const float part = rebuilt[i] / Rebuild::kScale;
    ASSERT_NEAR(part + left[i], rebuild.matrix[i], 1e-6F * (std::fabs(part) + std::fabs(left[i])));
  }
}

TEST(LowRankRebuild, AProjectionLeavesNothingOfALowRankMatrix) {
  const Shape shape{90, 130};
  const int rank = 3;
  Rebuild rebuild(shape, rank, DType::kFloat32, DType::kFloat32, false);
  for (int64_t i = 0; i < rebuild.numel; ++i) {
    rebuild.matrix[i] = entry(rebuild.p, rebuild.q, rank, i / shape.cols, i % shape.cols);
  }
  Columns start(shape.cols, rank);
  for (int j = 0; j < rank; ++j) lowrank_seed_column(start.factor(), shape.cols, j, 1, 2);
  lowrank_project(rebuild.matrix.data(), shape.rows, shape.cols, rank, start.factor(),
                  rebuild.p.factor());
  lowrank_orthonormalise(rebuild.p.factor(), shape.rows, rank);
  lowrank_project_transposed(rebuild.matrix.data(), shape.rows, shape.cols, rank, rebuild.p.factor(),
                             rebuild.q.factor());
  std::vector<float> out(rebuild.numel), rest(rebuild.numel);
  rebuild.run(out.data(), rebuild.matrix.data(), rest.data(), false);
  for (const float left : rest) ASSERT_NEAR(left, 0.0F, 5e-5F);
}

TEST(LowRankRebuild, AnElementThatCannotBeDeliveredIsFound) {
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    for (const int64_t where : {0L, 63L, 70L, 128L}) {
      for (const bool overflows : {true, false}) {
        Rebuild rebuild({7, 129}, 2, DType::kFloat16, DType::kFloat32, false);
        if (overflows) {
          rebuild.p.column(1)[6] = 1.0F;
          rebuild.q.column(1)[where] = 1e6F;
        } else {
          rebuild.q.column(0)[where] = std::numeric_limits<float>::quiet_NaN();
        }
        Buffer out(rebuild.numel * 2), rest(rebuild.numel * 4);
        EXPECT_TRUE(rebuild.run(out.data(), rebuild.matrix.data(), rest.data(), false).nonfinite);
      }
    }
  }
}

}  // namespace
}  // namespace lgreco::kernels
