// The CUDA kernels of sparse blocks, run on the host, against the CPU kernels: the same bits for every
// run of a batch.
#include "batch_exchange.h"

#include "kernels/sparse_device.h"

namespace lgreco::kernels {
namespace {

struct SparseTwins final : Twins {
  explicit SparseTwins(const SparseSpec& given) : spec(given) {}
  int block_numel() const override { return spec.block_numel; }
  int64_t wire_bytes(int64_t numel) const override { return sparse_wire_bytes(spec, numel); }
  void encode(const Places& places, const void* gradient, DType dtype, const BatchFeedback& feedback,
              const DeviceTransaction& transaction, uint8_t* wire) const override {
    const SparseCoding coding = sparse_coding_of(spec, places.batch, feedback, &transaction, kSeed);
    with_team(spec.block_numel, [&]<typename Team>(Team) {
      launch(places.batch.block_count, Team::kThreads,
             [&] { sparse_encode_kernel<Team>(coding, gradient, dtype, wire); });
    });
  }
  void reduce(const Places& places, const BatchPayloads& payloads, const BatchFeedback& feedback,
              const DeviceTransaction& transaction, uint8_t* out) const override {
    const SparseCoding coding = sparse_coding_of(spec, places.batch, feedback, &transaction, kSeed);
    with_team(spec.block_numel, [&]<typename Team>(Team) {
      launch(places.batch.block_count, Team::kThreads,
             [&] { sparse_reduce_kernel<Team>(coding, payloads, kFactor, out); });
    });
  }
  void decode(const Places& places, const uint8_t* wire, void* out, DType dtype,
              const BatchFeedback& feedback, DeviceTransaction& transaction) const override {
    const SparseCoding coding = sparse_coding_of(spec, places.batch, feedback, &transaction, kSeed);
    with_team(spec.block_numel, [&]<typename Team>(Team) {
      launch(places.batch.block_count, Team::kThreads,
             [&] { sparse_decode_kernel<Team>(coding, wire, out, dtype, &transaction); });
    });
  }
  Findings encode_run(const void* gradient, DType dtype, int64_t numel, const Feedback& feedback,
                      const Noise& noise, uint8_t* wire) const override {
    return sparse_encode(spec, gradient, dtype, numel, feedback, noise, wire);
  }
  void reduce_run(const uint8_t* const* wires, int64_t numel, const Feedback& feedback,
                  const Noise& noise, uint8_t* out) const override {
    sparse_reduce(spec, wires, kRanks, kFactor, numel, feedback, noise, out);
  }
  Findings decode_run(const uint8_t* wire, int64_t numel, const Noise& noise, void* out,
                      DType dtype) const override {
    return sparse_decode(spec, wire, numel, noise, out, dtype);
  }

  SparseSpec spec;
};

class SparseBatch : public ::testing::Test {
#ifdef __SANITIZE_THREAD__
  void SetUp() override {
    GTEST_SKIP() << "ThreadSanitizer does not follow fibers, and there is one thread";
  }
#endif
};

Exchange::Settings settings_for(uint32_t seed) {
  return {.dtype = kAllDTypes[seed % 3],
          .residual_dtype = seed / 3 % 2 == 0 ? DType::kFloat32 : DType::kBFloat16,
          .with_residual = seed % 7 != 6,
          .scale = seed % 5 == 0 ? 1024.0F : 1.0F,
          .committed = seed / 2 % 2,
          .own_apart = seed % 4 != 1,
          .seed = seed};
}

std::string text_of(const SparseSpec& spec) {
  return concat(spec.random ? "randomk" : "topk", " density ", spec.density, " block ", spec.block_numel,
                " value bits ", spec.value_bits);
}

TEST_F(SparseBatch, MatchesTheCpuKernels) {
  uint32_t seed = 0;
  for (const int block : {32, 96, 512, 544, 4096}) {
    for (const double density : {1e-4, 0.02, 0.5}) {
      for (const bool random : {false, true}) {
        const int bits[] = {8, 32, 4, 16, 2, 3, 5, 6, 7};
        const SparseSpec spec{density, block, bits[seed % 9], random};
        SCOPED_TRACE(concat(text_of(spec), " seed ", ++seed));
        const std::vector<int32_t> sizes = {block + 1, 31, 33, 0, block, 1};
        Exchange(SparseTwins(spec), sizes, settings_for(seed)).run();
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST_F(SparseBatch, MatchesTheCpuKernelsForEveryType) {
  for (const bool random : {false, true}) {
    const SparseTwins twins({0.02, 512, 8, random});
    for (uint32_t seed = 0; seed < 42; seed += 2) {
      SCOPED_TRACE(seed);
      Exchange(twins, {1500, 31, 77, 512, 9}, settings_for(seed)).run();
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST_F(SparseBatch, MatchesTheCpuKernelsForLargeBlocks) {
  uint32_t seed = 0;
  for (const int block : {8192, 65536}) {
    for (const double density : {0.001, 0.5}) {
      for (const bool random : {false, true}) {
        const SparseSpec spec{density, block, seed % 2 == 0 ? 8 : 32, random};
        SCOPED_TRACE(concat(text_of(spec), " seed ", ++seed));
        Exchange(SparseTwins(spec), {block + 7}, settings_for(seed)).run();
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST_F(SparseBatch, AnInfOrNanFlagsTheStep) {
  for (const int block : {32, 512}) {
    for (const int bits : {4, 16, 32}) {
      for (const bool random : {false, true}) {
        Exchange::Settings settings = settings_for(30);  // fp32: NaNs of both sides have the same bits
        settings.broken = true;
        const SparseTwins twins({0.02, block, bits, random});
        Exchange exchange(twins, {700, 31, 33, 600}, settings);
        exchange.run();
        EXPECT_TRUE(exchange.flagged());
      }
    }
  }
}

}  // namespace
}  // namespace lgreco::kernels
