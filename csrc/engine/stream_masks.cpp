// The masked layers of a bucket on CUDA: masks in device memory, launches.
#include "engine/stream_masks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <bit>

#include "engine/to_device.h"

namespace lgreco::engine {
namespace {

uint8_t* at_element(void* memory, DType dtype, int64_t offset) {
  return static_cast<uint8_t*>(memory) + offset * element_bytes(dtype);
}

}  // namespace

StreamMasks::StreamMasks(const Plan& plan, const Layout& layout, at::Device device) {
  for (const MaskedLayer& place : layout.masked()) add(plan, place, device);
  for (const FactoredLayer& place : layout.factored()) {
    if (plan.planned()[place.layer].mask == nullptr || place.run_offset >= 0) continue;
    add(plan, {.layer = place.layer, .bucket_offset = place.bucket_offset}, device);
  }
  if (layout.run_numel() == 0) return;
  runs_ = at::zeros({layout.run_numel() * element_bytes(DType::kFloat32)},
                    at::TensorOptions().dtype(at::kByte).device(device));
}

void StreamMasks::add(const Plan& plan, const MaskedLayer& place, at::Device device) {
  Work work;
  work.layer = place.layer;
  work.planned = &plan.planned()[place.layer];
  work.bucket_offset = place.bucket_offset;
  work.run_offset = place.run_offset;
  const Mask& mask = *work.planned->mask;
  std::vector<uint32_t> bits, before;
  uint32_t kept = 0;
  for (const uint64_t word : mask.words()) {
    for (const auto half : {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32)}) {
      bits.push_back(half);
      before.push_back(kept);
      kept += static_cast<uint32_t>(std::popcount(half));
    }
  }
  work.bits = to_device(bits, device);
  work.before = to_device(before, device);
  work.mask = {static_cast<const uint32_t*>(work.bits.const_data_ptr()),
               static_cast<const uint32_t*>(work.before.const_data_ptr()), mask.numel()};
  works_.push_back(std::move(work));
}

void StreamMasks::gather(void* bucket, DType dtype, kernels::CudaStream stream) {
  for (const Work& work : works_) {
    void* gradient = at_element(bucket, dtype, work.bucket_offset);
    if (work.planned->run_mask() == nullptr) {
      kernels::mask_device_clear(work.mask, element_bytes(dtype), gradient, stream);
    } else if (work.planned->mask->kept() > 0) {
      kernels::mask_device_gather(work.mask, gradient, element_bytes(dtype),
                                  at_element(runs(), dtype, work.run_offset), stream);
    }
  }
}

void StreamMasks::scatter(void* bucket, DType dtype, const kernels::BatchFeedback& residuals,
                          const kernels::DeviceTransaction* transaction, kernels::CudaStream stream) {
  for (const Work& work : works_) {
    void* gradient = at_element(bucket, dtype, work.bucket_offset);
    const bool whole = work.planned->run_mask() == nullptr;
    if (whole || work.planned->mask->kept() == 0) {
      kernels::mask_device_clear(work.mask, element_bytes(dtype), gradient, stream);
    } else {
      kernels::mask_device_scatter(work.mask, at_element(runs(), dtype, work.run_offset),
                                   element_bytes(dtype), gradient, stream);
    }
    if (whole) {
      kernels::mask_device_clear_shadow(work.mask, residuals, transaction, work.planned->residual_offset,
                                        stream);
    }
  }
}

at::Tensor StreamMasks::kept_of(int32_t layer, const at::Tensor& whole,
                                kernels::CudaStream stream) const {
  for (const Work& work : works_) {
    if (work.layer != layer) continue;
    at::Tensor kept = at::empty({work.planned->mask->kept()}, whole.options());
    if (kept.numel() == 0) return kept;
    kernels::mask_device_gather(work.mask, whole.const_data_ptr(), element_bytes(DType::kFloat32),
                                kept.mutable_data_ptr(), stream);
    return kept;
  }
  return whole;
}

int64_t StreamMasks::bytes() const {
  int64_t total = runs_.defined() ? static_cast<int64_t>(runs_.nbytes()) : 0;
  for (const Work& work : works_)
    total += static_cast<int64_t>(work.bits.nbytes() + work.before.nbytes());
  return total;
}

}  // namespace lgreco::engine
