// The codecs that send a fixed share of each block: topk and randomk.
#include "codecs/sparse.h"

#include "core/error.h"
#include "kernels/sparse.h"

namespace lgreco::codecs {
namespace {

class Sparse final : public Codec {
 public:
  explicit Sparse(const kernels::SparseSpec& spec) : spec_(spec) {}

  int64_t block_numel() const override { return spec_.block_numel; }
  int64_t wire_bytes(int64_t numel) const override { return kernels::sparse_wire_bytes(spec_, numel); }
  bool lossless(DType) const override { return false; }

  Findings encode(const void* gradient, DType dtype, int64_t numel, const Feedback& feedback,
                  const Noise& noise, uint8_t* wire) const override {
    return kernels::sparse_encode(spec_, gradient, dtype, numel, feedback, noise, wire);
  }
  Findings reduce(const uint8_t* const* wires, int count, float factor, int64_t numel,
                  const Feedback& feedback, const Noise& noise, uint8_t* out) const override {
    return kernels::sparse_reduce(spec_, wires, count, factor, numel, feedback, noise, out);
  }
  Findings decode(const uint8_t* wire, int64_t numel, const Noise& noise, void* out,
                  DType dtype) const override {
    return kernels::sparse_decode(spec_, wire, numel, noise, out, dtype);
  }

  void encode_batch(const kernels::Batch& batch, const void* gradient, DType dtype,
                    const kernels::BatchFeedback& feedback,
                    const kernels::DeviceTransaction* transaction, uint64_t seed, uint8_t* wire,
                    kernels::CudaStream stream) const override {
    kernels::batch_sparse_encode(spec_, batch, gradient, dtype, feedback, transaction, seed, wire,
                                 stream);
  }
  void reduce_batch(const kernels::Batch& batch, const kernels::BatchPayloads& payloads, float factor,
                    const kernels::BatchFeedback& feedback,
                    const kernels::DeviceTransaction* transaction, uint64_t seed, uint8_t* out,
                    kernels::CudaStream stream) const override {
    kernels::batch_sparse_reduce(spec_, batch, payloads, factor, feedback, transaction, seed, out,
                                 stream);
  }
  void decode_batch(const kernels::Batch& batch, const uint8_t* wire, void* out, DType dtype,
                    const kernels::BatchFeedback& feedback, kernels::DeviceTransaction* transaction,
                    uint64_t seed, kernels::CudaStream stream) const override {
    kernels::batch_sparse_decode(spec_, batch, wire, out, dtype, feedback, transaction, seed, stream);
  }

 private:
  kernels::SparseSpec spec_;
};

/// What "fp32", "bf16" and "int2" to "int8" take on the wire.
int value_bits_of(const Choice& choice) {
  const std::string& values = choice.text_of("values");
  if (values == "fp32") return 32;
  if (values == "bf16") return 16;
  const bool integer = values.size() == 4 && values.starts_with("int");
  require(integer && values[3] >= '2' && values[3] <= '8',
          "values must be fp32, bf16 or int2 to int8, got '", values, "'");
  return values[3] - '0';
}

std::unique_ptr<Codec> make_sparse(const Choice& choice, bool random) {
  kernels::SparseSpec spec;
  spec.density = choice.number_of("density", 1e-4, 0.5);
  spec.block_numel = choice.integer_of("block", 32, kernels::kMaxSparseBlockNumel);
  require(spec.block_numel % 32 == 0, "block must be a multiple of 32, got ", spec.block_numel);
  spec.value_bits = value_bits_of(choice);
  spec.random = random;
  return std::make_unique<Sparse>(spec);
}

}  // namespace

std::unique_ptr<Codec> make_topk(const Choice& choice) { return make_sparse(choice, false); }
std::unique_ptr<Codec> make_randomk(const Choice& choice) { return make_sparse(choice, true); }

}  // namespace lgreco::codecs
