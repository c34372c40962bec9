// Runs CUDA device code on the host, one fiber per thread, so that its bits can be compared without a
// GPU.
//
// Threads of a CUDA block take turns in a shuffled order and change only where they wait for each
// other, so a missing barrier shows as a wrong result in some order. Include it before the kernels.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

namespace lgreco::emulation {

struct Index {
  unsigned x = 0;
};

/// Threads that wait for each other: a warp, or the CUDA block.
struct Barrier {
  int size = 0;
  int arrived = 0;
  int generation = 0;
};

class Machine {
 public:
  static Machine& instance() {
    static Machine machine;
    return machine;
  }

  /// Runs `kernel` once for every thread of every block.
  void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
    kernel_ = &kernel;
    block_dim.x = threads;
    grid_dim.x = blocks;
    for (block_index.x = 0; block_index.x < blocks; ++block_index.x) run_block(threads);
  }

  void wait_for_warp() { wait(warps_[thread_index.x / 32]); }
  void wait_for_block() { wait(block_); }
  uint32_t* warp_slots() { return slots_.data() + thread_index.x / 32 * 32; }

  Index thread_index, block_index, block_dim, grid_dim;

 private:
  static constexpr size_t kStackBytes = 64 * 1024;

  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
    bool finished = false;
    const Barrier* awaits = nullptr;
    int generation = 0;  ///< of the barrier, when the fiber came to it

    bool may_run() const { return !finished && (awaits == nullptr || awaits->generation != generation); }
  };

  static void enter() {
    Machine& machine = instance();
    (*machine.kernel_)();
    machine.fibers_[machine.thread_index.x]->finished = true;
    machine.yield();
  }

  void run_block(unsigned threads) {
    while (fibers_.size() < threads) fibers_.push_back(std::make_unique<Fiber>());
    slots_.assign(threads, 0);
    warps_.assign(threads / 32, Barrier{.size = 32});
    block_ = {.size = static_cast<int>(threads)};
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = *fibers_[i];
      fiber.finished = false;
      fiber.awaits = nullptr;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Machine::enter, 0);
    }
    std::vector<unsigned> order(threads);
    std::iota(order.begin(), order.end(), 0U);
    for (unsigned left = threads; left > 0;) {
      std::shuffle(order.begin(), order.end(), random_);
      bool progress = false;
      for (const unsigned i : order) {
        if (!fibers_[i]->may_run()) continue;
        progress = true;
        thread_index.x = i;
        swapcontext(&scheduler_, &fibers_[i]->context);
        if (fibers_[i]->finished) --left;
      }
      if (!progress) throw std::logic_error("threads wait at a barrier that others never reach");
    }
  }

  void wait(Barrier& barrier) {
    if (++barrier.arrived == barrier.size) {
      barrier.arrived = 0;
      ++barrier.generation;
      return;
    }
    Fiber& fiber = *fibers_[thread_index.x];
    fiber.awaits = &barrier;
    fiber.generation = barrier.generation;
    yield();
  }

  void yield() { swapcontext(&fibers_[thread_index.x]->context, &scheduler_); }

  const std::function<void()>* kernel_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<uint32_t> slots_;
  std::vector<Barrier> warps_;
  Barrier block_;
  ucontext_t scheduler_{};
  std::mt19937 random_{1};
};

/// What a lane hands to the lanes of its warp is read after all have written and before any writes
/// again.
template <typename Read>
auto with_warp(uint32_t own, const Read& read) {
  Machine& machine = Machine::instance();
  uint32_t* const slots = machine.warp_slots();
  slots[machine.thread_index.x % 32] = own;
  machine.wait_for_warp();
  const auto result = read(slots);
  machine.wait_for_warp();
  return result;
}

}  // namespace lgreco::emulation

#define threadIdx (lgreco::emulation::Machine::instance().thread_index)
#define blockIdx (lgreco::emulation::Machine::instance().block_index)
#define blockDim (lgreco::emulation::Machine::instance().block_dim)
#define gridDim (lgreco::emulation::Machine::instance().grid_dim)

template <typename T>
T __shfl_xor_sync(unsigned, T value, int step) {
  static_assert(sizeof(T) == 4);
  uint32_t own;
  std::memcpy(&own, &value, 4);
  const unsigned partner = threadIdx.x % 32 ^ static_cast<unsigned>(step);
  const uint32_t theirs =
      lgreco::emulation::with_warp(own, [&](const uint32_t* slots) { return slots[partner]; });
  std::memcpy(&value, &theirs, 4);
  return value;
}

/// The value of the lane `step` lanes before, or the own one where there is none.
inline uint32_t __shfl_up_sync(unsigned, uint32_t value, int step) {
  const unsigned lane = threadIdx.x % 32,
                 from = lane >= static_cast<unsigned>(step) ? lane - step : lane;
  return lgreco::emulation::with_warp(value, [&](const uint32_t* slots) { return slots[from]; });
}

inline unsigned __ballot_sync(unsigned, bool fact) {
  return lgreco::emulation::with_warp(fact ? 1U : 0U, [](const uint32_t* slots) {
    unsigned found = 0;
    for (int lane = 0; lane < 32; ++lane) found |= slots[lane] << lane;
    return found;
  });
}

inline void __syncwarp() { lgreco::emulation::Machine::instance().wait_for_warp(); }
inline void __syncthreads() { lgreco::emulation::Machine::instance().wait_for_block(); }

inline int __popc(unsigned word) { return std::popcount(word); }
inline int __ffs(int word) { return word == 0 ? 0 : std::countr_zero(static_cast<unsigned>(word)) + 1; }

inline uint32_t atomicAdd(uint32_t* at, uint32_t value) {
  const uint32_t before = *at;
  *at += value;
  return before;
}
inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) {
  const unsigned long long before = *at;
  *at += value;
  return before;
}
inline unsigned long long atomicMin(unsigned long long* at, unsigned long long value) {
  const unsigned long long before = *at;
  *at = std::min(before, value);
  return before;
}
inline uint32_t atomicOr(uint32_t* at, uint32_t value) {
  const uint32_t before = *at;
  *at |= value;
  return before;
}
inline uint32_t atomicMax(uint32_t* at, uint32_t value) {
  const uint32_t before = *at;
  *at = before > value ? before : value;
  return before;
}
inline uint32_t atomicAnd(uint32_t* at, uint32_t value) {
  const uint32_t before = *at;
  *at &= value;
  return before;
}
