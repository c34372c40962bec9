// Philox4x32-10 (Salmon et al., SC 2011), the counter-based generator behind all randomness.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace lgreco {

struct Philox4 {
  uint32_t word[4];
};

/// Ten rounds over a 128-bit counter and a 64-bit key; the same words on CPU and CUDA.
LGRECO_HD Philox4 philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                             uint32_t k1) {
  constexpr uint32_t kMul0 = 0xD2511F53u, kMul1 = 0xCD9E8D57u;
  constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kMul0) * c0;
    const uint64_t p1 = static_cast<uint64_t>(kMul1) * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

/// Names one stream of draws. Key: (seed); counter: (draw, block, step, stream).
/// A stream is ((layer * kMaxRanks) + rank) * 2 + round.
struct Noise {
  uint64_t seed = 0;
  uint32_t step = 0;         ///< committed steps so far
  uint32_t stream = 0;       ///< mixes layer, rank and round; see engine/plan.h
  uint32_t first_block = 0;  ///< index within the layer of the run's first block
};

inline constexpr uint32_t kMaxRanks = 4096;

/// Philox stream of a layer's draws: which rank codes it, and in which of the two rounds.
constexpr uint32_t noise_stream(int32_t layer, int rank, int round) {
  return (static_cast<uint32_t>(layer) * kMaxRanks + static_cast<uint32_t>(rank)) * 2U +
         static_cast<uint32_t>(round);
}

/// The stream that all ranks share in both rounds, from any of the layer's.
LGRECO_HD uint32_t shared_noise_stream(uint32_t stream) { return stream & ~(2U * kMaxRanks - 1U); }

}  // namespace lgreco
