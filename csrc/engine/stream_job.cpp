// Setting up a bucket of the CUDA exchange.
#include "engine/stream_job.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>

namespace lgreco::engine {
namespace {

constexpr int64_t kSectionAlignment = 256;
constexpr int64_t kOneChunk = std::numeric_limits<int64_t>::max() / 2;  // a section is one message

int64_t longest_section(const Layout& layout) {
  int64_t longest = 0;
  for (const Chunk& chunk : layout.chunks()) longest = std::max(longest, chunk.bytes);
  return (longest + kSectionAlignment - 1) / kSectionAlignment * kSectionAlignment;
}

template <typename T>
at::Tensor to_device(const std::vector<T>& values, at::Device device) {
  const at::Tensor host = at::empty({static_cast<int64_t>(values.size() * sizeof(T))}, at::kByte);
  if (!values.empty()) std::memcpy(host.mutable_data_ptr(), values.data(), values.size() * sizeof(T));
  return host.to(device);
}

using RunsByCodec = std::map<const codecs::Codec*, std::vector<kernels::BatchRun>>;

std::vector<CodecBatch> make_batches(RunsByCodec& by_codec, at::Device device) {
  std::vector<CodecBatch> batches;
  for (auto& [codec, runs] : by_codec) {
    CodecBatch made;
    made.codec = codec;
    made.batch.block_numel = static_cast<int32_t>(codec->block_numel());
    const std::vector<uint32_t> block_runs = kernels::number_blocks(runs, made.batch.block_numel);
    made.runs = to_device(runs, device);
    made.block_runs = to_device(block_runs, device);
    made.batch.runs = static_cast<const kernels::BatchRun*>(made.runs.const_data_ptr());
    made.batch.block_runs = static_cast<const uint32_t*>(made.block_runs.const_data_ptr());
    made.batch.run_count = static_cast<uint32_t>(runs.size());
    made.batch.block_count = static_cast<uint32_t>(block_runs.size());
    batches.push_back(std::move(made));
  }
  return batches;
}

}  // namespace

StreamJob::StreamJob(const Plan& plan, const std::vector<int32_t>& bucket_layers, int rank,
                     at::Device device)
    : layers(bucket_layers),
      layout(plan, layers, rank, kOneChunk),
      section_bytes(longest_section(layout)) {
  const auto options = at::TensorOptions().dtype(at::kByte).device(device);
  wire = at::zeros({section_bytes * plan.world_size()}, options);
  inbox = at::zeros({section_bytes * plan.world_size()}, options);
  RunsByCodec coding, reducing;
  for (const Chunk& chunk : layout.chunks()) {
    const int64_t section = chunk.owner * section_bytes;
    for (int32_t i = 0; i < chunk.piece_count; ++i) {
      const Piece& piece = layout.pieces()[chunk.first_piece + i];
      const Tile& tile = plan.tiles()[piece.tile];
      kernels::BatchRun run;
      run.gradient_offset = piece.offset;
      run.residual_offset = tile.residual_offset;
      run.wire_offset = section + piece.wire_offset;
      run.bit = 8 * (section + static_cast<int64_t>(sizeof(ChunkHeader))) + i;
      run.numel = tile.numel;
      run.first_block = tile.first_block;
      run.stream = noise_stream(tile.layer, rank, 0);
      coding[&plan.codec_of(tile)].push_back(run);
      if (chunk.owner != rank) continue;
      run.residual_offset = tile.owner_residual_offset;
      run.wire_offset -= section;
      run.bit -= 8 * section;
      run.stream = noise_stream(tile.layer, rank, 1);
      reducing[&plan.codec_of(tile)].push_back(run);
    }
  }
  coded = make_batches(coding, device);
  reduced = make_batches(reducing, device);
}

}  // namespace lgreco::engine
