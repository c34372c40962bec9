// Warm starts on CUDA and layers' bits: the kernels' own code, run on the host.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda_emulation.h"
#include "kernels/lowrank.h"
#include "kernels/lowrank_warm_device.h"

namespace lgreco::kernels {
namespace {

constexpr int32_t kLength = 700;  // more than a block's threads
constexpr int64_t kStride = 704;

struct Arenas {
  std::vector<float> halves[2] = {std::vector<float>(3 * kStride, 1.0F),
                                  std::vector<float>(3 * kStride, 2.0F)};
  std::vector<float> memory = std::vector<float>(3 * kStride, -1.0F);
  DeviceTransaction transaction;
  std::vector<WarmColumn> columns;

  explicit Arenas(uint32_t committed) {
    transaction.committed = committed;
    transaction.step = 9;
    for (int32_t j = 0; j < 3; ++j) {
      columns.push_back(
          {j * kStride, j * kStride, kLength, j, /*layer=*/5, /*bit=*/j == 2 ? -1 : 40 + j});
    }
  }
  BatchFeedback feedback() {
    BatchFeedback arenas;
    for (int half = 0; half < 2; ++half) arenas.arenas[half] = halves[half].data();
    return arenas;
  }
};

TEST(LowRankWarm, LoadsWhatIsCommittedAndSeedsColumnsOfZeros) {
  for (const uint32_t committed : {0U, 1U}) {
    Arenas arenas(committed);
    std::vector<float>& source = arenas.halves[committed];
    std::fill_n(source.begin() + kStride, kLength, 0.0F);
    source[2 * kStride + kLength - 1] = 7.0F;
    emulation::Machine::instance().launch(3, kColumnThreads, [&] {
      warm_load_kernel(arenas.columns.data(), arenas.feedback(), &arenas.transaction, 11,
                       arenas.memory.data());
    });
    std::vector<float> seeded(kStride, -1.0F), scaled = source;
    for (const int column : {0, 2}) lowrank_scale_column({scaled.data(), kStride}, kLength, column);
    lowrank_seed_column({seeded.data() - kStride, kStride}, kLength, 1, 11 + 9, 5);
    for (int32_t i = 0; i < kLength; ++i) {
      EXPECT_EQ(arenas.memory[i], scaled[i]);
      EXPECT_EQ(arenas.memory[kStride + i], seeded[i]) << "as the CPU seeds it";
      EXPECT_EQ(arenas.memory[2 * kStride + i], scaled[2 * kStride + i]) << "as the CPU scales it";
    }
    EXPECT_EQ(arenas.memory[kLength], -1.0F) << "the rest of a stride is not touched";
  }
}

TEST(LowRankWarm, AColumnOfAnyScaleIsBroughtNearOneByAPowerOfTwo) {
  for (const float largest : {3.4e38F, 1.2e38F, 1e19F, 1.0F, 0.7F, 1e-20F, 1.2e-38F, 1e-39F}) {
    const std::vector<float> before = {0.5F * largest, -largest, 0.0F};
    std::vector<float> column = before;
    ASSERT_TRUE(lowrank_scale_column({column.data(), 3}, 3, 0));
    int exponent = 1;
    const float factor = column[1] / before[1];
    EXPECT_EQ(std::frexp(factor, &exponent), 0.5F);
    EXPECT_EQ(column[0], before[0] * factor);
    EXPECT_LT(std::fabs(column[1]), 4.0F);
    EXPECT_GE(std::fabs(column[1]), largest < 1.2e-38F ? 0.01F : 1.0F);
  }
  std::vector<float> zeros(3, 0.0F);
  EXPECT_FALSE(lowrank_scale_column({zeros.data(), 3}, 3, 0));
}

TEST(LowRankWarm, StoresWhatWasExchangedAndKeepsTheRest) {
  for (const uint32_t committed : {0U, 1U}) {
    Arenas arenas(committed);
    std::vector<uint32_t> bits(2, 0);
    bits[1] = 1U << 8;  // bit 40: column 0 has news, column 1 has none, column 2 was not exchanged
    emulation::Machine::instance().launch(3, kColumnThreads, [&] {
      warm_store_kernel(arenas.columns.data(), arenas.feedback(), &arenas.transaction,
                        arenas.memory.data(), reinterpret_cast<const uint8_t*>(bits.data()));
    });
    const std::vector<float>& shadow = arenas.halves[committed ^ 1U];
    const float kept = arenas.halves[committed][0];
    for (int32_t i = 0; i < kLength; ++i) {
      EXPECT_EQ(shadow[i], -1.0F);
      EXPECT_EQ(shadow[kStride + i], kept);
      EXPECT_EQ(shadow[2 * kStride + i], kept);
    }
  }
}

TEST(LowRankWarm, BitsFollowOtherBits) {
  std::vector<uint32_t> from{0x5U, 0U}, to{0xFFFFFFFFU, 0U};
  const std::vector<BitCopy> copies{{0, 33}, {1, 3}, {2, 0}, {40, 31}};
  emulation::Machine::instance().launch(1, 128, [&] {
    copy_bits_kernel(copies.data(), 4, reinterpret_cast<const uint8_t*>(from.data()), to.data());
  });
  EXPECT_EQ(to[0], 0xFFFFFFFFU & ~(1U << 3) & ~(1U << 31));
  EXPECT_EQ(to[1], 2U);
}

}  // namespace
}  // namespace lgreco::kernels
