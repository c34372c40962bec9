// Launches the kernels that decide a step's fate on the device.
#include <algorithm>

#include "core/cuda_check.h"
#include "kernels/transaction_device.h"

namespace lgreco::kernels {
namespace {

constexpr int kThreads = 256;

}  // namespace

void transaction_begin(DeviceTransaction* transaction, CudaStream stream) {
  settle_kernel<<<1, 1, 0, stream>>>(transaction, 1);
  check_launch("transaction_begin");
}

void transaction_settle(DeviceTransaction* transaction, CudaStream stream) {
  settle_kernel<<<1, 1, 0, stream>>>(transaction, 0);
  check_launch("transaction_settle");
}

void transaction_discard(DeviceTransaction* transaction, CudaStream stream) {
  discard_kernel<<<1, 1, 0, stream>>>(transaction);
  check_launch("transaction_discard");
}

void transaction_poison(const DeviceTransaction* transaction, void* bucket, DType dtype, int64_t numel,
                        CudaStream stream) {
  if (numel == 0) return;
  // Few blocks: nearly every step is not flagged, and then this costs one launch and nothing else.
  const auto blocks = static_cast<unsigned>(std::min<int64_t>((numel + kThreads - 1) / kThreads, 264));
  if (dtype == DType::kFloat32) {
    poison_kernel<uint32_t><<<blocks, kThreads, 0, stream>>>(transaction, static_cast<uint32_t*>(bucket),
                                                             numel, 0x7F800000U);
  } else {
    const uint16_t inf = dtype == DType::kBFloat16 ? 0x7F80U : 0x7C00U;
    poison_kernel<uint16_t>
        <<<blocks, kThreads, 0, stream>>>(transaction, static_cast<uint16_t*>(bucket), numel, inf);
  }
  check_launch("transaction_poison");
}

void batch_clear_bits(const Batch& batch, uint8_t* wire, CudaStream stream) {
  if (batch.run_count == 0) return;
  const unsigned blocks = (batch.run_count + kThreads - 1) / kThreads;
  clear_bits_kernel<<<blocks, kThreads, 0, stream>>>(batch, reinterpret_cast<uint32_t*>(wire));
  check_launch("batch_clear_bits");
}

}  // namespace lgreco::kernels
