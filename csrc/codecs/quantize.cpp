// The codec that quantises by blocks to 1..8 bits.
#include "codecs/quantize.h"

#include "core/error.h"
#include "kernels/quantize.h"

namespace lgreco::codecs {
namespace {

class Quantize final : public Codec {
 public:
  explicit Quantize(const kernels::QuantizeSpec& spec) : spec_(spec) {}

  int64_t block_numel() const override { return spec_.block_numel; }
  int64_t wire_bytes(int64_t numel) const override { return kernels::quantize_wire_bytes(spec_, numel); }
  bool lossless(DType) const override { return false; }

  Findings encode(const void* gradient, DType dtype, int64_t numel, const Feedback& feedback,
                  const Noise& noise, uint8_t* wire) const override {
    return kernels::quantize_encode(spec_, gradient, dtype, numel, feedback, noise, wire);
  }
  Findings reduce(const uint8_t* const* wires, int count, float factor, int64_t numel,
                  const Feedback& feedback, const Noise& noise, uint8_t* out) const override {
    return kernels::quantize_reduce(spec_, wires, count, factor, numel, feedback, noise, out);
  }
  Findings decode(const uint8_t* wire, int64_t numel, const Noise&, void* out,
                  DType dtype) const override {
    return kernels::quantize_decode(spec_, wire, numel, out, dtype);
  }

  void encode_batch(const kernels::Batch& batch, const void* gradient, DType dtype,
                    const kernels::BatchFeedback& feedback,
                    const kernels::DeviceTransaction* transaction, uint64_t seed, uint8_t* wire,
                    kernels::CudaStream stream) const override {
    kernels::batch_quantize_encode(spec_, batch, gradient, dtype, feedback, transaction, seed, wire,
                                   stream);
  }
  void reduce_batch(const kernels::Batch& batch, const kernels::BatchPayloads& payloads, float factor,
                    const kernels::BatchFeedback& feedback,
                    const kernels::DeviceTransaction* transaction, uint64_t seed, uint8_t* out,
                    kernels::CudaStream stream) const override {
    kernels::batch_quantize_reduce(spec_, batch, payloads, factor, feedback, transaction, seed, out,
                                   stream);
  }
  void decode_batch(const kernels::Batch& batch, const uint8_t* wire, void* out, DType dtype,
                    const kernels::BatchFeedback& feedback, kernels::DeviceTransaction* transaction,
                    uint64_t, kernels::CudaStream stream) const override {
    kernels::batch_quantize_decode(spec_, batch, wire, out, dtype, feedback, transaction, stream);
  }

 private:
  kernels::QuantizeSpec spec_;
};

bool one_of(const Choice& choice, const char* key, const char* off, const char* on) {
  const std::string& value = choice.text_of(key);
  require(value == off || value == on, key, " must be ", off, " or ", on, ", got '", value, "'");
  return value == on;
}

}  // namespace

std::unique_ptr<Codec> make_quantize(const Choice& choice) {
  kernels::QuantizeSpec spec;
  spec.bits = choice.integer_of("bits", 1, 8);
  spec.block_numel = choice.integer_of("block", 32, 4096);
  require(spec.block_numel % 32 == 0, "block must be a multiple of 32, got ", spec.block_numel);
  spec.grid = kernels::grid_named(choice.text_of("grid"));
  spec.stochastic = one_of(choice, "rounding", "nearest", "stochastic");
  spec.bf16_scales = one_of(choice, "scales", "fp32", "bf16");
  return std::make_unique<Quantize>(spec);
}

}  // namespace lgreco::codecs
