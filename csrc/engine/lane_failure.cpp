// How the exchange ends: a failure is told to all ranks, or it is closed.
#include <algorithm>
#include <chrono>
#include <set>
#include <thread>

#include "core/error.h"
#include "engine/lane_exchange.h"

namespace lgreco::engine {
namespace {

// Time for the headers of a rank that gives up to leave before its process may end.
constexpr std::chrono::milliseconds kLastWords{250};
// Time for slower ranks to take what this rank owes them, averages or last words, before it closes.
constexpr std::chrono::milliseconds kGoodbye{5000};

}  // namespace

void LaneExchange::fail(const std::string& message, int culprit) {
  {
    const std::lock_guard lock(mutex_);
    if (failed_ || closed_) return;
    failed_ = true;
    culprit_ = culprit;
    why_ = message;
    failure_ = concat("compressed exchange failed on rank ", name_of(rank_), " at ", message,
                      ". Every rank stops; restart from the last checkpoint.");
    for (const auto& job : jobs_) job->abort_sends();
  }
  if (relay_.failed) relay_.failed(message, culprit);
  if (options_.watches) options_.watches->close();  // or somebody would wait for what never completes
  for_each_lane([](ReceiveLane& lane) { lane.abort(); });
  codec_lane_->post({Task::Kind::kFail});
}

std::pair<std::string, int> LaneExchange::failure() {
  const std::lock_guard lock(mutex_);
  return {why_, culprit_};
}

void LaneExchange::send_failure() {
  std::vector<Job*> active;
  // Jobs that have not begun may be rebuilt at this moment; without the lock, nothing is said of them.
  std::unique_lock call(calls_, std::try_to_lock);
  {
    const std::lock_guard lock(mutex_);
    for (size_t index = 0; index < jobs_.size(); ++index) {
      Job& job = *jobs_[index];
      if (job.active) {
        active.push_back(&job);
      } else if (call.owns_lock() &&
                 index >= begun_) {  // peers may be there already, and wait for this rank alone
        job.committed_steps = committed_steps_;
        std::fill(job.sent.begin(), job.sent.end(), 0);
        active.push_back(&job);
      }
    }
  }
  for (Job* job : active) {
    for (size_t id = 0; id < job->layout.chunks().size(); ++id) {
      if (job->active_chunk(static_cast<int32_t>(id))) send_failure_of(*job, static_cast<int32_t>(id));
    }
  }
  if (call.owns_lock()) call.unlock();
  for_each_lane([](ReceiveLane& lane) { lane.take_all(); });
  {
    const std::lock_guard lock(mutex_);
    told_ = true;
  }
  progress_.notify_all();
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
  const auto owe = [&](transports::Message& message, uint8_t& sent, int peer) {
    if (sent != 0) return;
    try {
      send(message, sent, job, id, round);
      const std::lock_guard lock(mutex_);
      last_words_.push_back({&message, name_of(peer)});
    } catch (const std::exception&) {
      sent = 1;  // this peer is the one that is lost
    }
  };
  if (!own) return owe(*job.scatter_out[id], job.sent[id], job.layout.chunks()[id].owner);
  for (int peer = 0; peer < world_size_; ++peer) {
    if (peer == rank_) continue;
    owe(job.gather_out(peer, id), job.sent[job.layout.chunks().size() + job.slot(peer, id)], peer);
  }
}

// A rank that is slower finds this one gone and would take it for the culprit. What says otherwise
// leaves only when that rank asks for it, so this one stays until the first such word has reached every
// other.
void LaneExchange::linger() {
  std::vector<LastWord> words;
  {
    std::unique_lock lock(mutex_);
    progress_.wait_for(lock, kGoodbye, [this] { return told_; });
    words = std::move(last_words_);
  }
  const auto deadline = std::chrono::steady_clock::now() + kGoodbye;
  std::set<int32_t> heard{culprit_};
  for (const LastWord& word : words) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return;
    if (!heard.insert(word.peer).second) continue;
    try {
      word.message->wait(left);
    } catch (const transports::PeerError&) {
      continue;  // gone before
    }
  }
}

void LaneExchange::close() {
  bool failed = false;
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    closed_ = true;
    failed = failed_;
  }
  progress_.notify_all();
  watchdog_->stop();
  for_each_lane([](ReceiveLane& lane) { lane.abort(); });
  if (failed) linger();
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
  for_each_lane([](ReceiveLane& lane) { lane.stop(); });
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
