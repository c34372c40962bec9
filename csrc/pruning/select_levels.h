// The passes over scores of each instruction set level, all to the same contract.
#pragma once

#include "pruning/select_math.h"

namespace lgreco::pruning {

/// What a pass over scores has seen.
struct Seen {
  int64_t from_high = 0;  ///< keys that are at least bracket.high
  bool nan = false;
};

/// Where collected keys go; 16 more may be written than are counted.
struct Collected {
  int32_t* keys;
  int64_t count = 0;
  int64_t most;
  bool overflown = false;  ///< there were more than `most`; the pass ended early
};

#define LGRECO_SELECT_LEVEL(level)                                                                     \
  namespace level {                                                                                    \
  void scan(const Scores& scores, Order order, const Bracket& bracket, Seen& seen, Collected& inside); \
  int64_t mark_kept(const Scores& scores, Order order, int32_t key, int64_t ties, uint8_t* kept,       \
                    float* weights);                                                                   \
  void hold(const uint8_t* kept, int64_t numel, float* weights);                                       \
  }

LGRECO_SELECT_LEVEL(scalar)
LGRECO_SELECT_LEVEL(avx2)
LGRECO_SELECT_LEVEL(avx512)
#undef LGRECO_SELECT_LEVEL

}  // namespace lgreco::pruning
