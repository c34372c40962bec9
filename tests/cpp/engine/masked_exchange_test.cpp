// Masked layers between ranks that are threads: what is kept travels, and nothing else changes.
#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include <algorithm>
#include <map>

#include "exchange_world.h"

namespace lgreco::engine::testing {
namespace {

using Step = std::vector<Gradient>;  // averages by layer
using Kept = std::vector<std::vector<bool>>;

const Buckets kBuckets{{5, 4}, {3}, {2, 1, 0}};  // the second one keeps nothing

/// By layer; layer 3 keeps nothing, layers 1 and 4 everything.
Kept kept_of(uint32_t percent, uint32_t seed) {
  std::mt19937 random(seed);
  Kept kept;
  for (size_t layer = 0; layer < kNumels.size(); ++layer) {
    kept.emplace_back(static_cast<size_t>(kNumels[layer]), true);
    if (layer == 1 || layer == 4) continue;
    for (size_t i = 0; i < kept.back().size(); ++i) {
      kept.back()[i] = layer != 3 && random() % 100 < percent;
    }
  }
  return kept;
}

Masks masks_of(const Kept& kept) {
  Masks masks;
  for (const std::vector<bool>& layer : kept) {
    std::vector<uint8_t> bits((layer.size() + 7) / 8 + 1);
    for (size_t i = 0; i < layer.size(); ++i) {
      bits[i / 8] = static_cast<uint8_t>(bits[i / 8] | (layer[i] ? 1 : 0) << (i % 8));
    }
    auto mask = std::make_shared<const Mask>(bits.data(), static_cast<int64_t>(layer.size()));
    masks.push_back(mask->kept() < mask->numel() ? mask : nullptr);
  }
  return masks;
}

/// One step of every rank; rank 0's averages, after comparing the others' with them.
Step step_of(World& world, int number, const Buckets& buckets) {
  std::vector<Step> steps(world.size);
  const auto errors =
      world.on_each_rank([&](int rank) { steps[rank] = world.step(rank, number, buckets); });
  for (const std::string& error : errors) EXPECT_EQ(error, "");
  for (const Step& other : steps) EXPECT_EQ(other, steps[0]);
  return steps[0];
}

/// What all ranks together send in a step by the chunks of its buckets, headers included.
int64_t bytes_of(const Plan& plan, const Buckets& buckets, int64_t chunk_bytes, uint64_t step) {
  int64_t total = 0;
  for (const auto& layers : buckets) {
    const Layout layout(plan, layers, 0, chunk_bytes);
    for (const Chunk& chunk : layout.chunks()) {
      if (takes_part(chunk.turn, step)) total += 2 * (plan.world_size() - 1) * chunk.bytes;
    }
  }
  return total;
}

TEST(MaskedExchange, DenseValuesAreThoseOfMaskingAfterADenseExchange) {
  World dense(4, kDense), masked(4, kDense);
  for (int step = 0; step < 4; ++step) {
    const Kept kept = kept_of(10 + 25 * static_cast<uint32_t>(step), static_cast<uint32_t>(step) / 2);
    masked.plan = plan_of(kDense, 4, masks_of(kept));
    Step expected = step_of(dense, step, kBuckets);
    for (size_t layer = 0; layer < expected.size(); ++layer) {
      for (size_t i = 0; i < expected[layer].size(); ++i) {
        if (!kept[layer][i]) expected[layer][i] = 0.0F;
      }
    }
    EXPECT_EQ(step_of(masked, step, kBuckets), expected);
  }
}

class MaskedLossyExchange : public ::testing::TestWithParam<codecs::Choice> {};
INSTANTIATE_TEST_SUITE_P(Choices, MaskedLossyExchange,
                         ::testing::Values(kFourBits, kLowRank, kAlternating), [](const auto& choice) {
                           const auto found = choice.param.parameters.find("iterate");
                           return found == choice.param.parameters.end() ? "quantize" : found->second;
                         });

TEST_P(MaskedLossyExchange, NeitherNetworkNorChunksNorBucketsChangeABit) {
  World calm(3, GetParam(), {.disorder = false, .chunk_bytes = 1 << 20});
  World wild(3, GetParam());
  int64_t moved = 0;
  for (int step = 0; step < 6; ++step) {
    if (step == 1 || step == 4) {
      calm.plan = wild.plan = plan_of(GetParam(), 3, masks_of(kept_of(40, static_cast<uint32_t>(step))));
    }
    const Step expected = step_of(calm, step, kOneBucket);
    EXPECT_EQ(step_of(wild, step, kBuckets), expected);
    moved += bytes_of(*wild.plan, kBuckets, 2048, static_cast<uint64_t>(step));
    int64_t sent = 0;
    for (const auto& rank : wild.ranks) {
      rank->settle();
      sent += rank->stats().wire_bytes;
    }
    EXPECT_EQ(sent, bytes_of(*wild.plan, kBuckets, 2048, static_cast<uint64_t>(step)));
    EXPECT_EQ(wild.network.moved_bytes(), moved);
  }
}

/// sender + world size * what this rank owes as an owner, of the whole layer.
std::vector<double> owed_by(LaneExchange& rank, const Plan& plan, int id, int32_t layer) {
  const Residuals& residuals = rank.residuals();
  const at::Tensor sender = residuals.of_layer(plan, layer);
  const auto [owner, offset] = residuals.of_owner(plan, layer, id);
  std::vector<double> run(static_cast<size_t>(sender.numel()));
  for (size_t i = 0; i < run.size(); ++i) run[i] = sender.const_data_ptr<float>()[i];
  for (int64_t i = 0; owner.defined() && i < owner.numel(); ++i) {
    run[offset + i] += plan.world_size() * static_cast<double>(owner.const_data_ptr<float>()[i]);
  }
  const Mask* mask = plan.planned()[layer].run_mask();
  if (mask == nullptr) return run;
  std::vector<double> whole(static_cast<size_t>(mask->numel()));
  for (int64_t i = 0; i < mask->numel(); ++i) {
    if (mask->run_begin(i + 1) > mask->run_begin(i)) whole[i] = run[mask->run_begin(i)];
  }
  return whole;
}

TEST_P(MaskedLossyExchange, ResidualsOfWhatStaysMoveAndOthersStartAtZero) {
  World world(3, GetParam());
  Kept before = kept_of(100, 0);
  for (const uint32_t percent : {60U, 30U, 80U, 100U}) {
    for (int step = 0; step < 2; ++step) step_of(world, static_cast<int>(percent) + step, kBuckets);
    const Kept after = kept_of(percent, percent);
    const auto next = plan_of(GetParam(), 3, masks_of(after));
    for (int rank = 0; rank < 3; ++rank) {
      LaneExchange& exchange = *world.ranks[rank];
      exchange.settle();
      std::map<int32_t, std::vector<double>> expected;
      std::map<std::pair<int32_t, int>, at::Tensor> warm;
      for (const int32_t layer : {0, 5}) {
        expected[layer] = owed_by(exchange, *world.plan, rank, layer);
        for (size_t i = 0; i < expected[layer].size(); ++i) {
          if (!before[layer][i]) {
            EXPECT_EQ(expected[layer][i], 0.0);
          }
          if (!after[layer][i]) expected[layer][i] = 0.0;
        }
        EXPECT_TRUE(std::any_of(expected[layer].begin(), expected[layer].end(),
                                [](double value) { return value != 0.0; }));
      }
      for (const int32_t layer : {0, 5}) {
        for (const int side : {0, 1}) {
          const at::Tensor factor = exchange.residuals().of_factor(*world.plan, layer, side);
          if (factor.defined()) warm[{layer, side}] = factor.clone();
        }
      }
      exchange.change_plan(next);
      for (const auto& [place, factor] : warm) {
        EXPECT_TRUE(factor.any().item<bool>());
        EXPECT_TRUE(factor.equal(exchange.residuals().of_factor(*next, place.first, place.second)));
      }
      for (const auto& [layer, values] : expected) {
        const std::vector<double> moved = owed_by(exchange, *next, rank, layer);
        for (size_t i = 0; i < values.size(); ++i) ASSERT_NEAR(moved[i], values[i], 1e-6);
      }
    }
    world.plan = next;
    before = after;
  }
}

/// What the ranks put in is what comes out and what is left: on kept elements, step by step.
TEST(MaskedExchange, OriginalIsDecodedAndResidual) {
  World world(3, kFourBits);
  std::vector<double> pending(static_cast<size_t>(kNumels[5]));
  for (int step = 0; step < 5; ++step) {
    const Kept kept =
        kept_of(70 - 10 * static_cast<uint32_t>(step / 2), static_cast<uint32_t>(step) / 2);
    world.plan = plan_of(kFourBits, 3, masks_of(kept));
    const Step delivered = step_of(world, step, kBuckets);
    std::vector<double> left(pending.size());
    for (int rank = 0; rank < 3; ++rank) {
      world.ranks[rank]->settle();
      const Gradient mine = gradient_of(rank, step, 5);
      const std::vector<double> owed = owed_by(*world.ranks[rank], *world.plan, rank, 5);
      for (size_t i = 0; i < left.size(); ++i) {
        left[i] += owed[i] / 3;
        pending[i] += mine[i] / 3.0;
      }
    }
    for (size_t i = 0; i < left.size(); ++i) {
      if (kept[5][i]) {
        ASSERT_NEAR(delivered[5][i] + left[i], pending[i], 1e-6);
      } else {
        ASSERT_EQ(delivered[5][i], 0.0F);
        ASSERT_EQ(left[i], 0.0);
      }
    }
    pending = left;
  }
}

TEST(MaskedExchange, RanksWithOtherMasksAreToldApart) {
  World world(3, kFourBits);
  const auto same = plan_of(kFourBits, 3, masks_of(kept_of(50, 1)));
  const auto other = plan_of(kFourBits, 3, masks_of(kept_of(50, 2)));
  EXPECT_NE(same->fingerprint(), other->fingerprint());
  EXPECT_EQ(same->fingerprint(), plan_of(kFourBits, 3, masks_of(kept_of(50, 1)))->fingerprint());
  EXPECT_NE(same->fingerprint(), plan_of(kFourBits, 3)->fingerprint());
}

TEST(MaskedExchange, ABucketWithoutAKeptElementSendsNothing) {
  World world(2, kFourBits);
  world.plan = plan_of(kFourBits, 2, masks_of(kept_of(50, 1)));
  EXPECT_EQ(bytes_of(*world.plan, {{3}}, 2048, 0), 0);
  const Step averages = step_of(world, 0, kBuckets);
  for (const float value : averages[3]) ASSERT_EQ(value, 0.0F);
}

}  // namespace
}  // namespace lgreco::engine::testing
