// Launches the CUDA kernels of the dense wire: the twins of dense_cpu.cpp for a whole batch.
#include "core/cuda_check.h"
#include "kernels/dense_device.h"

namespace lgreco::kernels {

void batch_dense_encode(DType wire_dtype, const Batch& batch, const void* gradient, DType dtype,
                        const BatchFeedback& feedback, const DeviceTransaction* transaction,
                        uint8_t* wire, CudaStream stream) {
  if (batch.block_count == 0) return;
  const Copying copying = copying_of(wire_dtype, batch, feedback, transaction);
  dense_encode_kernel<<<flat_grid(batch, copying.lanes_log2), kFlatThreads, 0, stream>>>(
      copying, gradient, dtype, wire);
  check_launch("batch_dense_encode");
}

void batch_dense_reduce(DType wire_dtype, const Batch& batch, const BatchPayloads& payloads,
                        float factor, const BatchFeedback& feedback,
                        const DeviceTransaction* transaction, uint8_t* out, CudaStream stream) {
  if (batch.block_count == 0) return;
  const Copying copying = copying_of(wire_dtype, batch, feedback, transaction);
  dense_reduce_kernel<<<flat_grid(batch, copying.lanes_log2), kFlatThreads, 0, stream>>>(
      copying, payloads, factor, out);
  check_launch("batch_dense_reduce");
}

void batch_dense_decode(DType wire_dtype, const Batch& batch, const uint8_t* wire, void* out,
                        DType dtype, const BatchFeedback& feedback, DeviceTransaction* transaction,
                        CudaStream stream) {
  if (batch.block_count == 0) return;
  const Copying copying = copying_of(wire_dtype, batch, feedback, transaction);
  dense_decode_kernel<<<flat_grid(batch, copying.lanes_log2), kFlatThreads, 0, stream>>>(
      copying, wire, out, dtype, transaction);
  check_launch("batch_dense_decode");
}

}  // namespace lgreco::kernels
