// Ranks as threads, each with an exchange of its own, and training steps with gradients made up.
#pragma once

#include <ATen/ops/empty.h>

#include <exception>
#include <functional>
#include <string>

#include "engine/lane_exchange.h"
#include "in_process_network.h"

namespace lgreco::engine::testing {

using Buckets = std::vector<std::vector<int32_t>>;  // layers by bucket
using Gradient = std::vector<float>;                // of a layer

inline const codecs::Choice kDense{"dense", {{"dtype", "fp32"}}};
inline const codecs::Choice kFourBits{"quantize",
                                      {{"bits", "4"},
                                       {"block", "128"},
                                       {"grid", "minmax"},
                                       {"rounding", "stochastic"},
                                       {"scales", "fp32"}}};

/// Two stages in every step, or one whose factor changes from step to step.
inline const codecs::Choice kLowRank{
    "lowrank", {{"rank", "3"}, {"factors", "int8"}, {"q", "same"}, {"iterate", "both"}}};
inline const codecs::Choice kAlternating{
    "lowrank", {{"rank", "10"}, {"factors", "int6"}, {"q", "bf16"}, {"iterate", "alternate"}}};

inline const std::vector<int64_t> kNumels{9000, 7, 0, 4097, 1, 30'000};
inline const std::vector<int64_t> kRows{90, 7, 0, 17, 1, 150};
inline const Buckets kThreeBuckets{{5, 4}, {3, 2}, {1, 0}};
inline const Buckets kOneBucket{{5, 4, 3, 2, 1, 0}};

inline std::shared_ptr<const Plan> plan_of(const codecs::Choice& choice, int world_size,
                                           const Masks& masks = {}) {
  std::vector<LayerSpec> layers;
  for (size_t i = 0; i < kNumels.size(); ++i) {
    const int64_t rows = kRows[i], cols = rows == 0 ? 5 : kNumels[i] / rows;
    layers.push_back({concat("layer", i), {rows, cols}, kNumels[i], DType::kFloat32});
  }
  const std::vector<codecs::Choice> choices(layers.size(), choice);
  return std::make_shared<const Plan>(std::move(layers), choices, world_size, masks);
}

/// What `rank` computed for a layer in a step.
inline Gradient gradient_of(int rank, int step, int32_t layer) {
  std::mt19937 random(static_cast<uint32_t>(1 + rank + 100 * step + 10'000 * layer));
  Gradient gradient(kNumels[layer]);
  for (float& value : gradient) value = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
  return gradient;
}

using Change = std::function<void(int32_t, Gradient&)>;

inline at::Tensor bucket_of(int rank, int number, const std::vector<int32_t>& layers,
                            const Change& change) {
  Gradient all;
  for (const int32_t layer : layers) {
    Gradient gradient = gradient_of(rank, number, layer);
    if (change) change(layer, gradient);
    all.insert(all.end(), gradient.begin(), gradient.end());
  }
  at::Tensor buffer = at::empty({static_cast<int64_t>(all.size())}, at::kFloat);
  std::copy(all.begin(), all.end(), buffer.mutable_data_ptr<float>());
  return buffer;
}

inline std::vector<Gradient> layers_of(const std::vector<at::Tensor>& buffers, const Buckets& buckets) {
  std::vector<Gradient> layers(kNumels.size());
  for (size_t i = 0; i < buckets.size(); ++i) {
    const auto* next = buffers[i].const_data_ptr<float>();
    for (const int32_t layer : buckets[i]) {
      layers[layer].assign(next, next + kNumels[layer]);
      next += kNumels[layer];
    }
  }
  return layers;
}

/// One rank's step: starts every bucket, then waits for them all; the averages by layer.
inline std::vector<Gradient> step_of(Exchange& exchange, const std::shared_ptr<const Plan>& plan,
                                     int rank, int number, const Buckets& buckets,
                                     const Change& change = {}) {
  std::vector<at::Tensor> buffers;
  std::vector<FuturePtr> futures;
  exchange.begin_step(plan, {});
  for (size_t i = 0; i < buckets.size(); ++i) {
    buffers.push_back(bucket_of(rank, number, buckets[i], change));
    futures.push_back(exchange.run({.index = static_cast<int32_t>(i),
                                    .last = i + 1 == buckets.size(),
                                    .buffer = buffers.back(),
                                    .layers = buckets[i]}));
  }
  for (const FuturePtr& future : futures) future->waitAndThrow();
  return layers_of(buffers, buckets);
}

/// Runs `body(rank)` on a thread for each rank; what the ranks threw, by rank, "" where nothing.
inline std::vector<std::string> on_each_rank(int size, const std::function<void(int)>& body) {
  std::vector<std::string> errors(size);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        body(rank);
      } catch (const std::exception& error) {
        errors[rank] = error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

struct WorldOptions {
  bool disorder = true;
  int64_t chunk_bytes = 2048;
  std::chrono::milliseconds timeout{60'000};
};

class World {
 public:
  World(int size, const codecs::Choice& choice, const WorldOptions& world = {})
      : size(size), network(size, world.disorder), plan(plan_of(choice, size)) {
    ExchangeOptions options;
    options.chunk_bytes = world.chunk_bytes;
    options.window_bytes = 3 * world.chunk_bytes;
    options.timeout = world.timeout;
    for (int rank = 0; rank < size; ++rank) {
      ranks.push_back(std::make_unique<LaneExchange>(network.transport(rank), options,
                                                     std::vector<at::Tensor>{}, plan));
    }
  }

  std::vector<std::string> on_each_rank(const std::function<void(int)>& body) {
    return testing::on_each_rank(size, body);
  }

  std::vector<Gradient> step(int rank, int number, const Buckets& buckets, const Change& change = {}) {
    return step_of(*ranks[rank], plan, rank, number, buckets, change);
  }

  const int size;
  Network network;  // outlives the exchanges
  std::shared_ptr<const Plan> plan;
  std::vector<std::unique_ptr<LaneExchange>> ranks;
};

}  // namespace lgreco::engine::testing
