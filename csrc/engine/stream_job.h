// A bucket of the CUDA exchange: its layout, buffers and batches of runs, all in device memory.
#pragma once

#include <vector>

#include "engine/exchange.h"
#include "engine/layout.h"
#include "kernels/batch.h"

namespace lgreco::engine {

/// The runs of one codec within a bucket, and the device arrays that describe them.
struct CodecBatch {
  const codecs::Codec* codec = nullptr;
  kernels::Batch batch;
  at::Tensor runs, block_runs;  ///< own the memory that `batch` points to
};

/// Kept from step to step while the bucket stays the same.
///
/// Both collectives want equal parts, so each owner's section of the wire is as long as the longest.
struct StreamJob {
  StreamJob(const Plan& plan, const std::vector<int32_t>& bucket_layers, int rank, at::Device device);

  const std::vector<int32_t> layers;
  const Layout layout;
  const int64_t section_bytes;
  at::Tensor wire, inbox;           ///< uint8, [world_size * section_bytes]
  std::vector<CodecBatch> coded;    ///< every tile; wire offsets from the wire's start
  std::vector<CodecBatch> reduced;  ///< own tiles; wire offsets from the own section's start
};

}  // namespace lgreco::engine
