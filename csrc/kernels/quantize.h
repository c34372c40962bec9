// Uniform quantisation by blocks: encode with residual, reduce (sum, average, requantise), decode.
//
// Wire of a run: its blocks one after the other, each [lo][step] (minmax) or [step] (other grids) as
// fp32 or bf16, then the codes packed least significant bit first (element i at bits
// [i*bits, (i+1)*bits)), the whole padded with zeros to a multiple of 4 bytes.
// A block that holds an inf or NaN has a NaN step, so that it decodes to NaN everywhere.
#pragma once

#include <cstdint>
#include <string>

#include "core/error.h"
#include "core/host_device.h"
#include "core/philox.h"
#include "kernels/run.h"

namespace lgreco::kernels {

/// Where a block's points lie; the distance between two neighbours is the same everywhere.
enum class GridKind : uint8_t {
  kMinMax,     ///< from the least to the greatest value
  kSymmetric,  ///< around a point that is exactly zero, as far as the largest magnitude
  kClipped,    ///< around zero, none on it, as far as serves most values best; larger ones are clipped
};

struct QuantizeSpec {
  int bits = 4;           ///< 1..8
  int block_numel = 512;  ///< 32..4096, a multiple of 32
  GridKind grid = GridKind::kMinMax;
  bool stochastic = false;  ///< floor(x + u) instead of round to nearest even
  bool bf16_scales = false;
};

/// minmax, symmetric or clipped; ValueError for another name.
inline GridKind grid_named(const std::string& name) {
  if (name == "symmetric") return GridKind::kSymmetric;
  if (name == "clipped") return GridKind::kClipped;
  require(name == "minmax", "grid must be minmax, symmetric or clipped, got '", name, "'");
  return GridKind::kMinMax;
}

/// Whether a block's step alone says where its points lie.
LGRECO_HD constexpr bool has_one_number(const QuantizeSpec& spec) {
  return spec.grid != GridKind::kMinMax;
}

LGRECO_HD constexpr int64_t quantize_metadata_bytes(const QuantizeSpec& spec) {
  return (spec.bf16_scales ? 2 : 4) * (has_one_number(spec) ? 1 : 2);
}

LGRECO_HD constexpr int64_t quantize_block_bytes(const QuantizeSpec& spec, int64_t numel) {
  return (quantize_metadata_bytes(spec) + (numel * spec.bits + 7) / 8 + 3) / 4 * 4;
}

LGRECO_HD constexpr int64_t quantize_wire_bytes(const QuantizeSpec& spec, int64_t numel) {
  const int64_t full = numel / spec.block_numel, rest = numel % spec.block_numel;
  return full * quantize_block_bytes(spec, spec.block_numel) +
         (rest == 0 ? 0 : quantize_block_bytes(spec, rest));
}

/// Codes gradient + residual into `wire` and leaves the error in the residual.
Findings quantize_encode(const QuantizeSpec& spec, const void* gradient, DType dtype, int64_t numel,
                         const Feedback& feedback, const Noise& noise, uint8_t* wire);

/// Codes factor * (sum of the decoded `wires`, in order, fp32) + owner residual into `out`.
/// `out` may be one of the wires.
Findings quantize_reduce(const QuantizeSpec& spec, const uint8_t* const* wires, int count, float factor,
                         int64_t numel, const Feedback& feedback, const Noise& noise, uint8_t* out);

/// Decodes a run over `out`.
Findings quantize_decode(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel, void* out,
                         DType dtype);

/// sum += decoded run (used where payloads are summed without requantising).
Findings quantize_decode_add(const QuantizeSpec& spec, const uint8_t* wire, int64_t numel, float* sum);

}  // namespace lgreco::kernels
