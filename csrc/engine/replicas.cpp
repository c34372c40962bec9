// A hash of the parameters' bytes, by which ranks find out that their replicas differ.
#include "engine/replicas.h"

#include <cstring>

namespace lgreco::engine {
namespace {

constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15ULL;

uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * kMultiplier;
  return hash ^ (hash >> 32);
}

}  // namespace

uint64_t hash_of(const std::vector<at::Tensor>& parameters) {
  constexpr int kStreams = 4;  // independent chains, so that the multiplier's latency is hidden
  uint64_t hash[kStreams] = {1, 2, 3, 4};
  for (const at::Tensor& parameter : parameters) {
    const at::Tensor dense =
        parameter.is_non_overlapping_and_dense() ? parameter : parameter.contiguous();
    const auto* bytes = static_cast<const uint8_t*>(dense.const_data_ptr());
    const size_t size = dense.nbytes();
    size_t at = 0;
    for (; at + 8 * kStreams <= size; at += 8 * kStreams) {
      uint64_t words[kStreams];
      std::memcpy(words, bytes + at, sizeof(words));
      for (int i = 0; i < kStreams; ++i) hash[i] = mix(hash[i], words[i]);
    }
    for (; at < size; ++at) hash[0] = mix(hash[0], bytes[at]);
  }
  return mix(mix(mix(hash[0], hash[1]), hash[2]), hash[3]) | 1U;
}

}  // namespace lgreco::engine
