// The exchange when ranks are lost, silent, different or closed: everybody is told, nobody hangs.
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <atomic>

#include "exchange_world.h"

namespace lgreco::engine::testing {
namespace {

constexpr int kForEver = 1'000'000;

void expect_names(const std::string& error, int rank, int culprit) {
  EXPECT_NE(error.find(concat("compressed exchange failed on rank ", rank, " at ")), std::string::npos)
      << error;
  EXPECT_NE(error.find(concat("rank ", culprit, " ")), std::string::npos) << error;
}

/// Steps until something is thrown; counts all ranks' steps.
void train(World& world, int rank, std::atomic<int>& steps) {
  for (int step = 0; step < kForEver; ++step) {
    world.step(rank, step, kThreeBuckets);
    ++steps;
  }
}

/// Runs `disturb` once every rank has made some steps, more of them with each `round`.
std::vector<std::string> train_and(World& world, int round, const std::function<void()>& disturb) {
  std::atomic<int> steps{0};
  std::thread disturber([&] {
    while (steps < world.size * (2 + round)) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::microseconds(300 * round));
    disturb();
  });
  auto errors = world.on_each_rank([&](int rank) { train(world, rank, steps); });
  disturber.join();
  return errors;
}

TEST(LaneFailures, ALostRankIsNamedByTheOthers) {
  for (int round = 0; round < 6; ++round) {
    const int culprit = round % 3;
    World world(3, kFourBits);
    const auto errors = train_and(world, round, [&] { world.network.lose(culprit); });
    for (int rank = 0; rank < 3; ++rank) {
      if (rank != culprit) expect_names(errors[rank], rank, culprit);
    }
    for (const auto& rank : world.ranks) rank->close();
  }
}

TEST(LaneFailures, ASilentRankIsNamedWithinTheTimeLimit) {
  World world(3, kFourBits, {.timeout = std::chrono::seconds(8)});
  const auto errors = train_and(world, 0, [&] { world.network.hold(1); });
  expect_names(errors[0], 0, 1);
  expect_names(errors[2], 2, 1);
  EXPECT_NE((errors[0] + errors[2]).find("no answer within the time limit"), std::string::npos);
  world.network.hold(1, false);
}

TEST(LaneFailures, ARankWithAnotherPlanIsNamed) {
  World world(3, kFourBits);
  const auto other = plan_of(kDense, 3);
  const auto errors = world.on_each_rank([&](int rank) {
    if (rank == 2) world.ranks[rank]->restart(other);
    world.ranks[rank]->begin_step(rank == 2 ? other : world.plan, {});
    const std::vector<int32_t> layers{5};
    world.ranks[rank]
        ->run({.index = 0, .last = true, .buffer = at::zeros({kNumels[5]}), .layers = layers})
        ->waitAndThrow();
  });
  for (int rank = 0; rank < 3; ++rank) EXPECT_NE(errors[rank], "");
}

TEST(LaneFailures, AnErrorOnOneRankIsToldToAll) {
  World world(3, kFourBits);
  const auto errors = world.on_each_rank([&](int rank) {
    world.step(rank, 0, kThreeBuckets);
    if (rank == 1) return world.ranks[rank]->close();  // as a script that ends by an error does
    world.step(rank, 1, kThreeBuckets);
  });
  EXPECT_EQ(errors[1], "");
  expect_names(errors[0], 0, 1);
  expect_names(errors[2], 2, 1);
}

TEST(LaneFailures, ClosingEndsWhatIsInFlight) {
  for (int round = 0; round < 6; ++round) {
    World world(2, kFourBits);
    world.on_each_rank([&](int rank) { world.step(rank, 0, kThreeBuckets); });
    world.network.hold(0);
    world.network.hold(1);
    std::atomic<int> started{0};
    std::thread closer([&] {
      while (started < 2) std::this_thread::yield();
      std::this_thread::sleep_for(std::chrono::milliseconds(round));
      for (const auto& rank : world.ranks) rank->close();
    });
    const auto errors = world.on_each_rank([&](int rank) {
      ++started;
      world.step(rank, 1, kThreeBuckets);
    });
    closer.join();
    for (const std::string& error : errors) {
      EXPECT_TRUE(error.find("was closed") != std::string::npos ||
                  error.find("exchange failed") != std::string::npos)
          << error;
    }
  }
}

TEST(LaneFailures, ARankMayCloseWhileAllTrain) {
  for (int round = 0; round < 6; ++round) {
    World world(3, kFourBits);
    const auto errors = train_and(world, round, [&] { world.ranks[1]->close(); });
    EXPECT_NE(errors[1].find("was closed"), std::string::npos) << errors[1];
    expect_names(errors[0], 0, 1);
    expect_names(errors[2], 2, 1);
  }
}

}  // namespace
}  // namespace lgreco::engine::testing
