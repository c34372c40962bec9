// What the codec lane does with a chunk or a factored layer.
#include <chrono>
#include <cstring>

#include "core/error.h"
#include "engine/clock.h"
#include "engine/lane_exchange.h"
#include "engine/replicas.h"
#include "kernels/mask.h"

namespace lgreco::engine {
namespace {

constexpr std::chrono::milliseconds kUntilWoken = std::chrono::hours(24 * 365);

// A network's own words do not say with which rank something went wrong.
template <typename Name, typename Call>
void naming_peer(const Name& name_of, const Job& job, const Call& call) {
  try {
    call();
  } catch (const transports::PeerError& error) {
    const int32_t name = name_of(error.peer());
    throw transports::PeerError(
        concat("bucket ", job.bucket, ": rank ", name, " is lost: ", error.what()), name);
  }
}

}  // namespace

void LaneExchange::work(const Task& task) {
  if (task.kind == Task::Kind::kFail) return send_failure();
  {
    const std::lock_guard lock(mutex_);
    if (failed_ || closed_) return;
  }
  const auto began = std::chrono::steady_clock::now();
  try {
    switch (task.kind) {
      case Task::Kind::kBegin: begin(); break;
      case Task::Kind::kWatch: watch(*task.job, /*delivered=*/false); break;
      case Task::Kind::kProject:
        task.job->factors.project(task.index, task.job->gradient, task.job->dtype, factor_step());
        break;
      case Task::Kind::kEncode: encode(*task.job, task.index, task.last_of_index); break;
      case Task::Kind::kReduce: reduce(*task.job, task.index); break;
      case Task::Kind::kRelay: relay_.averaged(*task.job); break;
      case Task::Kind::kRelease: release_averages(*task.job); break;
      case Task::Kind::kDecode: decode(*task.job, task.index); break;
      case Task::Kind::kAdvance: task.job->factors.advance(task.index); break;
      case Task::Kind::kFinish: finish(*task.job, task.index); break;
      case Task::Kind::kFail: break;
    }
    codec_ns_ += nanoseconds_since(began);
  } catch (const std::exception& error) {
    const auto* lost = dynamic_cast<const transports::PeerError*>(&error);
    fail(concat("step ", attempted_steps_, ": ", error.what()),
         lost != nullptr ? lost->peer() : name_of(rank_));
  }
}

void LaneExchange::begin() {
  const int every = options_.check_replicas_every;
  replicas_hash_ = every > 0 && (attempted_steps_ - 1) % every == 0 ? hash_of(parameters_) : 0;
}

Noise LaneExchange::noise_of(const Tile& tile, Round round) const {
  return {.seed = options_.seed,
          .step = static_cast<uint32_t>(committed_steps_),
          .stream = noise_stream(tile.layer, rank_, round),
          .first_block = tile.first_block};
}

FactorStep LaneExchange::factor_step() const {
  return {*residuals_, scale_, committed_steps_, options_.seed};
}

void LaneExchange::write_header(Job& job, int32_t chunk, Round round) {
  std::unique_lock lock(mutex_);  // a receive lane may fail at this moment
  const bool failed = failed_;
  const int culprit = culprit_;
  lock.unlock();
  const ChunkHeader header{.step = static_cast<uint32_t>(attempted_steps_),
                           .bucket = static_cast<uint16_t>(job.bucket),
                           .round = round,
                           .failed = failed,
                           .chunk = static_cast<uint32_t>(chunk),
                           .culprit = culprit,
                           .plan = plan_->fingerprint(),
                           .replicas = replicas_hash_};
  std::memcpy(job.wire_of(job.layout.chunks()[chunk]), &header, sizeof(header));
}

void LaneExchange::check_header(const Job& job, int32_t chunk, Round round, int peer,
                                const uint8_t* payload) {
  ChunkHeader header;
  std::memcpy(&header, payload, sizeof(header));
  const int32_t name = name_of(peer);
  if (header.failed != 0) {
    const std::string who =
        header.culprit == name ? concat("rank ", name, " failed")
                               : concat("rank ", header.culprit, " failed or is lost, says rank ", name);
    throw transports::PeerError(concat("bucket ", job.bucket, ": ", who), header.culprit);
  }
  ensure(header.plan == plan_->fingerprint(), "rank ", name,
         " follows another plan than this rank; configurations must be the same on all ranks");
  ensure(header.step == static_cast<uint32_t>(attempted_steps_) && header.bucket == job.bucket &&
             header.round == round && header.chunk == static_cast<uint32_t>(chunk),
         "rank ", name, " is at step ", header.step, ", bucket ", header.bucket, ", this rank at step ",
         attempted_steps_, ", bucket ", job.bucket);
}

// An owner sees every rank's hash. The parameters that most ranks hold are taken for the right ones.
void LaneExchange::check_replicas(Job& job, int32_t id) {
  const auto hash_from = [&](int peer) {
    ChunkHeader header;
    std::memcpy(&header, job.payload_from(peer, job.layout.chunks()[id], rank_), sizeof(header));
    return header.replicas;
  };
  const auto votes_of = [&](int rank) {
    int votes = 0;
    for (int peer = 0; peer < world_size_; ++peer) votes += hash_from(peer) == hash_from(rank);
    return votes;
  };
  int right = 0;
  for (int peer = 0; peer < world_size_; ++peer) {
    if (hash_from(peer) != hash_from(right) && votes_of(peer) > votes_of(right)) right = peer;
  }
  for (int peer = 0; peer < world_size_; ++peer) {
    if (hash_from(peer) == hash_from(right)) continue;
    throw transports::PeerError(
        concat("rank ", name_of(peer), " holds other parameters than rank ", name_of(right),
               " (check_replicas_every): replicas have diverged"),
        name_of(peer));
  }
}

void LaneExchange::send(transports::Message& message, uint8_t& sent, const Job& job, int32_t chunk,
                        Round round) {
  naming_peer([this](int peer) { return name_of(peer); }, job,
              [&] { message.send(tag_of(job, chunk, round)); });
  sent = 1;
  sent_bytes_ += job.layout.chunks()[chunk].bytes;
}

void LaneExchange::encode(Job& job, int32_t id, bool last_of_index) {
  const Chunk& chunk = job.layout.chunks()[id];
  const bool own = chunk.owner == rank_;
  // The last step's sends from this memory are over, or nearly.
  naming_peer([this](int peer) { return name_of(peer); }, job,
              [&] {
                if (!own) return job.scatter_out[id]->wait(kUntilWoken);
                for (int peer = 0; peer < world_size_; ++peer) {
                  if (peer != rank_) job.gather_out(peer, id).wait(kUntilWoken);
                }
              });
  uint8_t* wire = job.wire_of(chunk);
  write_header(job, id, kScatter);
  for (int32_t i = 0; i < chunk.piece_count; ++i) {
    const Piece& piece = job.layout.pieces()[chunk.first_piece + i];
    const Tile& tile = plan_->tiles()[piece.tile];
    const codecs::Codec& codec = plan_->codec_of(tile);
    bool nonzero = false;
    if (tile.factor) {
      nonzero = job.factors.nonzero(piece);
      codec.encode(job.factors.value(piece), DType::kFloat32, tile.numel,
                   job.factors.sender_error(piece, tile), noise_of(tile, kScatter),
                   wire + piece.wire_offset);
    } else {
      nonzero =
          codec
              .encode(gathered(job, piece), job.dtype, tile.numel, residuals_->sender(tile, scale_),
                      noise_of(tile, kScatter), wire + piece.wire_offset)
              .nonzero;
    }
    set_bit(bits_of(wire), i, nonzero);
  }
  if (!own) send(*job.scatter_out[id], job.sent[id], job, id, kScatter);
  if (last_of_index) expect_gather(job, chunk.stage, chunk.index);
  if (own) arrived(job, id);
}

// A tile's gradient: where it lies, or what its mask keeps of it.
const uint8_t* LaneExchange::gathered(const Job& job, const Piece& piece) {
  const int64_t bytes = element_bytes(job.dtype);
  const uint8_t* gradient = job.gradient + piece.offset * bytes;
  if (piece.masked < 0) return gradient;
  kernels::mask_gather(span_of(piece), gradient, bytes, run_.data());
  return run_.data();
}

kernels::MaskSpan LaneExchange::span_of(const Piece& piece) const {
  const Tile& tile = plan_->tiles()[piece.tile];
  return {plan_->planned()[tile.layer].mask->words().data(), tile.dense_offset, tile.dense_numel,
          tile.numel};
}

void LaneExchange::arrived(Job& job, int32_t chunk) {
  if (job.arrivals[chunk - job.first_own].fetch_add(1) + 1 == world_size_) {
    codec_lane_->post({Task::Kind::kReduce, &job, chunk});
  }
}

void LaneExchange::reduce(Job& job, int32_t id) {
  const Chunk& chunk = job.layout.chunks()[id];
  uint8_t* out = job.wire_of(chunk);
  for (int peer = 0; peer < world_size_; ++peer) {
    if (peer != rank_) check_header(job, id, kScatter, peer, job.payload_from(peer, chunk, rank_));
  }
  if (replicas_hash_ != 0) check_replicas(job, id);
  const float factor = 1.0F / static_cast<float>(world_size_);
  for (int32_t i = 0; i < chunk.piece_count; ++i) {
    const Piece& piece = job.layout.pieces()[chunk.first_piece + i];
    const Tile& tile = plan_->tiles()[piece.tile];
    bool nonzero = false;
    for (int peer = 0; peer < world_size_; ++peer) {
      const uint8_t* payload = job.payload_from(peer, chunk, rank_);
      nonzero |= bit(bits_of(payload), i);
      payloads_[peer] = payload + piece.wire_offset;
    }
    set_bit(bits_of(out), i, nonzero);
    if (nonzero) {
      const codecs::Feedback feedback =
          tile.factor ? job.factors.owner_error(piece, tile) : residuals_->owner(tile, scale_);
      plan_->codec_of(tile).reduce(payloads_.data(), world_size_, factor, tile.numel, feedback,
                                   noise_of(tile, kGather), out + piece.wire_offset);
    } else {
      residuals_->keep_owner(tile);
    }
  }
  if (!relay_.averaged) return send_averages(job, id);
  if (--job.reduces_left == 0) relay_.averaged(job);
}

void LaneExchange::send_averages(Job& job, int32_t id) {
  write_header(job, id, kGather);
  for (int turn = 1; turn < world_size_; ++turn) {
    const int peer = (rank_ + turn) % world_size_;
    const size_t slot = job.slot(peer, id);
    send(job.gather_out(peer, id), job.sent[job.layout.chunks().size() + slot], job, id, kGather);
  }
  codec_lane_->post({Task::Kind::kDecode, &job, id});
}

void LaneExchange::decode(Job& job, int32_t id) {
  if (id < 0) return complete(job);
  const Chunk& chunk = job.layout.chunks()[id];
  const uint8_t* wire = job.wire_of(chunk);
  if (chunk.owner != rank_) check_header(job, id, kGather, chunk.owner, wire);
  for (int32_t i = 0; i < chunk.piece_count; ++i) {
    const Piece& piece = job.layout.pieces()[chunk.first_piece + i];
    job.nonfinite |= decode_piece(job, piece, wire + piece.wire_offset, bit(bits_of(wire), i));
  }
  if (--job.decodes_left[chunk.stage] == 0) end_stage(job, chunk.stage);
}

// Returns whether an inf or NaN came out. A piece that is zero on every rank was not coded.
bool LaneExchange::decode_piece(Job& job, const Piece& piece, const uint8_t* wire, bool nonzero) {
  const Tile& tile = plan_->tiles()[piece.tile];
  const codecs::Codec& codec = plan_->codec_of(tile);
  if (tile.factor) {
    job.factors.set_nonzero(piece, nonzero);
    return nonzero && codec
                          .decode(wire, tile.numel, noise_of(tile, kGather), job.factors.mean(piece),
                                  DType::kFloat32)
                          .nonfinite;
  }
  const int64_t bytes = element_bytes(job.dtype);
  uint8_t* out = job.gradient + piece.offset * bytes;
  if (nonzero) {
    uint8_t* run = piece.masked < 0 ? out : run_.data();
    const bool nonfinite =
        codec.decode(wire, tile.numel, noise_of(tile, kGather), run, job.dtype).nonfinite;
    if (piece.masked >= 0) kernels::mask_scatter(span_of(piece), run, bytes, out);
    return nonfinite;
  }
  std::memset(out, 0, tile.dense_numel * bytes);
  residuals_->keep_sender(tile);
  return false;
}

// All averages of a stage are here: on to the next stage, or to the end. The first stage's tasks go
// before the second's encodes in the same queue.
void LaneExchange::end_stage(Job& job, uint8_t stage) {
  const bool last = stage == kStages - 1 || job.decodes_left[stage + 1] == 0;
  for (int i = 0; i < job.factors.count(); ++i) {
    const bool goes_on = stage == 0 && job.factors.has_second_stage(i);
    if (goes_on) codec_lane_->post({Task::Kind::kAdvance, &job, i});
    if (!goes_on && (stage == kStages - 1) == job.factors.has_second_stage(i)) {
      codec_lane_->post({Task::Kind::kFinish, &job, i});
    }
  }
  if (!last) return queue_encodes(job, stage + 1);
  if (job.factors.count() == 0) complete(job);
}

void LaneExchange::finish(Job& job, int32_t factored) {
  job.nonfinite |= job.factors.finish(factored, job.gradient, job.dtype, factor_step());
  if (--job.finishes_left == 0) complete(job);
}

void LaneExchange::complete(Job& job) {
  const int64_t bytes = element_bytes(job.dtype);
  for (const MaskedLayer& place :
       job.layout.masked()) {  // no piece says so of one without a kept element
    if (plan_->planned()[place.layer].mask->kept() > 0) continue;
    std::memset(job.gradient + place.bucket_offset * bytes, 0,
                plan_->layers()[place.layer].numel * bytes);
  }
  {
    const std::lock_guard lock(mutex_);
    job.done = true;
  }
  complete_in_order();
}

}  // namespace lgreco::engine
