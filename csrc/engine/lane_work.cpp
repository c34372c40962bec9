// What the lanes do with a chunk: encode, reduce, decode; and how a failure is told to all ranks.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "core/error.h"
#include "engine/lane_exchange.h"
#include "engine/replicas.h"

namespace lgreco::engine {
namespace {

constexpr std::chrono::milliseconds kUntilWoken = std::chrono::hours(24 * 365);
// Time for the headers of a rank that gives up to leave before its process may end.
constexpr std::chrono::milliseconds kLastWords{250};
// Time for slower ranks to take what this rank owes them before it closes.
constexpr std::chrono::milliseconds kGoodbye{5000};

bool bit(const uint32_t* bits, int64_t i) { return (bits[i / 32] >> (i % 32) & 1U) != 0; }

void set_bit(uint32_t* bits, int64_t i, bool value) {
  const uint32_t mask = 1U << (i % 32);
  bits[i / 32] = value ? bits[i / 32] | mask : bits[i / 32] & ~mask;
}

// A network's own words do not say with which rank something went wrong.
template <typename Call>
void naming_peer(const Job& job, const Call& call) {
  try {
    call();
  } catch (const transports::PeerError& error) {
    throw transports::PeerError(
        concat("bucket ", job.bucket, ": rank ", error.peer(), " is lost: ", error.what()),
        error.peer());
  }
}

}  // namespace

void LaneExchange::work(const Task& task) {
  if (task.kind == Task::Kind::kFail) return send_failure();
  {
    const std::lock_guard lock(mutex_);
    if (failed_ || closed_) return;
  }
  try {
    switch (task.kind) {
      case Task::Kind::kBegin: return begin();
      case Task::Kind::kEncode: return encode(*task.job, task.chunk, task.last_of_index);
      case Task::Kind::kReduce: return reduce(*task.job, task.chunk);
      case Task::Kind::kDecode: return decode(*task.job, task.chunk);
      case Task::Kind::kFail: return;
    }
  } catch (const std::exception& error) {
    const auto* lost = dynamic_cast<const transports::PeerError*>(&error);
    fail(concat("step ", attempted_steps_, ": ", error.what()), lost != nullptr ? lost->peer() : rank_);
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
  if (header.failed != 0) {
    const std::string who =
        header.culprit == peer ? concat("rank ", peer, " failed")
                               : concat("rank ", header.culprit, " failed or is lost, says rank ", peer);
    throw transports::PeerError(concat("bucket ", job.bucket, ": ", who), header.culprit);
  }
  ensure(header.plan == plan_->fingerprint(), "rank ", peer,
         " follows another plan than this rank; configurations must be the same on all ranks");
  ensure(header.step == static_cast<uint32_t>(attempted_steps_) && header.bucket == job.bucket &&
             header.round == round && header.chunk == static_cast<uint32_t>(chunk),
         "rank ", peer, " is at step ", header.step, ", bucket ", header.bucket, ", this rank at step ",
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
    throw transports::PeerError(concat("rank ", peer, " holds other parameters than rank ", right,
                                       " (check_replicas_every): replicas have diverged"),
                                peer);
  }
}

void LaneExchange::send(transports::Message& message, uint8_t& sent, const Job& job, int32_t chunk,
                        Round round) {
  naming_peer(job, [&] { message.send(tag_of(job, chunk, round)); });
  sent = 1;
  sent_bytes_ += job.layout.chunks()[chunk].bytes;
}

void LaneExchange::encode(Job& job, int32_t id, bool last_of_index) {
  const Chunk& chunk = job.layout.chunks()[id];
  const bool own = chunk.owner == rank_;
  // The last step's sends from this memory are over, or nearly.
  naming_peer(job, [&] {
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
    const auto findings = plan_->codec_of(tile).encode(
        job.gradient + piece.bucket_offset * element_bytes(job.dtype), job.dtype, tile.numel,
        residuals_->sender(tile, scale_), noise_of(tile, kScatter), wire + piece.wire_offset);
    set_bit(bits_of(wire), i, findings.nonzero);
  }
  if (!own) send(*job.scatter_out[id], job.sent[id], job, id, kScatter);
  if (last_of_index) expect_gather(job, chunk.index);
  if (own) arrived(job, id);
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
      plan_->codec_of(tile).reduce(payloads_.data(), world_size_, factor, tile.numel,
                                   residuals_->owner(tile, scale_), noise_of(tile, kGather),
                                   out + piece.wire_offset);
    } else {
      residuals_->keep_owner(tile);
    }
  }
  write_header(job, id, kGather);
  for (int turn = 1; turn < world_size_; ++turn) {
    const int peer = (rank_ + turn) % world_size_;
    const size_t slot = job.slot(peer, id);
    send(job.gather_out(peer, id), job.sent[job.layout.chunks().size() + slot], job, id, kGather);
  }
  codec_lane_->post({Task::Kind::kDecode, &job, id});
}

void LaneExchange::decode(Job& job, int32_t id) {
  if (id >= 0) {
    const Chunk& chunk = job.layout.chunks()[id];
    const uint8_t* wire = job.wire_of(chunk);
    if (chunk.owner != rank_) check_header(job, id, kGather, chunk.owner, wire);
    for (int32_t i = 0; i < chunk.piece_count; ++i) {
      const Piece& piece = job.layout.pieces()[chunk.first_piece + i];
      const Tile& tile = plan_->tiles()[piece.tile];
      uint8_t* out = job.gradient + piece.bucket_offset * element_bytes(job.dtype);
      if (bit(bits_of(wire), i)) {
        job.nonfinite |=
            plan_->codec_of(tile)
                .decode(wire + piece.wire_offset, tile.numel, noise_of(tile, kGather), out, job.dtype)
                .nonfinite;
      } else {  // zero on every rank: nothing was coded, nothing was left out
        std::memset(out, 0, tile.numel * element_bytes(job.dtype));
        residuals_->keep_sender(tile);
      }
    }
    if (--job.decodes_left > 0) return;
  }
  {
    const std::lock_guard lock(mutex_);
    job.done = true;
  }
  complete_in_order();
}

void LaneExchange::fail(const std::string& message, int culprit) {
  {
    const std::lock_guard lock(mutex_);
    if (failed_ || closed_) return;
    failed_ = true;
    culprit_ = culprit;
    failure_ = concat("compressed exchange failed on rank ", rank_, " at ", message,
                      ". Every rank stops; restart from the last checkpoint.");
    for (const auto& job : jobs_) job->abort_sends();
  }
  scatter_lane_->abort();
  gather_lane_->abort();
  codec_lane_->post({Task::Kind::kFail});
}

void LaneExchange::send_failure() {
  std::vector<Job*> active;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& job : jobs_) {
      if (job->active) active.push_back(job.get());
    }
  }
  for (Job* job : active) {
    for (size_t id = 0; id < job->layout.chunks().size(); ++id) {
      send_failure_of(*job, static_cast<int32_t>(id));
    }
  }
  std::this_thread::sleep_for(kLastWords);
  std::vector<FuturePtr> futures;
  {
    const std::lock_guard lock(mutex_);
    for (Job* job : active) {
      if (job->future) futures.push_back(std::move(job->future));
      job->active = false;
    }
    active_jobs_ = 0;
  }
  progress_.notify_all();
  for (const FuturePtr& future : futures) {
    future->setError(std::make_exception_ptr(Error(failure_)));
  }
}

// In place of every message that this rank still owes for a chunk: a header that says who is lost.
// But what some have been sent stays as it is, since it may still be leaving from this memory.
void LaneExchange::send_failure_of(Job& job, int32_t id) {
  const bool own = job.layout.chunks()[id].owner == rank_;
  const Round round = own ? kGather : kScatter;
  const auto first =
      job.sent.begin() +
      static_cast<int64_t>(own ? job.layout.chunks().size() + job.slot(0, id) : static_cast<size_t>(id));
  if (std::all_of(first, first + (own ? world_size_ : 1), [](uint8_t sent) { return sent == 0; })) {
    write_header(job, id, round);
  }
  const auto owe = [&](transports::Message& message, uint8_t& sent) {
    try {
      if (sent == 0) send(message, sent, job, id, round);
    } catch (const std::exception&) {
      sent = 1;  // this peer is the one that is lost
    }
  };
  if (!own) return owe(*job.scatter_out[id], job.sent[id]);
  for (int peer = 0; peer < world_size_; ++peer) {
    if (peer == rank_) continue;
    owe(job.gather_out(peer, id), job.sent[job.layout.chunks().size() + job.slot(peer, id)]);
  }
}

void LaneExchange::close() {
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    closed_ = true;
  }
  progress_.notify_all();
  watchdog_->stop();
  scatter_lane_->abort();
  gather_lane_->abort();
  std::unique_lock call(calls_, std::try_to_lock);
  if (!call.owns_lock()) {  // the training thread is within a call: let nothing hold it there
    {
      const std::lock_guard lock(mutex_);
      for (const auto& job : jobs_) job->abort_sends();
    }
    call.lock();
  }
  std::vector<Job*> idle;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& job : jobs_) {
      if (job->active || failed_) {
        job->abort_sends();
      } else {
        idle.push_back(job.get());
      }
    }
  }
  for (Job* job : idle) job->finish_sends(kGoodbye);  // a slower rank may wait for the last averages
  codec_lane_->stop();
  scatter_lane_->stop();
  gather_lane_->stop();
  progress_.notify_all();
  for (const auto& job : jobs_) {
    if (job->active && job->future) {
      job->future->setError(std::make_exception_ptr(
          Error("the compressed exchange was closed while a bucket was in flight")));
    }
  }
  jobs_.clear();
  transport_.reset();
}

}  // namespace lgreco::engine
