// The CUDA kernels, run on the host, against the CPU kernels: the same bits for every run of a batch.
#include "batch_exchange.h"

#include <string>

#include "quantize_cases.h"

namespace lgreco::kernels {
namespace {

Exchange::Settings settings_for(uint32_t seed) {
  return {.dtype = kAllDTypes[seed % 3],
          .residual_dtype = seed / 3 % 2 == 0 ? DType::kFloat32 : DType::kBFloat16,
          .with_residual = seed % 7 != 6,
          .scale = seed % 5 == 0 ? 1024.0F : 1.0F,
          .committed = seed / 2 % 2,
          .own_apart = seed % 4 != 1,
          .seed = seed};
}

class BatchKernels : public ::testing::Test {
#ifdef __SANITIZE_THREAD__
  void SetUp() override {
    GTEST_SKIP() << "ThreadSanitizer does not follow fibers, and there is one thread";
  }
#endif
};

TEST_F(BatchKernels, QuantizeMatchesTheCpuKernels) {
  uint32_t seed = 0;
  for (const int block : {32, 64, 96, 128, 256, 512, 800, 1024, 2048, 4096}) {
    for (int bits = 1; bits <= 8; ++bits) {
      // Each width and block with each grid, either rounding and either type of scales; all combinations
      // would take long.
      for (const unsigned variant : {seed / 3 % 6, seed / 3 % 6 + 7, seed / 3 % 6 + 2}) {
        const QuantizeSpec spec = variant_of(bits, block, variant);
        SCOPED_TRACE(text_of(spec) + " seed " + std::to_string(++seed));
        const std::vector<int32_t> sizes = {block + 1, 31, 33, 0, 2 * block, 1, block - 1};
        Exchange(QuantizeTwins(spec), sizes, settings_for(seed)).run();
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST_F(BatchKernels, QuantizeMatchesTheCpuKernelsForEveryType) {
  const QuantizeTwins twins({.bits = 4, .block_numel = 512, .stochastic = true});
  for (uint32_t seed = 0; seed < 42; ++seed) {
    SCOPED_TRACE(seed);
    Exchange(twins, {1500, 31, 77, 512, 9}, settings_for(seed)).run();
  }
}

TEST_F(BatchKernels, DenseMatchesTheCpuKernels) {
  for (const DType wire : kAllDTypes) {
    const DenseTwins twins(wire);
    for (uint32_t seed = 0; seed < 42; ++seed) {
      SCOPED_TRACE(concat(name_of(wire), " seed ", seed));
      Exchange(twins, {1500, 31, 77, 0, 512, 9, 8}, settings_for(seed)).run();
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST_F(BatchKernels, AnInfOrNanFlagsTheStep) {
  for (const int block : {32, 256, 512, 4096}) {
    for (unsigned variant = 0; variant < kVariants; ++variant) {
      Exchange::Settings settings =
          settings_for(30);  // fp32: NaNs of both sides have the same bits here
      settings.broken = true;
      const QuantizeTwins twins(variant_of(4, block, variant));
      Exchange exchange(twins, {700, 31, 33, 600}, settings);
      exchange.run();
      EXPECT_TRUE(exchange.flagged());
    }
  }
}

TEST_F(BatchKernels, NumberBlocksFindsTheRunOfEachBlock) {
  std::vector<BatchRun> runs(4);
  runs[0].numel = 65;
  runs[1].numel = 0;
  runs[2].numel = 64;
  runs[3].numel = 1;
  EXPECT_EQ(number_blocks(runs, 64), (std::vector<uint32_t>{0, 0, 2, 3}));
  EXPECT_EQ(runs[2].batch_block, 2U);
  EXPECT_EQ(runs[3].batch_block, 3U);
  EXPECT_THROW(number_blocks(runs, 48), ValueError);
  runs[0].wire_offset = 2;
  EXPECT_THROW(number_blocks(runs, 64), ValueError);
}

TEST_F(BatchKernels, OctetsReadAndWriteEveryTypeAtEveryPlace) {
  const auto values = make_values(0, 40, 3);
  for (const DType dtype : kAllDTypes) {
    for (int first = 0; first < 9; ++first) {
      for (int count = 0; count <= kOctet; ++count) {
        Buffer in(40 * element_bytes(dtype)), out(40 * element_bytes(dtype)),
            expected(40 * element_bytes(dtype));
        fill(in, dtype, values);
        float octet[kOctet];
        load_octet(in.data(), dtype, first, count, octet);
        for (int e = 0; e < count; ++e) {
          EXPECT_EQ(octet[e], load_element(in.data(), dtype, first + e));
          store_element(expected.data(), dtype, first + e, 1.7F * octet[e]);
        }
        for (int e = count; e < kOctet; ++e) EXPECT_EQ(octet[e], 0.0F);
        for (float& value : octet) value *= 1.7F;
        store_octet(out.data(), dtype, first, count, octet);
        EXPECT_TRUE(out == expected);
        for (int e = 0; e < count; ++e) EXPECT_EQ(octet[e], load_element(out.data(), dtype, first + e));
      }
    }
  }
}

TEST_F(BatchKernels, AStepIsCommittedOnceUnlessItIsFlagged) {
  DeviceTransaction transaction;
  const auto settle = [&](uint32_t begins) {
    launch(1, 1, [&] { settle_kernel(&transaction, begins); });
  };
  const auto state = [&] { return std::vector<uint32_t>{transaction.committed, transaction.step}; };
  settle(1);
  EXPECT_EQ(state(), (std::vector<uint32_t>{0, 0}));
  settle(1);
  EXPECT_EQ(state(), (std::vector<uint32_t>{1, 1}));
  flag(&transaction);
  settle(1);
  EXPECT_EQ(state(), (std::vector<uint32_t>{1, 1}));
  EXPECT_EQ(transaction.flagged, 0U);
  launch(1, 1, [&] { discard_kernel(&transaction); });
  settle(1);
  EXPECT_EQ(state(), (std::vector<uint32_t>{1, 1}));
  settle(0);
  EXPECT_EQ(state(), (std::vector<uint32_t>{0, 2}));
  settle(0);
  launch(1, 1, [&] { discard_kernel(&transaction); });  // nothing is pending: nothing to drop
  settle(1);
  EXPECT_EQ(state(), (std::vector<uint32_t>{0, 2}));
}

TEST_F(BatchKernels, AFlaggedStepDeliversInf) {
  std::vector<uint16_t> bucket(1000, 7);
  DeviceTransaction transaction;
  const auto poison = [&] {
    launch(2, 64, [&] { poison_kernel<uint16_t>(&transaction, bucket.data(), 999, 0x7C00); });
  };
  poison();
  EXPECT_EQ(bucket, std::vector<uint16_t>(1000, 7));
  transaction.flagged = 1;
  poison();
  EXPECT_EQ(std::count(bucket.begin(), bucket.end(), 0x7C00), 999);
  EXPECT_EQ(bucket.back(), 7);
}

}  // namespace
}  // namespace lgreco::kernels
