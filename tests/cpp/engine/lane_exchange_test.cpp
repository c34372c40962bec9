// The exchange on lanes between ranks that are threads: the same bits whatever the network does.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "exchange_world.h"

namespace lgreco::engine::testing {
namespace {

using Step = std::vector<Gradient>;  // averages by layer
using Averages = std::vector<Step>;

/// The steps of rank 0, after comparing every other rank's with them.
Averages run(World& world, const std::vector<Buckets>& buckets_by_step) {
  std::vector<Averages> runs(world.size);
  const auto errors = world.on_each_rank([&](int rank) {
    for (size_t step = 0; step < buckets_by_step.size(); ++step) {
      runs[rank].push_back(world.step(rank, static_cast<int>(step), buckets_by_step[step]));
    }
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "");
  for (const Averages& other : runs) EXPECT_EQ(other, runs[0]);
  return runs[0];
}

std::vector<Buckets> steps_of(const Buckets& buckets, int steps) {
  return std::vector<Buckets>(static_cast<size_t>(steps), buckets);
}

TEST(LaneExchange, DenseDeliversTheMean) {
  for (const int world_size : {2, 3, 4}) {
    World world(world_size, kDense);
    const Averages steps = run(world, steps_of(kThreeBuckets, 3));
    for (size_t step = 0; step < steps.size(); ++step) {
      for (int32_t layer = 0; layer < static_cast<int32_t>(kNumels.size()); ++layer) {
        Gradient sum(kNumels[layer]);
        for (int rank = 0; rank < world_size; ++rank) {
          const Gradient mine = gradient_of(rank, static_cast<int>(step), layer);
          for (size_t i = 0; i < sum.size(); ++i) sum[i] += mine[i];
        }
        for (size_t i = 0; i < sum.size(); ++i) {
          ASSERT_NEAR(steps[step][layer][i], sum[i] / static_cast<float>(world_size), 1e-6F);
        }
      }
    }
  }
}

class LossyExchange : public ::testing::TestWithParam<codecs::Choice> {};
INSTANTIATE_TEST_SUITE_P(Choices, LossyExchange, ::testing::Values(kFourBits, kLowRank, kAlternating),
                         [](const auto& choice) {
                           const auto found = choice.param.parameters.find("iterate");
                           return found == choice.param.parameters.end() ? "quantize" : found->second;
                         });

TEST_P(LossyExchange, NeitherNetworkNorChunksNorBucketsChangeABit) {
  World dense(3, kDense);
  World calm(3, GetParam(), {.disorder = false, .chunk_bytes = 1 << 20});
  World wild(3, GetParam());
  World rebuilt(3, GetParam());
  const Averages expected = run(calm, steps_of(kOneBucket, 6));
  EXPECT_NE(expected, run(dense, steps_of(kOneBucket, 6)));
  EXPECT_EQ(expected, run(wild, steps_of(kThreeBuckets, 6)));
  std::vector<Buckets> changing = steps_of(kOneBucket, 6);
  changing[1] = changing[2] = changing[4] = kThreeBuckets;
  EXPECT_EQ(expected, run(rebuilt, changing));
  EXPECT_EQ(wild.ranks[0]->stats().steps, 6);
}

TEST_P(LossyExchange, AnInfinityDropsTheStepEverywhere) {
  World plain(3, GetParam());
  World world(3, GetParam());
  const Averages expected = run(plain, steps_of(kThreeBuckets, 2));
  const auto errors = world.on_each_rank([&](int rank) {
    EXPECT_EQ(world.step(rank, 0, kThreeBuckets), expected[0]);
    const Step spoilt = world.step(rank, 7, kThreeBuckets, [&](int32_t layer, Gradient& gradient) {
      if (rank == 1 && layer == 3) gradient[17] = std::numeric_limits<float>::infinity();
    });
    for (const int32_t layer : {3, 1, 0}) {  // of the bucket that holds it, and of the later one
      for (const float value : spoilt[layer]) ASSERT_TRUE(std::isinf(value));
    }
    EXPECT_EQ(world.step(rank, 1, kThreeBuckets), expected[1]);
    EXPECT_EQ(world.ranks[rank]->stats().steps, 2);
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "");
}

TEST(LaneExchange, APlanMayChangeBetweenSteps) {
  World world(3, kDense);
  World compressed(3, kFourBits);
  const auto four_bits = plan_of(kFourBits, 3);
  run(world, steps_of(kThreeBuckets, 2));
  for (const auto& rank : world.ranks) rank->settle();
  world.plan = four_bits;
  for (const auto& rank : compressed.ranks) rank->set_steps(2, 2);  // dense leaves no residual
  EXPECT_EQ(run(world, steps_of(kThreeBuckets, 3)), run(compressed, steps_of(kThreeBuckets, 3)));
}

}  // namespace
}  // namespace lgreco::engine::testing
