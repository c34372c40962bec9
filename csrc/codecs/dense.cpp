// The codec that sends every element, as fp32, bf16 or fp16.
#include "codecs/dense.h"

#include "kernels/dense.h"

namespace lgreco::codecs {
namespace {

class Dense final : public Codec {
 public:
  explicit Dense(DType wire) : wire_(wire) {}

  int64_t block_numel() const override { return kBlockNumel; }
  int64_t wire_bytes(int64_t numel) const override { return numel * element_bytes(wire_); }
  bool lossless(DType gradient) const override {
    return wire_ == DType::kFloat32 && gradient == DType::kFloat32;
  }

  Findings encode(const void* gradient, DType dtype, int64_t numel, const Feedback& feedback,
                  const Noise&, uint8_t* wire) const override {
    return kernels::dense_encode(wire_, gradient, dtype, numel, feedback, wire);
  }
  Findings reduce(const uint8_t* const* wires, int count, float factor, int64_t numel,
                  const Feedback& feedback, const Noise&, uint8_t* out) const override {
    return kernels::dense_reduce(wire_, wires, count, factor, numel, feedback, out);
  }
  Findings decode(const uint8_t* wire, int64_t numel, const Noise&, void* out,
                  DType dtype) const override {
    return kernels::dense_decode(wire_, wire, numel, out, dtype);
  }

  void encode_batch(const kernels::Batch& batch, const void* gradient, DType dtype,
                    const kernels::BatchFeedback& feedback,
                    const kernels::DeviceTransaction* transaction, uint64_t, uint8_t* wire,
                    kernels::CudaStream stream) const override {
    kernels::batch_dense_encode(wire_, batch, gradient, dtype, feedback, transaction, wire, stream);
  }
  void reduce_batch(const kernels::Batch& batch, const kernels::BatchPayloads& payloads, float factor,
                    const kernels::BatchFeedback& feedback,
                    const kernels::DeviceTransaction* transaction, uint64_t, uint8_t* out,
                    kernels::CudaStream stream) const override {
    kernels::batch_dense_reduce(wire_, batch, payloads, factor, feedback, transaction, out, stream);
  }
  void decode_batch(const kernels::Batch& batch, const uint8_t* wire, void* out, DType dtype,
                    const kernels::BatchFeedback& feedback, kernels::DeviceTransaction* transaction,
                    uint64_t, kernels::CudaStream stream) const override {
    kernels::batch_dense_decode(wire_, batch, wire, out, dtype, feedback, transaction, stream);
  }

 private:
  static constexpr int64_t kBlockNumel = 512;  // only where runs may be cut; elements stand alone
  DType wire_;
};

}  // namespace

std::unique_ptr<Codec> make_dense(const Choice& choice) {
  return std::make_unique<Dense>(dtype_from(choice.text_of("dtype")));
}

}  // namespace lgreco::codecs
