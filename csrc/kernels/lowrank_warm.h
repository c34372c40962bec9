// CUDA kernels around the low-rank exchange: warm starts in and out, and whether a layer has a gradient.
//
// What engine/factors.cpp does on the host for the CPU. In stream order; throws Error where a launch is
// refused; without CUDA every function throws Error and names the build flag.
#pragma once

#include <cstdint>

#include "kernels/batch.h"

namespace lgreco::kernels {

/// One column of a factor, in the warm-start arenas and in the memory of a bucket's factors.
struct WarmColumn {
  int64_t warm_offset = 0;    ///< elements into either arena
  int64_t memory_offset = 0;  ///< elements
  int32_t length = 0;
  int32_t column = 0;
  uint32_t layer = 0;  ///< for the seed
  int32_t bit = 0;     ///< the layer's, in the bits given to warm_store(); -1: nothing new was exchanged
};
static_assert(sizeof(WarmColumn) == 32);

/// A bit that follows another one.
struct BitCopy {
  int64_t from = 0, to = 0;  ///< counted from the first bit of either memory
};

/// memory = what is committed, scaled as lowrank_scale_column() does; a column of zeros becomes
/// lowrank_seed_column()'s of seed + committed steps.
void warm_load(const WarmColumn* columns, uint32_t count, const BatchFeedback& arenas,
               const DeviceTransaction* transaction, uint64_t seed, float* memory, CudaStream stream);

/// The shadow = memory, or what is committed where the column's bit is clear or it has none.
void warm_store(const WarmColumn* columns, uint32_t count, const BatchFeedback& arenas,
                const DeviceTransaction* transaction, const float* memory, const uint8_t* bits,
                CudaStream stream);

/// Every `to` bit becomes its `from` bit.
void copy_bits(const BitCopy* copies, uint32_t count, const uint8_t* from, uint8_t* to,
               CudaStream stream);

}  // namespace lgreco::kernels
