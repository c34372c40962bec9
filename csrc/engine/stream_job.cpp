// Setting up a bucket of the CUDA exchange.
#include "engine/stream_job.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "engine/to_device.h"

namespace lgreco::engine {
namespace {

constexpr int64_t kSectionAlignment = 256;
constexpr int64_t kOneChunk = std::numeric_limits<int64_t>::max() / 2;  // a section is one message

/// By codec and by where they lie.
using RunsByCodec = std::map<std::pair<const codecs::Codec*, Source>, std::vector<kernels::BatchRun>>;

Source source_of(const Piece& piece) {
  if (piece.factored >= 0) return Source::kFactors;
  return piece.masked >= 0 ? Source::kRuns : Source::kBucket;
}

std::vector<CodecBatch> make_batches(RunsByCodec& by_codec, at::Device device) {
  std::vector<CodecBatch> batches;
  for (auto& [kind, runs] : by_codec) {
    CodecBatch made;
    made.codec = kind.first;
    made.source = kind.second;
    made.batch.block_numel = static_cast<int32_t>(made.codec->block_numel());
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

DeviceArray<kernels::BitCopy> array_of(const std::vector<kernels::BitCopy>& copies, at::Device device) {
  return {to_device(copies, device), static_cast<uint32_t>(copies.size())};
}

/// Where the coding of a piece leaves its error: the arena of the layer, or the factors' own memory
/// where no other factor is computed from the average.
int64_t error_offset(const Plan& plan, const Piece& piece, const Tile& tile, int64_t arena_offset) {
  if (!tile.factor) return arena_offset;
  const Part& part = plan.part_of(tile);
  return part.stage == 1 || part.turn != Turn::kEvery ? piece.offset : -1;
}

}  // namespace

StreamJob::StreamJob(const Plan& plan, const std::vector<int32_t>& bucket_layers, int rank,
                     at::Device device)
    : layers(bucket_layers),
      layout(plan, layers, rank, kOneChunk),
      factors(plan, layout, device),
      masks(plan, layout, device) {
  std::map<std::pair<uint8_t, Turn>, std::vector<const Chunk*>> by_group;
  for (const Chunk& chunk : layout.chunks()) by_group[{chunk.stage, chunk.turn}].push_back(&chunk);
  for (const auto& [group, chunks] : by_group) {
    groups.push_back(make_group(plan, chunks, rank, device));
    groups.back().stage = group.first;
    groups.back().turn = group.second;
  }
}

StreamGroup StreamJob::make_group(const Plan& plan, const std::vector<const Chunk*>& chunks, int rank,
                                  at::Device device) const {
  StreamGroup group;
  for (const Chunk* chunk : chunks) group.section_bytes = std::max(group.section_bytes, chunk->bytes);
  group.section_bytes = round_up(group.section_bytes, kSectionAlignment);
  const auto options = at::TensorOptions().dtype(at::kByte).device(device);
  group.wire = at::zeros({group.section_bytes * plan.world_size()}, options);
  group.inbox = at::zeros({group.section_bytes * plan.world_size()}, options);
  RunsByCodec coding, reducing;
  std::vector<kernels::BitCopy> to_wire, to_own, agreed;
  for (const Chunk* chunk : chunks) {
    const int64_t section = chunk->owner * group.section_bytes;
    for (int32_t i = 0; i < chunk->piece_count; ++i) {
      const Piece& piece = layout.pieces()[chunk->first_piece + i];
      const Tile& tile = plan.tiles()[piece.tile];
      kernels::BatchRun run;
      run.gradient_offset = piece.offset;
      if (piece.masked >= 0) {
        run.gradient_offset = layout.masked()[piece.masked].run_offset + tile.offset;
      }
      run.residual_offset = error_offset(plan, piece, tile, tile.residual_offset);
      run.wire_offset = section + piece.wire_offset;
      run.bit = 8 * (section + static_cast<int64_t>(sizeof(ChunkHeader))) + i;
      run.numel = tile.numel;
      run.first_block = tile.first_block;
      run.stream = noise_stream(tile.layer, rank, 0);
      coding[{&plan.codec_of(tile), source_of(piece)}].push_back(run);
      if (tile.factor) {
        to_wire.push_back({piece.factored, run.bit});
        if (tile.offset == 0) agreed.push_back({run.bit, piece.factored});
      }
      if (chunk->owner != rank) continue;
      run.residual_offset = error_offset(plan, piece, tile, tile.owner_residual_offset);
      run.wire_offset -= section;
      run.bit -= 8 * section;
      run.stream = noise_stream(tile.layer, rank, 1);
      reducing[{&plan.codec_of(tile), source_of(piece)}].push_back(run);
    }
  }
  group.coded = make_batches(coding, device);
  group.reduced = make_batches(reducing, device);
  group.bits = {array_of(to_wire, device), array_of(agreed, device)};
  return group;
}

int64_t StreamJob::buffer_bytes() const {
  int64_t total = factors.bytes() + masks.bytes();
  for (const StreamGroup& group : groups) total += group.wire.numel() + group.inbox.numel();
  return total;
}

}  // namespace lgreco::engine
