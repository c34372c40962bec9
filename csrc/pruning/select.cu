// Selection on CUDA: launches, and what CUB does with the keys that were collected.
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include <algorithm>
#include <limits>
#include <memory>

#include "core/cuda_check.h"
#include "pruning/select_cuda.h"
#include "pruning/select_device.h"

namespace lgreco::pruning {
namespace {

using kernels::CudaStream;

constexpr int64_t kMostBlocks = 2048;  // more than run at once; they take further tiles in turn
constexpr auto kNoNan = std::numeric_limits<unsigned long long>::max();

unsigned blocks_for(int64_t numel) {
  return static_cast<unsigned>(std::min(tiles_of(numel), kMostBlocks));
}

/// Device memory in stream order.
template <typename T>
class Scratch {
 public:
  Scratch(int64_t numel, CudaStream stream) : numel_(numel), stream_(stream) {
    const auto bytes = static_cast<size_t>(std::max<int64_t>(numel, 1)) * sizeof(T);
    check_cuda(cudaMallocAsync(reinterpret_cast<void**>(&data_), bytes, stream), "cudaMallocAsync");
  }
  ~Scratch() { cudaFreeAsync(data_, stream_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* data() const { return data_; }
  int64_t numel() const { return numel_; }

  void clear() { check_cuda(cudaMemsetAsync(data_, 0, bytes(), stream_), "cudaMemsetAsync"); }
  void put(const T* values) {
    check_cuda(cudaMemcpyAsync(data_, values, bytes(), cudaMemcpyHostToDevice, stream_),
               "cudaMemcpyAsync");
  }
  /// Waits for the stream.
  void get(T* values) const {
    check_cuda(cudaMemcpyAsync(values, data_, bytes(), cudaMemcpyDeviceToHost, stream_),
               "cudaMemcpyAsync");
    check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

 private:
  size_t bytes() const { return static_cast<size_t>(numel_) * sizeof(T); }

  T* data_ = nullptr;
  int64_t numel_;
  CudaStream stream_;
};

/// Calls a function of CUB twice, as it wants it: for the size of its memory, and with that.
template <typename Call>
void with_cub(CudaStream stream, const char* name, const Call& call) {
  size_t bytes = 0;
  check_cuda(call(nullptr, bytes), name);
  const Scratch<uint8_t> memory(static_cast<int64_t>(bytes), stream);
  check_cuda(call(memory.data(), bytes), name);
}

template <Order order>
class CudaPasses final : public Passes {
 public:
  CudaPasses(const std::vector<Scores>& arrays, CudaStream stream)
      : arrays_(arrays), stream_(stream), found_(1, stream) {}

  std::vector<int32_t> sample(const std::vector<SampleLine>& lines) override {
    const auto count = static_cast<int64_t>(lines.size());
    Scratch<SampleLine> on_device(count, stream_);
    Scratch<int32_t> keys(count * kLineNumel, stream_);
    on_device.put(lines.data());
    const auto blocks = static_cast<unsigned>((keys.numel() - 1) / SelectTeam::kThreads + 1);
    select_sample_kernel<order>
        <<<blocks, SelectTeam::kThreads, 0, stream_>>>(on_device.data(), count, keys.data());
    check_launch("select_sample_kernel");
    std::vector<int32_t> sampled(static_cast<size_t>(keys.numel()));
    keys.get(sampled.data());
    return sampled;
  }

  Findings scan(const Bracket& bracket, int64_t most) override {
    if (!keys_ || keys_->numel() < most) {
      keys_.reset();
      keys_ = std::make_unique<Scratch<int32_t>>(most, stream_);
    }
    DeviceFindings found{0, 0, kNoNan};
    found_.put(&found);
    int64_t before = 0;
    for (const Scores& array : arrays_) {
      if (array.numel == 0) continue;
      select_scan_kernel<order><<<blocks_for(array.numel), SelectTeam::kThreads, 0, stream_>>>(
          array, before, bracket, most, found_.data(), keys_->data());
      check_launch("select_scan_kernel");
      before += array.numel;
    }
    found_.get(&found);
    if (found.first_nan != kNoNan) refuse_nan_at(static_cast<int64_t>(found.first_nan));
    const auto inside = static_cast<int64_t>(found.inside);
    collected_ = std::min(inside, most);
    return {static_cast<int64_t>(found.from_high), collected_, inside > most};
  }

  std::pair<int32_t, int64_t> among_collected(int64_t wanted) override {
    Scratch<int32_t> sorted(collected_, stream_), key(1, stream_);
    Scratch<int64_t> above(1, stream_);
    with_cub(stream_, "cub::DeviceRadixSort", [&](void* memory, size_t& bytes) {
      return cub::DeviceRadixSort::SortKeysDescending(memory, bytes, keys_->data(), sorted.data(),
                                                      collected_, 0, 32, stream_);
    });
    select_among_kernel<<<1, 1, 0, stream_>>>(sorted.data(), wanted, key.data(), above.data());
    check_launch("select_among_kernel");
    std::pair<int32_t, int64_t> among;
    key.get(&among.first);
    above.get(&among.second);
    return among;
  }

  int digit_bits() const override { return kCudaDigitBits; }

  std::vector<int64_t> count(const Digit& digit) override {
    Scratch<unsigned long long> counts(int64_t{1} << digit.bits, stream_);
    counts.clear();
    for (const Scores& array : arrays_) {
      if (array.numel == 0) continue;
      select_count_kernel<order>
          <<<blocks_for(array.numel), SelectTeam::kThreads, 0, stream_>>>(array, digit, counts.data());
      check_launch("select_count_kernel");
    }
    std::vector<unsigned long long> found(static_cast<size_t>(counts.numel()));
    counts.get(found.data());
    return {found.begin(), found.end()};
  }

 private:
  [[noreturn]] void refuse_nan_at(int64_t element) const {
    size_t array = 0;
    while (element >= arrays_[array].numel) element -= arrays_[array++].numel;
    refuse_nan(array, element);
  }

  const std::vector<Scores>& arrays_;
  const CudaStream stream_;
  Scratch<DeviceFindings> found_;
  std::unique_ptr<Scratch<int32_t>> keys_;
  int64_t collected_ = 0;
};

template <Order order>
int64_t mark_as(const Scores& scores, int32_t key, int64_t ties, uint8_t* kept, float* weights,
                CudaStream stream) {
  if (scores.numel == 0) return ties;
  const unsigned blocks = blocks_for(scores.numel);
  const auto mark = [&](const int64_t* ties_before) {
    select_mark_kernel<order>
        <<<blocks, SelectTeam::kThreads, 0, stream>>>(scores, key, ties, ties_before, kept, weights);
    check_launch("select_mark_kernel");
  };
  if (ties == 0) {
    mark(nullptr);
    return 0;
  }
  const int64_t tiles = tiles_of(scores.numel);
  Scratch<int64_t> of_tiles(tiles + 1, stream), before(tiles + 1, stream);
  of_tiles.clear();
  select_ties_kernel<order><<<blocks, SelectTeam::kThreads, 0, stream>>>(scores, key, of_tiles.data());
  check_launch("select_ties_kernel");
  with_cub(stream, "cub::DeviceScan", [&](void* memory, size_t& bytes) {
    return cub::DeviceScan::ExclusiveSum(memory, bytes, of_tiles.data(), before.data(), tiles + 1,
                                         stream);
  });
  mark(before.data());
  int64_t all = 0;
  check_cuda(cudaMemcpyAsync(&all, before.data() + tiles, sizeof all, cudaMemcpyDeviceToHost, stream),
             "cudaMemcpyAsync");
  check_cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  return std::max<int64_t>(ties - all, 0);
}

}  // namespace

Threshold find_threshold_cuda(const std::vector<Scores>& arrays, int64_t kept, Order order,
                              CudaStream stream) {
  if (order == Order::kMagnitude) {
    CudaPasses<Order::kMagnitude> passes(arrays, stream);
    return find_threshold(passes, arrays, kept);
  }
  CudaPasses<Order::kValue> passes(arrays, stream);
  return find_threshold(passes, arrays, kept);
}

int64_t mark_kept_cuda(const Scores& scores, Order order, int32_t key, int64_t ties, uint8_t* kept,
                       float* weights, CudaStream stream) {
  return order == Order::kMagnitude
             ? mark_as<Order::kMagnitude>(scores, key, ties, kept, weights, stream)
             : mark_as<Order::kValue>(scores, key, ties, kept, weights, stream);
}

}  // namespace lgreco::pruning
