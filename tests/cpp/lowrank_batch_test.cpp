// The CUDA kernels of the low-rank codec, run on the host, against the CPU kernels: the same bits.
#include "cuda_emulation.h"

#include "lowrank_cases.h"

#include "kernels/lowrank_basis_device.h"
#include "kernels/lowrank_device.h"

namespace lgreco::kernels {
namespace {

void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  emulation::Machine::instance().launch(blocks, threads, kernel);
}

class LowRankBatchKernels : public ::testing::Test {
#ifdef __SANITIZE_THREAD__
  void SetUp() override {
    GTEST_SKIP() << "ThreadSanitizer does not follow fibers, and there is one thread";
  }
#endif
};

/// Factors of several lengths and ranks in one arena.
struct FactorArena {
  void add(int length, int rank, int kind) {
    const int stride = length + static_cast<int>(factors.size()) % 5;
    factors.push_back({.offset = static_cast<int64_t>(values.size()),
                       .stride = stride,
                       .length = length,
                       .rank = rank,
                       .first_seeded = rank / 2,
                       .layer = static_cast<uint32_t>(factors.size() + 3)});
    const auto more = make_values(kind, static_cast<int64_t>(stride) * rank, 9 + values.size() % 100);
    values.insert(values.end(), more.begin(), more.end());
  }
  Factor factor(size_t i) { return {values.data() + factors[i].offset, factors[i].stride}; }
  uint32_t count() const { return static_cast<uint32_t>(factors.size()); }

  std::vector<LowRankFactor> factors;
  std::vector<float> values;
};

FactorArena some_factors() {
  FactorArena arena;
  for (const int length : {1, 5, 33, 128, 129, 700, 5000}) {
    for (const int rank : {1, 2, 3, 7, 8, 9}) {
      arena.add(length, rank, length == 33 && rank % 2 == 0 ? 4 : 0);
    }
  }
  arena.add(200, 83, 0);
  arena.add(40, 50, 5);
  arena.add(0, 3, 0);
  arena.add(90, 4, 1);  // zeros
  arena.add(90, 4, 2);  // one column four times
  arena.add(90, 4, 3);  // denormal
  for (const int i : {0, 89}) {
    arena.add(90, 4, 0);
    arena.values[arena.factors.back().offset + arena.factors.back().stride + i] =
        i == 0 ? NAN : INFINITY;
  }
  return arena;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_F(LowRankBatchKernels, OrthonormaliseMatchesTheCpuKernel) {
  FactorArena arena = some_factors(), expected = arena;
  launch(arena.count(), kBasisThreads,
         [&] { lowrank_orthonormalise_kernel(arena.factors.data(), arena.values.data()); });
  for (size_t i = 0; i < arena.factors.size(); ++i) {
    const LowRankFactor& factor = arena.factors[i];
    lowrank_orthonormalise(expected.factor(i), factor.length, factor.rank);
    for (int j = 0; j < factor.rank; ++j) {
      ASSERT_EQ(memcmp(column_of(arena.factor(i), j), column_of(expected.factor(i), j),
                       sizeof(float) * factor.length),
                0)
          << "length " << factor.length << " rank " << factor.rank << " column " << j;
    }
  }
  EXPECT_TRUE(same_bits(arena.values, expected.values));  // what lies between the columns
}

TEST_F(LowRankBatchKernels, SeedsMatchTheCpuKernel) {
  FactorArena arena = some_factors(), expected = arena;
  launch(arena.count(), kTileThreads,
         [&] { lowrank_seed_kernel(arena.factors.data(), 0x123456789ABCULL, arena.values.data()); });
  for (size_t i = 0; i < arena.factors.size(); ++i) {
    const LowRankFactor& factor = arena.factors[i];
    for (int j = factor.first_seeded; j < factor.rank; ++j) {
      lowrank_seed_column(expected.factor(i), factor.length, j, 0x123456789ABCULL, factor.layer);
    }
  }
  EXPECT_TRUE(same_bits(arena.values, expected.values));
}

struct Settings {
  DType dtype, residual_dtype;
  bool with_residual;
  bool own_apart;
  uint32_t committed;
  int misalignment;  ///< elements
};

/// Matrices of a bucket, everything that the kernels of both sides read and write.
class Bucket {
 public:
  explicit Bucket(const Settings& settings) : settings_(settings) {
    for (const Shape& shape : {Shape{1, 1}, {3, 5}, {70, 129}, {64, 128}, {131, 8}, {2, 300}, {0, 4}}) {
      add(shape, static_cast<int>(runs.size()) * 3 % 10);
    }
    tile_runs = number_tiles(runs);
    batch = {runs.data(), tile_runs.data(), static_cast<uint32_t>(runs.size()),
             static_cast<uint32_t>(tile_runs.size())};
    factors = make_values(0, factors_numel_, 3);
    gradient.resize(numel_ * element_bytes(settings.dtype));
    const auto values = make_values(0, numel_, 5);
    for (int64_t i = 0; i < numel_; ++i) store_element(gradient.data(), settings.dtype, i, values[i]);
    for (auto& arena : arenas) arena.assign(residual_numel_ * 4, 0x33);
    const auto owed = make_values(0, residual_numel_, 6);
    for (int64_t i = 0; i < residual_numel_; ++i) {
      store_element(arenas[settings.committed].data(), settings.residual_dtype, i, owed[i]);
    }
    workspace.assign(numel_, -7.0F);
    transaction.committed = settings.committed;
  }

  BatchFeedback feedback() {
    if (!settings_.with_residual) return {};
    return {{arenas[0].data(), arenas[1].data()}, settings_.residual_dtype, &scale};
  }
  /// What the CPU kernel is told about a run.
  Feedback feedback_of_run(const LowRankRun& run) {
    if (!settings_.with_residual || run.residual_offset < 0) return {};
    const int64_t bytes = run.residual_offset * element_bytes(settings_.residual_dtype);
    return {arenas[settings_.committed].data() + bytes, arenas[1 - settings_.committed].data() + bytes,
            settings_.residual_dtype, scale, 1.0F / scale};
  }
  uint8_t* gradient_of(const LowRankRun& run) {
    return gradient.data() + run.gradient_offset * element_bytes(settings_.dtype);
  }
  /// An element of the run's gradient.
  void set(size_t run, int64_t i, float value) {
    store_element(gradient_of(runs[run]), settings_.dtype, i, value);
  }

  std::vector<LowRankRun> runs;
  std::vector<uint32_t> tile_runs;
  LowRankBatch batch;
  std::vector<uint8_t> gradient;
  std::vector<uint8_t> arenas[2];
  std::vector<float> factors, workspace;
  uint32_t wire[4] = {};
  float scale = 8.0F;
  DeviceTransaction transaction;

 private:
  void add(const Shape& shape, int rank) {
    LowRankRun run;
    const int64_t numel = shape.rows * shape.cols;
    run.gradient_offset = run.matrix_offset = numel_ + settings_.misalignment;
    numel_ += numel + settings_.misalignment;
    if (runs.size() % 4 != 3) {
      run.residual_offset = residual_numel_;
      residual_numel_ += (numel + 15) / 16 * 16;
    }
    run.bit = runs.size() % 3 == 2 ? -1 : static_cast<int64_t>(runs.size()) * 11 + 5;
    run.rows = static_cast<int32_t>(shape.rows);
    run.cols = static_cast<int32_t>(shape.cols);
    run.rank = rank;
    run.p_stride = run.own_p_stride = shape.rows + settings_.misalignment;
    run.q_stride = run.own_q_stride = (shape.cols + 3) / 4 * 4;
    run.p_offset = take_factor(run.p_stride * rank);
    run.q_offset = take_factor(run.q_stride * rank);
    run.own_p_offset = settings_.own_apart ? take_factor(run.p_stride * rank) : run.p_offset;
    run.own_q_offset = settings_.own_apart ? take_factor(run.q_stride * rank) : run.q_offset;
    runs.push_back(run);
  }
  int64_t take_factor(int64_t numel) {
    const int64_t begin = factors_numel_;
    factors_numel_ += (numel + 3) / 4 * 4;
    return begin;
  }

  Settings settings_;
  int64_t numel_ = 0, residual_numel_ = 0, factors_numel_ = 0;
};

template <typename Body>
void for_each_bucket(const Body& body) {
  for (uint32_t seed = 0; seed < 24; ++seed) {
    SCOPED_TRACE(seed);
    body(Settings{.dtype = kAllDTypes[seed % 3],
                  .residual_dtype = seed / 3 % 2 == 0 ? DType::kFloat32 : DType::kBFloat16,
                  .with_residual = seed % 5 != 4,
                  .own_apart = seed / 2 % 2 == 0,
                  .committed = seed / 3 % 2,
                  .misalignment = seed % 4 == 3 ? 0 : static_cast<int>(seed % 4)});
  }
}

void gather(Bucket& bucket, DType dtype) {
  launch(bucket.batch.tile_count, kTileThreads, [&] {
    lowrank_gather_kernel(bucket.batch, bucket.gradient.data(), dtype, bucket.feedback(),
                          &bucket.transaction, bucket.workspace.data(),
                          reinterpret_cast<uint8_t*>(bucket.wire));
  });
}

TEST_F(LowRankBatchKernels, GatherMatchesTheCpuKernel) {
  for_each_bucket([](const Settings& settings) {
    Bucket bucket(settings), expected(settings);
    for (Bucket* one : {&bucket, &expected}) {
      for (int64_t i = 0; i < 64 * 128; ++i) one->set(3, i, 0.0F);
    }
    gather(bucket, settings.dtype);
    for (const LowRankRun& run : expected.runs) {
      const Findings findings =
          lowrank_gather(expected.gradient_of(run), settings.dtype, int64_t{run.rows} * run.cols,
                         expected.feedback_of_run(run), expected.workspace.data() + run.matrix_offset);
      if (run.bit >= 0) {
        const bool bit = (bucket.wire[run.bit / 32] >> (run.bit % 32) & 1U) != 0;
        EXPECT_EQ(bit, findings.nonzero);
      }
    }
    EXPECT_TRUE(same_bits(bucket.workspace, expected.workspace));
    EXPECT_EQ(bucket.transaction.flagged, 0U);
  });
}

TEST_F(LowRankBatchKernels, GatherFlagsAnInfOrNan) {
  const Settings settings{DType::kFloat32, DType::kFloat32, true, false, 0, 1};
  for (const float bad : {INFINITY, -INFINITY, NAN}) {
    for (const int64_t where : {0, 129 * 69 + 128}) {
      Bucket bucket(settings);
      bucket.set(2, where, bad);
      gather(bucket, settings.dtype);
      EXPECT_EQ(bucket.transaction.flagged, 1U);
    }
  }
}

void reconstruct(Bucket& bucket, DType dtype) {
  const Rebuilding rebuilding{bucket.batch,
                              bucket.factors.data(),
                              0.5F,
                              bucket.workspace.data(),
                              reinterpret_cast<const uint8_t*>(bucket.wire),
                              bucket.feedback()};
  launch(bucket.batch.tile_count, kTileThreads, [&] {
    lowrank_reconstruct_kernel(rebuilding, bucket.gradient.data(), dtype, &bucket.transaction);
  });
}

TEST_F(LowRankBatchKernels, ReconstructMatchesTheCpuKernel) {
  for_each_bucket([](const Settings& settings) {
    Bucket bucket(settings), expected(settings);
    for (Bucket* one : {&bucket, &expected}) gather(*one, settings.dtype);
    const int64_t dropped = bucket.runs[1].bit;
    bucket.wire[dropped / 32] &= ~(1U << dropped % 32);
    reconstruct(bucket, settings.dtype);
    for (const LowRankRun& run : expected.runs) {
      const Feedback feedback = expected.feedback_of_run(run);
      const int64_t numel = int64_t{run.rows} * run.cols;
      if (run.bit == dropped) {
        for (int64_t i = 0; i < numel; ++i) {
          store_element(expected.gradient_of(run), settings.dtype, i, 0.0F);
        }
        if (feedback.in != nullptr) {
          memcpy(feedback.out, feedback.in, numel * element_bytes(settings.residual_dtype));
        }
        continue;
      }
      float* const factors = expected.factors.data();
      lowrank_reconstruct(run.rows, run.cols, run.rank, {factors + run.p_offset, run.p_stride},
                          {factors + run.q_offset, run.q_stride}, 0.5F * feedback.scale,
                          expected.gradient_of(run), settings.dtype,
                          expected.workspace.data() + run.matrix_offset,
                          {factors + run.own_p_offset, run.own_p_stride},
                          {factors + run.own_q_offset, run.own_q_stride}, feedback.out, feedback.dtype);
    }
    EXPECT_EQ(bucket.gradient, expected.gradient);
    EXPECT_EQ(bucket.arenas[0], expected.arenas[0]);
    EXPECT_EQ(bucket.arenas[1], expected.arenas[1]);
    EXPECT_EQ(bucket.transaction.flagged, 0U);
  });
}

TEST_F(LowRankBatchKernels, ReconstructFlagsWhatCannotBeDelivered) {
  const Settings settings{DType::kFloat16, DType::kFloat32, true, false, 0, 1};
  Bucket bucket(settings);
  gather(bucket, settings.dtype);
  bucket.factors[bucket.runs[2].p_offset + 69] = 1e6F;
  bucket.factors[bucket.runs[2].q_offset + 128] = 1.0F;
  reconstruct(bucket, settings.dtype);
  EXPECT_EQ(bucket.transaction.flagged, 1U);
}

TEST_F(LowRankBatchKernels, NumberTilesFindsTheRunOfEachTile) {
  std::vector<LowRankRun> runs(3);
  runs[0].rows = 65;
  runs[0].cols = 129;
  runs[2].rows = runs[2].cols = 1;
  EXPECT_EQ(number_tiles(runs), (std::vector<uint32_t>{0, 0, 0, 0, 2}));
  EXPECT_EQ(runs[2].first_tile, 4U);
  runs[1].cols = -1;
  EXPECT_THROW(number_tiles(runs), ValueError);
}

}  // namespace
}  // namespace lgreco::kernels
