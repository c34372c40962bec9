// A bucket of the CUDA exchange: its layout, buffers and batches of runs, all in device memory.
#pragma once

#include <vector>

#include "engine/exchange.h"
#include "engine/layout.h"
#include "engine/stream_factors.h"
#include "engine/stream_masks.h"
#include "kernels/batch.h"

namespace lgreco::engine {

/// Where a batch's elements lie: in the bucket, in the memory of factors, or in that of masked layers'
/// runs.
enum class Source : uint8_t { kBucket, kFactors, kRuns };

/// The runs of one codec within a group, and the device arrays that describe them.
struct CodecBatch {
  const codecs::Codec* codec = nullptr;
  Source source = Source::kBucket;
  kernels::Batch batch;
  at::Tensor runs, block_runs;  ///< own the memory that `batch` points to
};

/// What travels together: the parts of one stage that take part in the same steps.
///
/// Both collectives want equal parts, so each owner's section of the wire is as long as the longest.
struct StreamGroup {
  uint8_t stage = 0;
  Turn turn = Turn::kEvery;
  int64_t section_bytes = 0;
  at::Tensor wire, inbox;           ///< uint8, [world_size * section_bytes]
  std::vector<CodecBatch> coded;    ///< every tile; wire offsets from the wire's start
  std::vector<CodecBatch> reduced;  ///< own tiles; wire offsets from the own section's start
  LayerBits bits;                   ///< which runs' bits are whose layers'
};

/// Kept from step to step while the bucket stays the same.
struct StreamJob {
  StreamJob(const Plan& plan, const std::vector<int32_t>& bucket_layers, int rank, at::Device device);

  int64_t buffer_bytes() const;

  const std::vector<int32_t> layers;
  const Layout layout;
  std::vector<StreamGroup> groups;  ///< the first stage's before the second's
  StreamFactors factors;
  StreamMasks masks;

 private:
  StreamGroup make_group(const Plan& plan, const std::vector<const Chunk*>& chunks, int rank,
                         at::Device device) const;
};

}  // namespace lgreco::engine
