// Snapshots for the slow path: setting watches, handing over what was seen.
#include "engine/watches.h"

#include <ATen/ops/empty.h>

namespace lgreco::engine {

void Watches::watch(uint64_t step, const std::vector<int32_t>& layers) {
  const std::lock_guard lock(mutex_);
  const auto count = static_cast<int32_t>(numels_.size());
  for (const int32_t layer : layers) {
    require(layer >= 0 && layer < count, "a watched layer must be 0..", count - 1, ", got ", layer);
  }
  std::shared_ptr<Snapshot>& snapshot = waiting_[step];
  if (!snapshot) {
    snapshot = std::make_shared<Snapshot>();
    snapshot->step = step;
    snapshot->slots.assign(numels_.size(), -1);
  }
  for (const int32_t layer : layers) {
    if (snapshot->slots[layer] >= 0) continue;
    snapshot->slots[layer] = static_cast<int32_t>(snapshot->layers.size());
    snapshot->layers.push_back(layer);
    snapshot->values.push_back(at::empty({numels_[layer]}, at::kFloat));
    snapshot->delivered.push_back(at::empty({numels_[layer]}, at::kFloat));
    snapshot->owed.emplace_back();
    snapshot->owed_offsets.push_back(0);
  }
}

void Watches::reset(std::vector<int64_t> numels) {
  const std::lock_guard lock(mutex_);
  numels_ = std::move(numels);
  waiting_.clear();
}

void Watches::forget() {
  const std::lock_guard lock(mutex_);
  waiting_.clear();
}

std::shared_ptr<Snapshot> Watches::next() {
  std::unique_lock lock(mutex_);
  complete_.wait(lock, [this] { return closed_ || !done_.empty(); });
  if (done_.empty()) return nullptr;
  std::shared_ptr<Snapshot> snapshot = std::move(done_.front());
  done_.pop_front();
  lock.unlock();
  if (snapshot->fetch) snapshot->fetch(*snapshot);
  return snapshot;
}

void Watches::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  complete_.notify_all();
}

std::shared_ptr<Snapshot> Watches::begin(uint64_t step) {
  const std::lock_guard lock(mutex_);
  waiting_.erase(waiting_.begin(), waiting_.lower_bound(step));
  const auto found = waiting_.find(step);
  if (found == waiting_.end()) return nullptr;
  std::shared_ptr<Snapshot> snapshot = std::move(found->second);
  waiting_.erase(found);
  return snapshot;
}

void Watches::finish(const std::shared_ptr<Snapshot>& snapshot, bool repeated) {
  {
    const std::lock_guard lock(mutex_);
    if (repeated) {
      waiting_[snapshot->step] = snapshot;
    } else {
      done_.push_back(snapshot);
    }
  }
  complete_.notify_all();
}

}  // namespace lgreco::engine
