// A codec: how one run of a layer becomes bytes, how bytes of all ranks are averaged, and back.
//
// The exchange knows nothing of a codec but this. Runs begin at multiples of block_numel() within
// their layer, so the bits of a run depend on the layer and the plan, never on buckets or chunks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/philox.h"
#include "kernels/batch.h"
#include "kernels/run.h"

namespace lgreco::codecs {

using kernels::Feedback;
using kernels::Findings;

class Codec {
 public:
  virtual ~Codec() = default;

  /// Elements that are coded together; runs are cut only between blocks.
  virtual int64_t block_numel() const = 0;

  /// Bytes of a run of `numel` elements, fixed by the plan so that no counts are exchanged.
  virtual int64_t wire_bytes(int64_t numel) const = 0;

  /// Whether every gradient of this type survives both rounds unchanged, so that no residual is
  /// kept for the layer.
  virtual bool lossless(DType gradient) const = 0;

  /// Codes gradient + residual into `wire` and leaves the error in the residual.
  virtual Findings encode(const void* gradient, DType dtype, int64_t numel, const Feedback& feedback,
                          const Noise& noise, uint8_t* wire) const = 0;

  /// Codes factor * (sum of `count` decoded `wires` in order) + residual into `out`, which may be
  /// one of the wires.
  virtual Findings reduce(const uint8_t* const* wires, int count, float factor, int64_t numel,
                          const Feedback& feedback, const Noise& noise, uint8_t* out) const = 0;

  /// Decodes a run over `out`. `noise` is that of the run's encoding but for rank and round.
  virtual Findings decode(const uint8_t* wire, int64_t numel, const Noise& noise, void* out,
                          DType dtype) const = 0;

  /// The same three on CUDA, for all runs of a bucket at once; see kernels/batch.h.
  virtual void encode_batch(const kernels::Batch& batch, const void* gradient, DType dtype,
                            const kernels::BatchFeedback& feedback,
                            const kernels::DeviceTransaction* transaction, uint64_t seed, uint8_t* wire,
                            kernels::CudaStream stream) const = 0;
  virtual void reduce_batch(const kernels::Batch& batch, const kernels::BatchPayloads& payloads,
                            float factor, const kernels::BatchFeedback& feedback,
                            const kernels::DeviceTransaction* transaction, uint64_t seed, uint8_t* out,
                            kernels::CudaStream stream) const = 0;
  virtual void decode_batch(const kernels::Batch& batch, const uint8_t* wire, void* out, DType dtype,
                            const kernels::BatchFeedback& feedback,
                            kernels::DeviceTransaction* transaction, uint64_t seed,
                            kernels::CudaStream stream) const = 0;
};

}  // namespace lgreco::codecs
