// The exchange of two nodes of two, ranks as threads: one mean for all, and a step dropped by all or by
// none.
#include <gtest/gtest.h>

#include <limits>

#include "engine/hierarchical_exchange.h"
#include "exchange_world.h"

namespace lgreco::engine::testing {
namespace {

constexpr int kNodes = 2, kPerNode = 2, kRanks = kNodes * kPerNode;
const std::vector<int32_t> kCarriers{0, 1, 0, 1, 1, 0};

std::shared_ptr<const Plan> rail_plan(const codecs::Choice& choice, int place) {
  const auto all = plan_of(choice, kNodes);
  std::vector<int32_t> owners;
  for (const int32_t carrier : kCarriers) owners.push_back(carrier == place ? kDealt : kElsewhere);
  return std::make_shared<const Plan>(all->layers(), all->choices(), kNodes, Masks{},
                                      std::vector<bool>{}, owners);
}

struct TwoNodes {
  explicit TwoNodes(const codecs::Choice& choice, bool disorder = true) {
    ExchangeOptions options;
    options.chunk_bytes = 2048;
    options.window_bytes = 6144;
    options.timeout = std::chrono::minutes(1);
    for (int i = 0; i < kNodes; ++i) nodes.push_back(std::make_unique<Network>(kPerNode, disorder));
    for (int i = 0; i < kPerNode; ++i) rails.push_back(std::make_unique<Network>(kNodes, disorder));
    for (int rank = 0; rank < kRanks; ++rank) {
      const int node = rank / kPerNode, place = rank % kPerNode;
      plans.push_back(rail_plan(choice, place));
      const Hierarchy hierarchy{
          {node * kPerNode, node * kPerNode + 1}, {place, place + kPerNode}, kCarriers};
      ranks.push_back(std::make_unique<HierarchicalExchange>(
          nodes[node]->transport(place), rails[place]->transport(node), hierarchy, options,
          std::vector<at::Tensor>{}, plans.back()));
    }
  }
  std::vector<Gradient> step(int rank, int number, const Buckets& buckets, const Change& change = {}) {
    return step_of(*ranks[rank], plans[rank], rank, number, buckets, change);
  }

  std::vector<std::unique_ptr<Network>> nodes, rails;  // outlive the exchanges
  std::vector<std::shared_ptr<const Plan>> plans;      // by rank
  std::vector<std::unique_ptr<HierarchicalExchange>> ranks;
};

std::vector<std::vector<Gradient>> run(TwoNodes& world, const Buckets& buckets, int steps) {
  std::vector<std::vector<std::vector<Gradient>>> runs(kRanks);
  const auto errors = on_each_rank(kRanks, [&](int rank) {
    for (int step = 0; step < steps; ++step) runs[rank].push_back(world.step(rank, step, buckets));
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "");
  for (const auto& other : runs) EXPECT_EQ(other, runs[0]);
  return runs[0];
}

TEST(HierarchicalExchange, DenseDeliversTheMeanOfAllRanks) {
  TwoNodes world(kDense);
  const auto steps = run(world, kThreeBuckets, 2);
  for (int step = 0; step < 2; ++step) {
    for (int32_t layer = 0; layer < static_cast<int32_t>(kNumels.size()); ++layer) {
      Gradient sum(kNumels[layer]);
      for (int rank = 0; rank < kRanks; ++rank) {
        const Gradient mine = gradient_of(rank, step, layer);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += mine[i];
      }
      for (size_t i = 0; i < sum.size(); ++i) ASSERT_NEAR(steps[step][layer][i], sum[i] / kRanks, 1e-6F);
    }
  }
}

TEST(HierarchicalExchange, NeitherNetworkNorBucketsChangeABit) {
  for (const codecs::Choice& choice : {kFourBits, kLowRank}) {
    TwoNodes calm(choice, false), wild(choice), dense(kDense);
    const auto expected = run(calm, kOneBucket, 4);
    EXPECT_EQ(expected, run(wild, kThreeBuckets, 4));
    EXPECT_NE(expected, run(dense, kThreeBuckets, 4));
  }
}

TEST(HierarchicalExchange, AnInfinityOfOneRailDropsTheStepOnBoth) {
  for (const int32_t poisoned :
       {5, 3, 0}) {  // carried by either place, in the first and the last bucket
    TwoNodes plain(kFourBits), world(kFourBits);
    const auto expected = run(plain, kThreeBuckets, 2);
    const auto errors = on_each_rank(kRanks, [&](int rank) {
      EXPECT_EQ(world.step(rank, 0, kThreeBuckets), expected[0]);
      const auto spoilt = world.step(rank, 7, kThreeBuckets, [&](int32_t layer, Gradient& gradient) {
        if (rank == 1 && layer == poisoned) gradient[17] = std::numeric_limits<float>::infinity();
      });
      for (const int32_t layer : {1, 0}) {  // of the last bucket
        for (const float value : spoilt[layer]) ASSERT_TRUE(std::isinf(value));
      }
      EXPECT_EQ(world.step(rank, 1, kThreeBuckets), expected[1]);
      world.ranks[rank]->settle();
      EXPECT_EQ(world.ranks[rank]->committed_steps(), 2U);
    });
    for (const std::string& error : errors) EXPECT_EQ(error, "");
  }
}

TEST(HierarchicalExchange, WhoDoesNotCarryALayerKeepsNothingOfIt) {
  const auto mine = rail_plan(kFourBits, 0), all = plan_of(kFourBits, kNodes);
  EXPECT_EQ(mine->wire_bytes(1), 0.0);
  EXPECT_EQ(mine->wire_bytes(5), all->wire_bytes(5));
  EXPECT_LT(mine->residual_numel(), all->residual_numel());
  EXPECT_EQ(mine->fingerprint(), all->fingerprint());
}

}  // namespace
}  // namespace lgreco::engine::testing
