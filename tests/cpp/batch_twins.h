// A codec's kernels on both sides: the CUDA ones for a batch, run on the host, and the CPU ones for a
// run.
#pragma once

#include "cuda_emulation.h"

#include <functional>
#include <vector>

#include "kernels/dense.h"
#include "kernels/dense_device.h"
#include "kernels/quantize_device.h"
#include "kernels/transaction_device.h"

namespace lgreco::kernels {

inline constexpr uint64_t kSeed = 0x123456789ABCDEFULL;
inline constexpr int kRanks = 3;

inline void launch(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
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
  virtual Findings decode_run(const uint8_t* wire, int64_t numel, const Noise&, void* out,
                              DType) const = 0;
};

inline constexpr float kFactor = 1.0F / kRanks;

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
  Findings decode_run(const uint8_t* wire, int64_t numel, const Noise&, void* out,
                      DType dtype) const override {
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
  Findings decode_run(const uint8_t* wire, int64_t numel, const Noise&, void* out,
                      DType dtype) const override {
    return dense_decode(wire_dtype, wire, numel, out, dtype);
  }

  DType wire_dtype;
};

}  // namespace lgreco::kernels
