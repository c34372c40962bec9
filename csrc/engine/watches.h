// Snapshots for the slow path: what chosen layers held before a step's exchange, and what it delivered.
//
// The slow path says beforehand which layers of which step it wants and waits for them in a thread of
// its own; the exchange copies them in passing. Memory is taken when a watch is set, not in the step.
// Of a masked layer the run is copied: what is pruned is neither measured nor exchanged.
#pragma once

#include <ATen/core/Tensor.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "core/error.h"

namespace lgreco::engine {

/// Tensors are fp32, flat, on the CPU, in the residual's scale.
struct Snapshot {
  uint64_t step = 0;                  ///< steps committed before it
  std::vector<int32_t> layers;        ///< ids
  std::vector<int32_t> slots;         ///< by layer id: index in the vectors below, -1: not watched
  std::vector<at::Tensor> values;     ///< this rank's gradient + residual
  std::vector<at::Tensor> delivered;  ///< what the exchange put in the gradient's place
  std::vector<at::Tensor> owed;       ///< owner's residual of what this rank owns; undefined: none
  std::vector<int64_t> owed_offsets;  ///< its first element within the layer
  bool dropped = false;               ///< an inf or NaN: what was delivered means nothing
  /// Brings the tensors to the CPU where they are elsewhere; called once, in the slow path's thread.
  std::function<void(Snapshot&)> fetch;
};

class Watches {
 public:
  /// `numels`: elements of each layer that are exchanged.
  explicit Watches(std::vector<int64_t> numels) : numels_(std::move(numels)) {}

  /// Asks for a snapshot of `layers` in the step that begins after `step` committed ones. Watches of one
  /// step add up. Throws ValueError for a layer that is not there.
  void watch(uint64_t step, const std::vector<int32_t>& layers);
  /// Other elements are exchanged from the next step on: forgets the watches that were set.
  void reset(std::vector<int64_t> numels);
  /// Forgets the watches that were set.
  void forget();
  /// The next snapshot in order of completion; waits. Null after close().
  std::shared_ptr<Snapshot> next();
  /// Wakes who waits; what is complete can still be fetched.
  void close();

  /// The snapshot to fill in the step that begins now, or null. Watches of earlier steps are forgotten.
  std::shared_ptr<Snapshot> begin(uint64_t step);
  /// The step is over. One that was dropped is watched again when it is repeated.
  void finish(const std::shared_ptr<Snapshot>& snapshot, bool repeated);

 private:
  std::mutex mutex_;
  std::vector<int64_t> numels_;
  std::condition_variable complete_;
  std::map<uint64_t, std::shared_ptr<Snapshot>> waiting_;
  std::deque<std::shared_ptr<Snapshot>> done_;
  bool closed_ = false;
};

}  // namespace lgreco::engine
