// What a choice would leave out of a layer: both rounds of an exchange among ranks that are all here.
#include "codecs/simulate.h"

#include "core/error.h"

namespace lgreco::codecs {
namespace {

constexpr DType kFp32 = DType::kFloat32;

double distance(const std::vector<const float*>& values, const float* owner, const float* delivered,
                int64_t numel) {
  double total = 0;
  for (int64_t i = 0; i < numel; ++i) {
    double exact = 0;
    for (const float* rank : values) exact += rank[i];
    exact /= static_cast<double>(values.size());
    if (owner != nullptr) exact += owner[i];
    total += (exact - delivered[i]) * (exact - delivered[i]);
  }
  return total;
}

}  // namespace

double simulate(const Codec& codec, const std::vector<const float*>& values, const float* owner,
                int64_t numel, uint64_t seed) {
  require(!values.empty() && values.size() <= kMaxRanks, "ranks must be 1..", kMaxRanks, ", got ",
          values.size());
  if (numel == 0) return 0;
  const int world_size = static_cast<int>(values.size());
  const int64_t bytes = codec.wire_bytes(numel);
  std::vector<std::vector<uint8_t>> wires(world_size, std::vector<uint8_t>(bytes));
  std::vector<const uint8_t*> payloads;
  for (int rank = 0; rank < world_size; ++rank) {
    const Noise noise{.seed = seed, .stream = noise_stream(0, rank, 0)};
    codec.encode(values[rank], kFp32, numel, {}, noise, wires[rank].data());
    payloads.push_back(wires[rank].data());
  }
  std::vector<float> rest;  // the owner's residual; the kernels leave the next one in its place
  Feedback feedback;
  if (owner != nullptr) {
    rest.assign(owner, owner + numel);
    feedback = {.in = rest.data(), .out = rest.data()};
  }
  std::vector<uint8_t> average(bytes);
  const Noise noise{.seed = seed, .stream = noise_stream(0, 0, 1)};
  codec.reduce(payloads.data(), world_size, 1.0F / static_cast<float>(world_size), numel, feedback,
               noise, average.data());
  std::vector<float> delivered(numel);
  codec.decode(average.data(), numel, noise, delivered.data(), kFp32);
  return distance(values, owner, delivered.data(), numel);
}

}  // namespace lgreco::codecs
