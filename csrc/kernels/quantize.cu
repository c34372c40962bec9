// Launches the CUDA kernels of uniform quantisation: the twins of quantize_cpu.cpp for a whole batch.
#include "core/cuda_check.h"
#include "kernels/quantize_device.h"

namespace lgreco::kernels {

void batch_quantize_encode(const QuantizeSpec& spec, const Batch& batch, const void* gradient,
                           DType dtype, const BatchFeedback& feedback,
                           const DeviceTransaction* transaction, uint64_t seed, uint8_t* wire,
                           CudaStream stream) {
  if (batch.block_count == 0) return;
  const Coding coding = coding_of(spec, batch, feedback, transaction, seed);
  with_group(spec.block_numel, [&]<typename Group>(Group) {
    quantize_encode_kernel<Group>
        <<<Group::grid(batch.block_count), Group::kThreads, 0, stream>>>(coding, gradient, dtype, wire);
  });
  check_launch("batch_quantize_encode");
}

void batch_quantize_reduce(const QuantizeSpec& spec, const Batch& batch, const BatchPayloads& payloads,
                           float factor, const BatchFeedback& feedback,
                           const DeviceTransaction* transaction, uint64_t seed, uint8_t* out,
                           CudaStream stream) {
  if (batch.block_count == 0) return;
  const Coding coding = coding_of(spec, batch, feedback, transaction, seed);
  with_group(spec.block_numel, [&]<typename Group>(Group) {
    quantize_reduce_kernel<Group>
        <<<Group::grid(batch.block_count), Group::kThreads, 0, stream>>>(coding, payloads, factor, out);
  });
  check_launch("batch_quantize_reduce");
}

void batch_quantize_decode(const QuantizeSpec& spec, const Batch& batch, const uint8_t* wire, void* out,
                           DType dtype, const BatchFeedback& feedback, DeviceTransaction* transaction,
                           CudaStream stream) {
  if (batch.block_count == 0) return;
  const Coding coding = coding_of(spec, batch, feedback, transaction, 0);
  const int lanes_log2 = lanes_log2_of(batch.block_numel);
  quantize_decode_kernel<<<flat_grid(batch, lanes_log2), kFlatThreads, 0, stream>>>(
      coding, lanes_log2, wire, out, dtype, transaction);
  check_launch("batch_quantize_decode");
}

}  // namespace lgreco::kernels
