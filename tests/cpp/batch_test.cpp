// The CUDA kernels, run on the host, against the CPU kernels: the same bits for every run of a batch.
#include "cuda_emulation.h"

#include <string>

#include "kernel_cases.h"
#include "kernels/dense.h"
#include "kernels/dense_device.h"
#include "kernels/quantize_device.h"
#include "kernels/transaction_device.h"

namespace lgreco::kernels {
namespace {

constexpr uint64_t kSeed = 0x123456789ABCDEFULL;
constexpr int kRanks = 3;

void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  emulation::Machine::instance().launch(blocks, threads, kernel);
}

/// Runs of odd sizes at odd places of a bucket: what a launch is told about them, on the host.
struct Places {
  Places(int block_numel, const std::vector<int32_t>& sizes, bool with_residual,
         const std::function<int64_t(int64_t)>& wire_bytes_of) {
    int64_t bit = 8 * 16 + 5;  // the bits stand somewhere in a header
    wire_bytes = 64;
    for (size_t i = 0; i < sizes.size(); ++i) {
      bucket_numel += static_cast<int64_t>(i) % 3;
      BatchRun run{.gradient_offset = bucket_numel,
                   .wire_offset = wire_bytes,
                   .bit = bit,
                   .numel = sizes[i],
                   .first_block = static_cast<uint32_t>(7 * i),
                   .stream = static_cast<uint32_t>(100 + i)};
      if (with_residual && i % 4 != 3) {
        run.residual_offset = residual_numel;
        residual_numel += (sizes[i] + 15) / 16 * 16;
      }
      runs.push_back(run);
      bucket_numel += sizes[i];
      wire_bytes += (wire_bytes_of(sizes[i]) + 15) / 16 * 16;
      bit += 11;
    }
    block_runs = number_blocks(runs, block_numel);
    batch = {runs.data(), block_runs.data(), static_cast<uint32_t>(runs.size()),
             static_cast<uint32_t>(block_runs.size()), block_numel};
  }

  std::vector<BatchRun> runs;
  std::vector<uint32_t> block_runs;
  Batch batch;
  int64_t bucket_numel = 0, residual_numel = 0, wire_bytes = 0;
};

/// One codec's kernels on both sides. The CPU kernels take one run at a time.
struct Twins {
  virtual ~Twins() = default;
  virtual int block_numel() const = 0;
  virtual int64_t wire_bytes(int64_t numel) const = 0;
  virtual void encode(const Places&, const void* gradient, DType, const BatchFeedback&,
                      const DeviceTransaction&, uint8_t* wire) const = 0;
  virtual void reduce(const Places&, const BatchPayloads&, const BatchFeedback&,
                      const DeviceTransaction&, uint8_t* out) const = 0;
  virtual void decode(const Places&, const uint8_t* wire, void* out, DType, const BatchFeedback&,
                      DeviceTransaction&) const = 0;
  virtual Findings encode_run(const void* gradient, DType, int64_t numel, const Feedback&, const Noise&,
                              uint8_t* wire) const = 0;
  virtual void reduce_run(const uint8_t* const* wires, int64_t numel, const Feedback&, const Noise&,
                          uint8_t* out) const = 0;
  virtual Findings decode_run(const uint8_t* wire, int64_t numel, void* out, DType) const = 0;
};

constexpr float kFactor = 1.0F / kRanks;

struct QuantizeTwins final : Twins {
  explicit QuantizeTwins(const QuantizeSpec& given) : spec(given) {}
  int block_numel() const override { return spec.block_numel; }
  int64_t wire_bytes(int64_t numel) const override { return quantize_wire_bytes(spec, numel); }
  void encode(const Places& places, const void* gradient, DType dtype, const BatchFeedback& feedback,
              const DeviceTransaction& transaction, uint8_t* wire) const override {
    const Coding coding = coding_of(spec, places.batch, feedback, &transaction, kSeed);
    with_group(spec.block_numel, [&]<typename Group>(Group) {
      launch(Group::grid(places.batch.block_count), Group::kThreads,
             [&] { quantize_encode_kernel<Group>(coding, gradient, dtype, wire); });
    });
  }
  void reduce(const Places& places, const BatchPayloads& payloads, const BatchFeedback& feedback,
              const DeviceTransaction& transaction, uint8_t* out) const override {
    const Coding coding = coding_of(spec, places.batch, feedback, &transaction, kSeed);
    with_group(spec.block_numel, [&]<typename Group>(Group) {
      launch(Group::grid(places.batch.block_count), Group::kThreads,
             [&] { quantize_reduce_kernel<Group>(coding, payloads, kFactor, out); });
    });
  }
  void decode(const Places& places, const uint8_t* wire, void* out, DType dtype,
              const BatchFeedback& feedback, DeviceTransaction& transaction) const override {
    const Coding coding = coding_of(spec, places.batch, feedback, &transaction, 0);
    const int lanes_log2 = lanes_log2_of(spec.block_numel);
    launch(flat_grid(places.batch, lanes_log2), kFlatThreads,
           [&] { quantize_decode_kernel(coding, lanes_log2, wire, out, dtype, &transaction); });
  }
  Findings encode_run(const void* gradient, DType dtype, int64_t numel, const Feedback& feedback,
                      const Noise& noise, uint8_t* wire) const override {
    return quantize_encode(spec, gradient, dtype, numel, feedback, noise, wire);
  }
  void reduce_run(const uint8_t* const* wires, int64_t numel, const Feedback& feedback,
                  const Noise& noise, uint8_t* out) const override {
    quantize_reduce(spec, wires, kRanks, kFactor, numel, feedback, noise, out);
  }
  Findings decode_run(const uint8_t* wire, int64_t numel, void* out, DType dtype) const override {
    return quantize_decode(spec, wire, numel, out, dtype);
  }

  QuantizeSpec spec;
};

struct DenseTwins final : Twins {
  explicit DenseTwins(DType given) : wire_dtype(given) {}
  int block_numel() const override { return 512; }
  int64_t wire_bytes(int64_t numel) const override { return numel * element_bytes(wire_dtype); }
  void encode(const Places& places, const void* gradient, DType dtype, const BatchFeedback& feedback,
              const DeviceTransaction& transaction, uint8_t* wire) const override {
    const Copying copying = copying_of(wire_dtype, places.batch, feedback, &transaction);
    launch(flat_grid(places.batch, copying.lanes_log2), kFlatThreads,
           [&] { dense_encode_kernel(copying, gradient, dtype, wire); });
  }
  void reduce(const Places& places, const BatchPayloads& payloads, const BatchFeedback& feedback,
              const DeviceTransaction& transaction, uint8_t* out) const override {
    const Copying copying = copying_of(wire_dtype, places.batch, feedback, &transaction);
    launch(flat_grid(places.batch, copying.lanes_log2), kFlatThreads,
           [&] { dense_reduce_kernel(copying, payloads, kFactor, out); });
  }
  void decode(const Places& places, const uint8_t* wire, void* out, DType dtype,
              const BatchFeedback& feedback, DeviceTransaction& transaction) const override {
    const Copying copying = copying_of(wire_dtype, places.batch, feedback, &transaction);
    launch(flat_grid(places.batch, copying.lanes_log2), kFlatThreads,
           [&] { dense_decode_kernel(copying, wire, out, dtype, &transaction); });
  }
  Findings encode_run(const void* gradient, DType dtype, int64_t numel, const Feedback& feedback,
                      const Noise&, uint8_t* wire) const override {
    return dense_encode(wire_dtype, gradient, dtype, numel, feedback, wire);
  }
  void reduce_run(const uint8_t* const* wires, int64_t numel, const Feedback& feedback, const Noise&,
                  uint8_t* out) const override {
    dense_reduce(wire_dtype, wires, kRanks, kFactor, numel, feedback, out);
  }
  Findings decode_run(const uint8_t* wire, int64_t numel, void* out, DType dtype) const override {
    return dense_decode(wire_dtype, wire, numel, out, dtype);
  }

  DType wire_dtype;
};

bool bit_of(const Buffer& wire, int64_t bit) { return (wire.data()[bit / 8] >> (bit % 8) & 1) != 0; }

void set_bit_of(Buffer& wire, int64_t bit, bool value) {
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
        nonfinite |=
            twins_.decode_run(expected_wire.data() + run.wire_offset, run.numel, at, settings_.dtype)
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

Exchange::Settings settings_for(uint32_t seed) {
  return {.dtype = kAllDTypes[seed % 3],
          .residual_dtype = seed / 3 % 2 == 0 ? DType::kFloat32 : DType::kBFloat16,
          .with_residual = seed % 7 != 6,
          .scale = seed % 5 == 0 ? 1024.0F : 1.0F,
          .committed = seed / 2 % 2,
          .own_apart = seed % 4 != 1,
          .seed = seed};
}

std::string text_of(const QuantizeSpec& spec) {
  return concat("bits ", spec.bits, " block ", spec.block_numel,
                spec.symmetric ? " symmetric" : " minmax", spec.stochastic ? " stochastic" : " nearest",
                spec.bf16_scales ? " bf16 scales" : " fp32 scales");
}

TEST(Batch, QuantizeMatchesTheCpuKernels) {
  uint32_t seed = 0;
  for (const int block : {32, 64, 96, 128, 256, 512, 800, 1024, 2048, 4096}) {
    for (int bits = 1; bits <= 8; ++bits) {
      // Each width and block with either state of each flag; all eight combinations would take long.
      for (const unsigned flags : {seed / 2 % 8, seed / 2 % 8 ^ 7U}) {
        const QuantizeSpec spec{bits, block, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0};
        SCOPED_TRACE(text_of(spec) + " seed " + std::to_string(++seed));
        const std::vector<int32_t> sizes = {block + 1, 31, 33, 0, 2 * block, 1, block - 1};
        Exchange(QuantizeTwins(spec), sizes, settings_for(seed)).run();
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

TEST(Batch, QuantizeMatchesTheCpuKernelsForEveryType) {
  const QuantizeTwins twins({.bits = 4, .block_numel = 512, .stochastic = true});
  for (uint32_t seed = 0; seed < 42; ++seed) {
    SCOPED_TRACE(seed);
    Exchange(twins, {1500, 31, 77, 512, 9}, settings_for(seed)).run();
  }
}

TEST(Batch, DenseMatchesTheCpuKernels) {
  for (const DType wire : kAllDTypes) {
    const DenseTwins twins(wire);
    for (uint32_t seed = 0; seed < 42; ++seed) {
      SCOPED_TRACE(concat(name_of(wire), " seed ", seed));
      Exchange(twins, {1500, 31, 77, 0, 512, 9, 8}, settings_for(seed)).run();
      if (::testing::Test::HasFailure()) return;
    }
  }
}

TEST(Batch, AnInfOrNanFlagsTheStep) {
  for (const int block : {32, 256, 512, 4096}) {
    for (int flags = 0; flags < 8; ++flags) {
      Exchange::Settings settings =
          settings_for(30);  // fp32: NaNs of both sides have the same bits here
      settings.broken = true;
      const QuantizeTwins twins({4, block, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0});
      Exchange exchange(twins, {700, 31, 33, 600}, settings);
      exchange.run();
      EXPECT_TRUE(exchange.flagged());
    }
  }
}

TEST(Batch, NumberBlocksFindsTheRunOfEachBlock) {
  std::vector<BatchRun> runs(4);
  runs[0].numel = 65;
  runs[1].numel = 0;
  runs[2].numel = 64;
  runs[3].numel = 1;
  EXPECT_EQ(number_blocks(runs, 64), (std::vector<uint32_t>{0, 0, 2, 3}));
  EXPECT_EQ(runs[2].batch_block, 2U);
  EXPECT_EQ(runs[3].batch_block, 3U);
  EXPECT_THROW(number_blocks(runs, 48), ValueError);
  runs[0].wire_offset = 2;
  EXPECT_THROW(number_blocks(runs, 64), ValueError);
}

TEST(Batch, OctetsReadAndWriteEveryTypeAtEveryPlace) {
  const auto values = make_values(0, 40, 3);
  for (const DType dtype : kAllDTypes) {
    for (int first = 0; first < 9; ++first) {
      for (int count = 0; count <= kOctet; ++count) {
        Buffer in(40 * element_bytes(dtype)), out(40 * element_bytes(dtype)),
            expected(40 * element_bytes(dtype));
        fill(in, dtype, values);
        float octet[kOctet];
        load_octet(in.data(), dtype, first, count, octet);
        for (int e = 0; e < count; ++e) {
          EXPECT_EQ(octet[e], load_element(in.data(), dtype, first + e));
          store_element(expected.data(), dtype, first + e, 1.7F * octet[e]);
        }
        for (int e = count; e < kOctet; ++e) EXPECT_EQ(octet[e], 0.0F);
        for (float& value : octet) value *= 1.7F;
        store_octet(out.data(), dtype, first, count, octet);
        EXPECT_TRUE(out == expected);
        for (int e = 0; e < count; ++e) EXPECT_EQ(octet[e], load_element(out.data(), dtype, first + e));
      }
    }
  }
}

TEST(Batch, AStepIsCommittedOnceUnlessItIsFlagged) {
  DeviceTransaction transaction;
  const auto settle = [&](uint32_t begins) {
    launch(1, 1, [&] { settle_kernel(&transaction, begins); });
  };
  const auto state = [&] { return std::vector<uint32_t>{transaction.committed, transaction.step}; };
  settle(1);
  EXPECT_EQ(state(), (std::vector<uint32_t>{0, 0}));
  settle(1);
  EXPECT_EQ(state(), (std::vector<uint32_t>{1, 1}));
  flag(&transaction);
  settle(1);
  EXPECT_EQ(state(), (std::vector<uint32_t>{1, 1}));
  EXPECT_EQ(transaction.flagged, 0U);
  launch(1, 1, [&] { discard_kernel(&transaction); });
  settle(1);
  EXPECT_EQ(state(), (std::vector<uint32_t>{1, 1}));
  settle(0);
  EXPECT_EQ(state(), (std::vector<uint32_t>{0, 2}));
  settle(0);
  launch(1, 1, [&] { discard_kernel(&transaction); });  // nothing is pending: nothing to drop
  settle(1);
  EXPECT_EQ(state(), (std::vector<uint32_t>{0, 2}));
}

TEST(Batch, AFlaggedStepDeliversInf) {
  std::vector<uint16_t> bucket(1000, 7);
  DeviceTransaction transaction;
  const auto poison = [&] {
    launch(2, 64, [&] { poison_kernel<uint16_t>(&transaction, bucket.data(), 999, 0x7C00); });
  };
  poison();
  EXPECT_EQ(bucket, std::vector<uint16_t>(1000, 7));
  transaction.flagged = 1;
  poison();
  EXPECT_EQ(std::count(bucket.begin(), bucket.end(), 0x7C00), 999);
  EXPECT_EQ(bucket.back(), 7);
}

}  // namespace
}  // namespace lgreco::kernels
