// The factored layers of a bucket on CUDA: what engine/factors.h does, enqueued on a stream.
//
// The arithmetic that every rank repeats is lgreco's own and gives the CPU's bits; the two products,
// whose results are exchanged, are cuBLAS's through ATen, equal shapes batched.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "engine/layout.h"
#include "engine/plan.h"
#include "engine/residuals.h"
#include "kernels/lowrank_cuda.h"
#include "kernels/lowrank_warm.h"

namespace lgreco::engine {

/// Structs in device memory.
template <typename T>
struct DeviceArray {
  at::Tensor memory;
  uint32_t count = 0;
  const T* data() const { return static_cast<const T*>(memory.const_data_ptr()); }
};

/// Which bits of a group's wire say whether a factored layer has a gradient.
struct LayerBits {
  DeviceArray<kernels::BitCopy> to_wire;  ///< layer's bit -> every run's
  DeviceArray<kernels::BitCopy> agreed;   ///< one run's -> layer's
};

/// Where a step's launches find what they need.
struct StreamStep {
  const Residuals& residuals;
  const float* scale = nullptr;  ///< loss scale, in device memory; null: 1
  kernels::DeviceTransaction* transaction = nullptr;
  uint64_t steps_begun = 0;  ///< decides whose turn it is
  uint64_t seed = 0;
  kernels::CudaStream stream = nullptr;
};

/// Where the elements of a bucket lie: in its own memory, and in that of masked layers' runs.
struct StreamElements {
  void* bucket = nullptr;
  void* runs = nullptr;
  DType dtype = DType::kFloat32;
};

class StreamFactors {
 public:
  StreamFactors(const Plan& plan, const Layout& layout, at::Device device);

  bool empty() const { return works_.empty(); }

  /// M of every layer, its bit, and the first factor to be exchanged.
  void project(const StreamElements& elements, const StreamStep& step);
  /// The second factor to be exchanged, from the first one's average.
  void advance(const StreamStep& step);
  /// The gradients, the residuals and the next step's warm starts.
  void finish(const StreamElements& elements, const StreamStep& step);

  /// What is encoded, and where averages are decoded to; a piece's offset counts from here.
  const float* values() const { return region(kValue); }
  float* means() const { return region(kMean); }
  kernels::BatchFeedback sender_error() const { return error(kError); }
  kernels::BatchFeedback owner_error() const { return error(kOwnerError); }
  /// A bit a factored layer, in order: whether it has a gradient on this rank, then on any.
  uint8_t* bits() const { return empty() ? nullptr : static_cast<uint8_t*>(bits_.mutable_data_ptr()); }

  int64_t bytes() const;

 private:
  enum Region { kValue, kMean, kError, kOwnerError };
  struct Work {
    FactoredLayer place;
    const PlannedLayer* planned = nullptr;
    int64_t matrix_offset = 0;
  };
  /// Matrices whose elements lie in one memory.
  struct Matrices {
    Matrices(std::vector<kernels::LowRankRun> matrices, at::Device device);
    kernels::LowRankBatch batch() const;
    DeviceArray<kernels::LowRankRun> runs;
    DeviceArray<uint32_t> tile_runs;
  };
  /// What depends on whose turn it is.
  struct TurnArrays {
    DeviceArray<kernels::WarmColumn> load, store;
    DeviceArray<kernels::LowRankFactor> alternating;  ///< bases to orthonormalise
    std::vector<Matrices> matrices;                   ///< in the bucket, among the runs
  };

  float* region(Region which) const { return memory_.mutable_data_ptr<float>() + which * factor_numel_; }
  kernels::BatchFeedback error(Region which) const;
  TurnArrays arrays_of(Turn turn, at::Device device);
  void multiply(bool transposed, Turn turn, bool alternating);
  const TurnArrays& arrays(uint64_t steps) const { return turns_[steps % 2]; }

  std::vector<Work> works_;
  int64_t factor_numel_ = 0;
  at::Tensor memory_;  ///< fp32, [4, factor_numel]
  at::Tensor workspace_, bits_;
  TurnArrays turns_[2];                                 ///< by steps % 2
  DeviceArray<kernels::LowRankFactor> first_averages_;  ///< P of those that have a second stage
};

}  // namespace lgreco::engine
