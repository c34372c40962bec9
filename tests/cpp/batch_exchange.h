// One bucket's exchange of three ranks by both sides, compared: the CUDA kernels in batches, run on the
// host, and the CPU kernels run by run.
#pragma once

#include "batch_twins.h"

#include <memory>
#include <vector>

#include "kernel_cases.h"

namespace lgreco::kernels {

inline bool bit_of(const Buffer& wire, int64_t bit) {
  return (wire.data()[bit / 8] >> (bit % 8) & 1) != 0;
}

inline void set_bit_of(Buffer& wire, int64_t bit, bool value) {
  if (value) wire.data()[bit / 8] |= static_cast<uint8_t>(1 << (bit % 8));
}

/// A whole exchange of one bucket by both sides, each with memory of its own.
class Exchange {
 public:
  struct Settings {
    DType dtype = DType::kFloat32;
    DType residual_dtype = DType::kFloat32;
    bool with_residual = true;
    float scale = 1.0F;
    uint32_t committed = 0;
    bool own_apart = true;  ///< the owner's own payload lies in its wire, not in the inbox
    bool broken = false;    ///< rank 1's gradient holds a NaN and an inf
    uint32_t seed = 1;
  };

  Exchange(const Twins& twins, const std::vector<int32_t>& sizes, const Settings& settings)
      : twins_(twins),
        settings_(settings),
        places_(twins.block_numel(), sizes, settings.with_residual,
                [&](int64_t numel) { return twins.wire_bytes(numel); }),
        transaction_{.committed = settings.committed, .step = 9},
        inbox_(places_.wire_bytes * kRanks),
        expected_inbox_(places_.wire_bytes * kRanks) {
    for (int side = 0; side < 2; ++side) {
      for (int half = 0; half < 2; ++half) {
        auto& arena = arenas_[side][half];
        arena =
            std::make_unique<Buffer>(places_.residual_numel * element_bytes(settings.residual_dtype));
        fill(*arena, settings.residual_dtype,
             make_values(half == static_cast<int>(settings.committed) ? 4 : 0, places_.residual_numel,
                         settings.seed + half));
      }
    }
  }

  void run() {
    for (int rank = 0; rank < kRanks; ++rank) encode(rank);
    Buffer out(places_.wire_bytes), expected_out(places_.wire_bytes);
    reduce(out, expected_out);
    decode(out, expected_out);
  }

  bool flagged() const { return transaction_.flagged != 0; }

 private:
  BatchFeedback feedback() {
    if (!settings_.with_residual) return {};
    return {{arenas_[0][0]->data(), arenas_[0][1]->data()}, settings_.residual_dtype, &settings_.scale};
  }

  Feedback feedback_of_run(const BatchRun& run) {
    if (run.residual_offset < 0) return {};
    const int64_t bytes = run.residual_offset * element_bytes(settings_.residual_dtype);
    return {.in = arenas_[1][settings_.committed]->data() + bytes,
            .out = arenas_[1][settings_.committed ^ 1]->data() + bytes,
            .dtype = settings_.residual_dtype,
            .scale = settings_.scale,
            .inverse_scale = 1.0F / settings_.scale};
  }

  Noise noise_of(const BatchRun& run) const {
    return {
        .seed = kSeed, .step = transaction_.step, .stream = run.stream, .first_block = run.first_block};
  }

  void keep(const BatchRun& run) {
    const Feedback places = feedback_of_run(run);
    if (places.in != nullptr)
      memcpy(places.out, places.in, run.numel * element_bytes(settings_.residual_dtype));
  }

  /// The second run is zero on every rank, the third on all but the last.
  std::vector<float> gradient_of(int rank) const {
    auto values = make_values(static_cast<int>((settings_.seed + rank) % kValueKinds),
                              places_.bucket_numel, settings_.seed * 10 + rank);
    for (size_t i = 1; i < std::min<size_t>(places_.runs.size(), 3); ++i) {
      const BatchRun& run = places_.runs[i];
      if (i == 2 && rank == kRanks - 1) continue;
      std::fill_n(values.begin() + run.gradient_offset, run.numel, i == 1 ? -0.0F : 0.0F);
    }
    if (settings_.broken && rank == 1) {
      values[places_.runs[0].gradient_offset] = NAN;
      values[places_.runs.back().gradient_offset + places_.runs.back().numel - 1] = -INFINITY;
    }
    return values;
  }

  void encode(int rank) {
    Buffer gradient(places_.bucket_numel * element_bytes(settings_.dtype));
    fill(gradient, settings_.dtype, gradient_of(rank));
    Buffer wire(places_.wire_bytes), expected(places_.wire_bytes);
    launch(1, 32, [&] { clear_bits_kernel(places_.batch, reinterpret_cast<uint32_t*>(wire.data())); });
    twins_.encode(places_, gradient.data(), settings_.dtype, feedback(), transaction_, wire.data());
    for (const BatchRun& run : places_.runs) {
      expected.data()[run.bit / 8] &= static_cast<uint8_t>(~(1 << (run.bit % 8)));
      const Findings findings = twins_.encode_run(
          gradient.data() + run.gradient_offset * element_bytes(settings_.dtype), settings_.dtype,
          run.numel, feedback_of_run(run), noise_of(run), expected.data() + run.wire_offset);
      set_bit_of(expected, run.bit, findings.nonzero);
    }
    EXPECT_TRUE(wire == expected) << "wire of rank " << rank;
    EXPECT_TRUE(wire.guards_hold());
    expect_same_residuals("encode");
    memcpy(inbox_.data() + rank * places_.wire_bytes, wire.data(), places_.wire_bytes);
    memcpy(expected_inbox_.data() + rank * places_.wire_bytes, wire.data(), places_.wire_bytes);
  }

  void reduce(Buffer& out, Buffer& expected) {
    constexpr int kOwn = 1;
    BatchPayloads payloads{.inbox = inbox_.data(), .stride_bytes = places_.wire_bytes, .count = kRanks};
    const uint8_t* own = inbox_.data() + kOwn * places_.wire_bytes;
    memcpy(out.data(), own, places_.wire_bytes);
    memcpy(expected.data(), own, places_.wire_bytes);
    if (settings_.own_apart) {
      payloads.own_rank = kOwn;
      payloads.own = out.data();
      memset(inbox_.data() + kOwn * places_.wire_bytes, 0xFF, places_.wire_bytes);  // must not be read
    }
    twins_.reduce(places_, payloads, feedback(), transaction_, out.data());
    for (const BatchRun& run : places_.runs) {
      const uint8_t* wires[kRanks];
      bool wanted = false;
      for (int rank = 0; rank < kRanks; ++rank) {
        const uint8_t* payload = expected_inbox_.data() + rank * places_.wire_bytes;
        wires[rank] = payload + run.wire_offset;
        wanted |= (payload[run.bit / 8] >> (run.bit % 8) & 1) != 0;
      }
      if (!wanted) {
        keep(run);
        continue;
      }
      set_bit_of(expected, run.bit, true);
      twins_.reduce_run(wires, run.numel, feedback_of_run(run), noise_of(run),
                        expected.data() + run.wire_offset);
    }
    EXPECT_TRUE(out == expected) << "wire of the sum";
    EXPECT_TRUE(out.guards_hold());
    expect_same_residuals("reduce");
  }

  void decode(const Buffer& wire, const Buffer& expected_wire) {
    Buffer out(places_.bucket_numel * element_bytes(settings_.dtype));
    Buffer expected(places_.bucket_numel * element_bytes(settings_.dtype));
    twins_.decode(places_, wire.data(), out.data(), settings_.dtype, feedback(), transaction_);
    bool nonfinite = false;
    for (const BatchRun& run : places_.runs) {
      uint8_t* at = expected.data() + run.gradient_offset * element_bytes(settings_.dtype);
      if (bit_of(expected_wire, run.bit)) {
        nonfinite |= twins_
                         .decode_run(expected_wire.data() + run.wire_offset, run.numel, noise_of(run),
                                     at, settings_.dtype)
                         .nonfinite;
      } else {
        memset(at, 0, run.numel * element_bytes(settings_.dtype));
        keep(run);
      }
    }
    EXPECT_TRUE(out == expected) << "decoded";
    EXPECT_TRUE(out.guards_hold());
    EXPECT_EQ(flagged(), nonfinite);
    expect_same_residuals("decode");
  }

  void expect_same_residuals(const char* after) {
    for (int half = 0; half < 2; ++half) {
      EXPECT_TRUE(*arenas_[0][half] == *arenas_[1][half]) << "residual " << half << " after " << after;
      EXPECT_TRUE(arenas_[0][half]->guards_hold());
    }
  }

  const Twins& twins_;
  const Settings settings_;
  const Places places_;
  DeviceTransaction transaction_;
  Buffer inbox_, expected_inbox_;
  std::unique_ptr<Buffer> arenas_[2][2];  ///< [kernels on the host, CPU kernels][half]
};

}  // namespace lgreco::kernels
