// Checked CUDA calls, and events and streams that free themselves.
#pragma once

#include <cuda_runtime_api.h>

#include <source_location>
#include <utility>

#include "core/error.h"

namespace lgreco {

/// Throws Error with the call, CUDA's code and the place unless `status` is success.
inline void check_cuda(cudaError_t status, const char* call,
                       const std::source_location place = std::source_location::current()) {
  if (status == cudaSuccess) return;
  throw Error(concat(call, " failed: ", cudaGetErrorName(status), " (", static_cast<int>(status), ", ",
                     cudaGetErrorString(status), ") at ", place.file_name(), ":", place.line()));
}

/// After a kernel launch: throws where the launch itself was refused. What a kernel does wrong while
/// it runs shows at a later call.
inline void check_launch(const char* kernel,
                         const std::source_location place = std::source_location::current()) {
  check_cuda(cudaGetLastError(), kernel, place);
}

/// A point in a stream that other streams can wait for.
class CudaEvent {
 public:
  explicit CudaEvent(bool timing = false) {
    check_cuda(cudaEventCreateWithFlags(&event_, timing ? cudaEventDefault : cudaEventDisableTiming),
               "cudaEventCreateWithFlags");
  }
  ~CudaEvent() {
    if (event_ != nullptr) (void)cudaEventDestroy(event_);  // a destructor has nobody to tell
  }
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }

  void record(cudaStream_t stream) { check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  /// Work put into `stream` from now on runs after what was recorded; the host does not wait.
  void block(cudaStream_t stream) const {
    check_cuda(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
  }
  void synchronize() const { check_cuda(cudaEventSynchronize(event_), "cudaEventSynchronize"); }
  /// Whether everything recorded has run.
  bool done() const {
    const cudaError_t status = cudaEventQuery(event_);
    if (status != cudaErrorNotReady) check_cuda(status, "cudaEventQuery");
    return status == cudaSuccess;
  }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

/// A stream of its own, which does not synchronise with the default stream.
class CudaStreamOwner {
 public:
  explicit CudaStreamOwner(int priority = 0) {
    check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, priority),
               "cudaStreamCreateWithPriority");
  }
  ~CudaStreamOwner() {
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);  // a destructor has nobody to tell
  }
  CudaStreamOwner(CudaStreamOwner&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  CudaStreamOwner& operator=(CudaStreamOwner&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }

  void synchronize() const { check_cuda(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Makes `device` the thread's current one until the end of the scope.
class CudaDeviceGuard {
 public:
  explicit CudaDeviceGuard(int device) {
    check_cuda(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check_cuda(cudaSetDevice(device), "cudaSetDevice");
  }
  ~CudaDeviceGuard() { (void)cudaSetDevice(before_); }
  CudaDeviceGuard(const CudaDeviceGuard&) = delete;
  CudaDeviceGuard& operator=(const CudaDeviceGuard&) = delete;

 private:
  int before_ = 0;
};

}  // namespace lgreco
