// The mask kernels: every level and the CUDA ones against a scalar reference, and what a Mask knows.
#include "cuda_emulation.h"

#include "engine/mask.h"
#include "kernel_cases.h"
#include "kernels/mask.h"
#include "kernels/mask_device.h"

namespace lgreco::kernels {
namespace {

constexpr uint32_t kDensities[] = {0, 1, 10, 50, 90, 99, 100};  // per cent

/// A mask of random runs: mixed words, full ones and empty ones.
std::vector<bool> random_mask(int64_t numel, uint32_t percent, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<bool> kept(static_cast<size_t>(numel));
  for (size_t i = 0; i < kept.size();) {
    const bool whole = random() % 8 == 0, value = random() % 100 < percent;
    const size_t end = std::min(kept.size(), i + (whole ? 150 : 1));
    for (; i < end; ++i) kept[i] = value;
  }
  return kept;
}

engine::Mask mask_of(const std::vector<bool>& kept) {
  std::vector<uint8_t> bits((kept.size() + 7) / 8 + 1);
  for (size_t i = 0; i < kept.size(); ++i) {
    bits[i / 8] = static_cast<uint8_t>(bits[i / 8] | (kept[i] ? 1 : 0) << (i % 8));
  }
  return {bits.data(), static_cast<int64_t>(kept.size())};
}

/// A span of a mask with the elements that belong to it; every element has its own value.
struct Case {
  Case(const std::vector<bool>& mask_bits, int64_t first, int64_t numel, int64_t element_bytes,
       size_t misalignment = 0)
      : kept(mask_bits),
        mask(mask_of(kept)),
        span(mask.span(first, numel)),
        bytes(element_bytes),
        dense(numel * bytes, misalignment),
        run(span.kept * bytes, misalignment) {
    int64_t next = 0;
    for (int64_t i = 0; i < numel; ++i) {
      const uint32_t value = 1 + static_cast<uint32_t>(i % 60'000);
      memcpy(dense.data() + i * bytes, &value, static_cast<size_t>(bytes));
      if (kept[first + i]) memcpy(run.data() + next++ * bytes, &value, static_cast<size_t>(bytes));
    }
    EXPECT_EQ(next, span.kept);
  }

  /// The dense elements with zeros where they are pruned.
  Buffer cleared() const {
    Buffer expected(dense.bytes());
    expected.take(dense);
    for (int64_t i = 0; i < span.numel; ++i) {
      if (!kept[span.first + i]) memset(expected.data() + i * bytes, 0, static_cast<size_t>(bytes));
    }
    return expected;
  }

  std::vector<bool> kept;
  engine::Mask mask;
  MaskSpan span;
  int64_t bytes;
  Buffer dense, run;
};

template <typename Body>
void for_each_case(const Body& body) {
  uint32_t seed = 1;
  for (const int64_t bytes : {4, 2}) {
    for (const uint32_t percent : kDensities) {
      for (const int64_t numel : kSizes) {
        for (const int64_t first : {0, 1, 63, 64, 130}) {
          SCOPED_TRACE(std::to_string(bytes) + " bytes, " + std::to_string(percent) + " %, numel " +
                       std::to_string(numel) + " from " + std::to_string(first));
          Case tried(random_mask(first + numel + 70, percent, seed), first, numel, bytes,
                     seed % 5 * bytes);
          ++seed;
          body(tried);
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

TEST(Mask, EveryLevelGathersAndScattersKeptElements) {
  for (const CpuLevel level : available_levels()) {
    const WithLevel guard(level);
    SCOPED_TRACE(name_of(level));
    for_each_case([](const Case& tried) {
      Buffer run(tried.run.bytes(), 12), dense(tried.dense.bytes(), 4);
      mask_gather(tried.span, tried.dense.data(), tried.bytes, run.data());
      EXPECT_TRUE(run == tried.run);
      mask_scatter(tried.span, tried.run.data(), tried.bytes, dense.data());
      EXPECT_TRUE(dense == tried.cleared());
      EXPECT_TRUE(run.guards_hold() && dense.guards_hold());
    });
  }
}

TEST(Mask, ClearingLeavesKeptElements) {
  for_each_case([](Case& tried) {
    const Buffer expected = tried.cleared();
    mask_clear(tried.span, tried.bytes, tried.dense.data());
    EXPECT_TRUE(tried.dense == expected);
    EXPECT_TRUE(tried.dense.guards_hold());
  });
}

TEST(Mask, KnowsWhereARunsPiecesLie) {
  for (const uint32_t percent : kDensities) {
    for (const int64_t numel : kSizes) {
      const std::vector<bool> kept = random_mask(numel, percent, static_cast<uint32_t>(numel) + percent);
      const engine::Mask mask = mask_of(kept);
      int64_t next = 0;
      for (int64_t i = 0; i < numel; ++i) {
        EXPECT_EQ(mask.run_begin(i), next);
        if (!kept[i]) continue;
        if (next > 0) {
          EXPECT_EQ(mask.dense_begin(next), i);
        }
        ++next;
      }
      EXPECT_EQ(mask.kept(), next);
      EXPECT_EQ(mask.run_begin(numel), next);
      EXPECT_EQ(mask.dense_begin(0), 0);
      if (next > 0) {
        EXPECT_EQ(mask.dense_begin(next), numel);
      }
      EXPECT_EQ(mask.hash(), mask_of(kept).hash());
    }
  }
  EXPECT_NE(mask_of({true, false}).hash(), mask_of({false, true}).hash());
}

/// A mask as the CUDA exchange puts it into device memory.
struct OnDevice {
  explicit OnDevice(const engine::Mask& mask) {
    uint32_t kept = 0;
    for (const uint64_t word : mask.words()) {
      for (const auto half : {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32)}) {
        bits.push_back(half);
        before.push_back(kept);
        kept += static_cast<uint32_t>(__builtin_popcount(half));
      }
    }
    device = {bits.data(), before.data(), mask.numel()};
  }
  std::vector<uint32_t> bits, before;
  DeviceMask device;
};

template <typename Element>
void compare_with_device(const Case& tried) {
  const auto launch = [](const std::function<void()>& kernel) {
    emulation::Machine::instance().launch(3, 64, kernel);
  };
  const OnDevice mask(tried.mask);
  const auto* dense = reinterpret_cast<const Element*>(tried.dense.data());
  Buffer run(tried.run.bytes()), scattered(tried.dense.bytes()), cleared(tried.dense.bytes());
  launch([&] { mask_gather_kernel(mask.device, dense, reinterpret_cast<Element*>(run.data())); });
  EXPECT_TRUE(run == tried.run);
  launch([&] {
    mask_scatter_kernel(mask.device, reinterpret_cast<const Element*>(tried.run.data()),
                        reinterpret_cast<Element*>(scattered.data()));
  });
  EXPECT_TRUE(scattered == tried.cleared());
  cleared.take(tried.dense);
  launch([&] { mask_clear_kernel(mask.device, reinterpret_cast<Element*>(cleared.data())); });
  EXPECT_TRUE(cleared == tried.cleared());
  for (const uint32_t committed : {0U, 1U}) {
    Buffer arenas[2] = {Buffer(tried.dense.bytes()), Buffer(tried.dense.bytes())};
    for (Buffer& arena : arenas) arena.take(tried.dense);
    const DeviceTransaction transaction{.committed = committed};
    launch([&] {
      mask_clear_shadow_kernel(mask.device, reinterpret_cast<Element*>(arenas[0].data()),
                               reinterpret_cast<Element*>(arenas[1].data()), &transaction);
    });
    EXPECT_TRUE(arenas[committed] == tried.dense);
    EXPECT_TRUE(arenas[committed ^ 1] == tried.cleared());
  }
  EXPECT_TRUE(run.guards_hold() && scattered.guards_hold() && cleared.guards_hold());
}

TEST(Mask, CudaKernelsDoTheSame) {
  uint32_t seed = 1;
  for (const uint32_t percent : kDensities) {
    for (const int64_t numel : {1, 31, 33, 127, 513}) {
      const std::vector<bool> kept = random_mask(numel, percent, seed);
      compare_with_device<uint32_t>(Case(kept, 0, numel, 4));
      compare_with_device<uint16_t>(Case(kept, 0, numel, 2));
      ++seed;
    }
  }
}

}  // namespace
}  // namespace lgreco::kernels
