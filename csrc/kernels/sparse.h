// Sparse coding by blocks: of each block a fixed number of elements is sent, those of largest magnitude
// (topk) or ones that all ranks draw alike (randomk). Everything else stays in the residual.
//
// Wire of a run: its blocks one after the other, each [step, fp32, where values are integers][values in
// index order][index code, topk only], padded with zeros to a multiple of 4 bytes. Integers are packed
// least significant bit first and decode as quantize.h's symmetric grid does.
//
// The index code is a bit string, least significant bit first: a bitmap of the block, or Elias-Fano
// where that is shorter. Elias-Fano splits an index at `low_bits`: element number i of the kept ones
// sets bit (index >> low_bits) + i of a bitmap, after which the low parts stand one after the other.
//
// randomk cuts a block of n into k strata, [j n / k, (j + 1) n / k), and draws one element of each with
// word j % 4 of the Philox block j / 4. So positions are distinct and ascending, every element has the
// same chance up to the rounding of the strata, and no sorting or rejection is needed.
//
// Nothing is scaled up for what is left out: error feedback delivers it later.
// A block that holds an inf or NaN sends NaN as its first elements and leaves no residual.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/philox.h"
#include "kernels/run.h"

namespace lgreco::kernels {

inline constexpr int kMaxSparseBlockNumel = 65536;

struct SparseSpec {
  double density = 0.01;   ///< share of a block that is sent, 1e-4..0.5
  int block_numel = 4096;  ///< 32..65536, a multiple of 32
  int value_bits = 8;      ///< 32: fp32, 16: bf16, 2..8: integers under one fp32 step a block
  bool random = false;     ///< elements drawn alike on all ranks instead of the largest
};

/// What the sizes of a block of `numel` elements follow from; fixed by the plan.
struct SparseShape {
  int numel;
  int kept;         ///< elements that are sent: max(1, round(density * numel)), halves upwards
  int value_bytes;  ///< step and values
  int low_bits;     ///< of Elias-Fano; 0: the index code is a bitmap or missing
  int high_bits;    ///< length of the bitmap: numel, or of Elias-Fano's upper parts; 0: no index code
  int bytes;        ///< of the whole block
};

LGRECO_HD constexpr bool has_integer_values(const SparseSpec& spec) { return spec.value_bits <= 8; }

LGRECO_HD constexpr int sparse_index_bits(const SparseShape& shape) {
  return shape.high_bits + shape.low_bits * shape.kept;
}

LGRECO_HD constexpr SparseShape sparse_shape(const SparseSpec& spec, int numel) {
  SparseShape shape{numel, static_cast<int>(spec.density * numel + 0.5), 0, 0, 0, 0};
  if (shape.kept < 1) shape.kept = 1;
  shape.value_bytes = (has_integer_values(spec) ? 4 : 0) + (shape.kept * spec.value_bits + 7) / 8;
  if (!spec.random) {
    int least = shape.high_bits = numel;
    for (int low = 1; low < 16; ++low) {
      const int high = ((numel - 1) >> low) + shape.kept;
      if (high + low * shape.kept >= least) continue;
      least = high + low * shape.kept;
      shape.low_bits = low;
      shape.high_bits = high;
    }
  }
  shape.bytes = (shape.value_bytes + (sparse_index_bits(shape) + 7) / 8 + 3) / 4 * 4;
  return shape;
}

/// The shapes of a run's blocks, of which only the last one may be shorter.
class SparseShapes {
 public:
  constexpr SparseShapes(const SparseSpec& spec, int64_t numel)
      : whole_(sparse_shape(spec, spec.block_numel)),
        last_(sparse_shape(spec, static_cast<int>(numel % spec.block_numel))),
        last_begin_(numel - numel % spec.block_numel) {}

  /// Of the block that begins at element `begin`.
  constexpr const SparseShape& at(int64_t begin) const { return begin < last_begin_ ? whole_ : last_; }

 private:
  SparseShape whole_, last_;
  int64_t last_begin_;
};

constexpr int64_t sparse_wire_bytes(const SparseSpec& spec, int64_t numel) {
  const int64_t whole = numel / spec.block_numel;
  const int rest = static_cast<int>(numel % spec.block_numel);
  return whole * sparse_shape(spec, spec.block_numel).bytes +
         (rest == 0 ? 0 : sparse_shape(spec, rest).bytes);
}

/// Codes gradient + residual into `wire` and leaves the error in the residual.
Findings sparse_encode(const SparseSpec& spec, const void* gradient, DType dtype, int64_t numel,
                       const Feedback& feedback, const Noise& noise, uint8_t* wire);

/// Codes factor * (sum of the decoded `wires`, in order, fp32) + owner residual into `out`.
/// `out` may be one of the wires.
Findings sparse_reduce(const SparseSpec& spec, const uint8_t* const* wires, int count, float factor,
                       int64_t numel, const Feedback& feedback, const Noise& noise, uint8_t* out);

/// Decodes a run over `out`.
Findings sparse_decode(const SparseSpec& spec, const uint8_t* wire, int64_t numel, const Noise& noise,
                       void* out, DType dtype);

}  // namespace lgreco::kernels
