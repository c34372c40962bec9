// Sparse coding on the CPU: the choice of instruction set level, decoding, which takes no more than its
// memory, and the scalar encoder that runs anywhere and that the other levels are tested against.
#include <algorithm>
#include <memory>

#include "core/cpu_dispatch.h"
#include "kernels/elements.h"
#include "kernels/sparse_code.h"
#include "kernels/sparse_levels.h"

namespace lgreco::kernels {

SparseScratch& sparse_scratch() {
  thread_local const auto scratch = std::make_unique<SparseScratch>();
  return *scratch;
}

void sparse_add(const SparseSpec& spec, const SparseShape& shape, const Noise& noise, uint32_t block,
                const uint8_t* wire, SparseScratch& scratch) {
  read_block(spec, shape, noise, block, wire, scratch);
  for (int i = 0; i < shape.kept; ++i) scratch.sum[scratch.index[i]] += scratch.picked[i];
}

namespace scalar {
namespace {

/// Leaves the indices of the block's elements of largest magnitude in scratch.index, ascending.
void pick_largest(const SparseShape& shape, SparseScratch& scratch) {
  // Descending by magnitude, then ascending by index: the first `kept` of that order are wanted.
  const auto before = [&](uint32_t a, uint32_t b) {
    const uint32_t left = magnitude_of(scratch.values[a]), right = magnitude_of(scratch.values[b]);
    return left != right ? left > right : a < b;
  };
  uint32_t* const index = scratch.index;
  for (int i = 0; i < shape.numel; ++i) index[i] = static_cast<uint32_t>(i);
  std::nth_element(index, index + shape.kept - 1, index + shape.numel, before);
  std::sort(index, index + shape.kept);
}

/// Codes scratch.values and stores what is left out from element `begin` of the run's residual.
/// Returns whether the block can be delivered.
bool encode_block(const SparseSpec& spec, const SparseShape& shape, int64_t begin,
                  const Feedback& feedback, const Noise& noise, SparseScratch& scratch, uint8_t* wire) {
  float* const values = scratch.values;
  bool finite = true;
  for (int i = 0; i < shape.numel; ++i) finite &= is_finite(values[i]);
  if (spec.random) {
    draw_index(shape, noise, static_cast<uint32_t>(begin / spec.block_numel), scratch.index);
  } else {
    pick_largest(shape, scratch);
  }
  uint32_t largest = 0;
  for (int i = 0; i < shape.kept; ++i) {
    scratch.picked[i] = values[scratch.index[i]];
    largest = std::max(largest, magnitude_of(scratch.picked[i]));
  }
  const bool sound = write_block(spec, shape, float_of(largest), finite, scratch, wire);
  if (feedback.out == nullptr) return sound;
  for (int i = 0; i < shape.kept; ++i) values[scratch.index[i]] = scratch.picked[i];
  for (int i = 0; i < shape.numel; ++i) {
    const float error = sound ? values[i] * feedback.inverse_scale : 0.0F;
    store_element(feedback.out, feedback.dtype, begin + i, error);
  }
  return sound;
}

/// values[i] += residual of element begin + i, in the gradient's scale.
void add_residual(const Feedback& feedback, int64_t begin, int numel, float* values) {
  if (feedback.in == nullptr) return;
  for (int i = 0; i < numel; ++i) {
    values[i] += load_element(feedback.in, feedback.dtype, begin + i) * feedback.scale;
  }
}

}  // namespace

Findings sparse_encode(const SparseSpec& spec, const void* gradient, DType dtype, int64_t numel,
                       const Feedback& feedback, const Noise& noise, uint8_t* wire) {
  Findings findings;
  const SparseShapes shapes(spec, numel);
  SparseScratch& scratch = sparse_scratch();
  for (int64_t begin = 0; begin < numel; begin += spec.block_numel) {
    const SparseShape& shape = shapes.at(begin);
    for (int i = 0; i < shape.numel; ++i) {
      scratch.values[i] = load_element(gradient, dtype, begin + i);
      findings.nonzero |= scratch.values[i] != 0.0F;
    }
    add_residual(feedback, begin, shape.numel, scratch.values);
    findings.nonfinite |= !encode_block(spec, shape, begin, feedback, noise, scratch, wire);
    wire += shape.bytes;
  }
  return findings;
}

Findings sparse_reduce(const SparseSpec& spec, const uint8_t* const* wires, int count, float factor,
                       int64_t numel, const Feedback& feedback, const Noise& noise, uint8_t* out) {
  Findings findings;
  const SparseShapes shapes(spec, numel);
  SparseScratch& scratch = sparse_scratch();
  int64_t offset_bytes = 0;
  for (int64_t begin = 0; begin < numel; begin += spec.block_numel) {
    const SparseShape& shape = shapes.at(begin);
    const auto block = static_cast<uint32_t>(begin / spec.block_numel);
    for (int k = 0; k < count; ++k) {
      sparse_add(spec, shape, noise, block, wires[k] + offset_bytes, scratch);
    }
    for (int i = 0; i < shape.numel; ++i) {
      scratch.values[i] = scratch.sum[i] * factor;
      scratch.sum[i] = 0.0F;
    }
    add_residual(feedback, begin, shape.numel, scratch.values);
    findings.nonfinite |=
        !encode_block(spec, shape, begin, feedback, noise, scratch, out + offset_bytes);
    offset_bytes += shape.bytes;
  }
  return findings;
}

}  // namespace scalar

Findings sparse_encode(const SparseSpec& spec, const void* gradient, DType dtype, int64_t numel,
                       const Feedback& feedback, const Noise& noise, uint8_t* wire) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512:
      return avx512::sparse_encode(spec, gradient, dtype, numel, feedback, noise, wire);
    case CpuLevel::kAvx2:
      return avx2::sparse_encode(spec, gradient, dtype, numel, feedback, noise, wire);
    case CpuLevel::kBaseline: break;
  }
  return scalar::sparse_encode(spec, gradient, dtype, numel, feedback, noise, wire);
}

Findings sparse_reduce(const SparseSpec& spec, const uint8_t* const* wires, int count, float factor,
                       int64_t numel, const Feedback& feedback, const Noise& noise, uint8_t* out) {
  switch (cpu_level()) {
    case CpuLevel::kAvx512:
      return avx512::sparse_reduce(spec, wires, count, factor, numel, feedback, noise, out);
    case CpuLevel::kAvx2:
      return avx2::sparse_reduce(spec, wires, count, factor, numel, feedback, noise, out);
    case CpuLevel::kBaseline: break;
  }
  return scalar::sparse_reduce(spec, wires, count, factor, numel, feedback, noise, out);
}

Findings sparse_decode(const SparseSpec& spec, const uint8_t* wire, int64_t numel, const Noise& noise,
                       void* out, DType dtype) {
  bool finite = true;
  const SparseShapes shapes(spec, numel);
  SparseScratch& scratch = sparse_scratch();
  auto* block_out = static_cast<uint8_t*>(out);
  for (int64_t begin = 0; begin < numel; begin += spec.block_numel) {
    const SparseShape& shape = shapes.at(begin);
    read_block(spec, shape, noise, static_cast<uint32_t>(begin / spec.block_numel), wire, scratch);
    memset(block_out, 0, shape.numel * element_bytes(dtype));
    for (int i = 0; i < shape.kept; ++i) {
      finite &= is_finite(store_element(block_out, dtype, scratch.index[i], scratch.picked[i]));
    }
    block_out += shape.numel * element_bytes(dtype);
    wire += shape.bytes;
  }
  return {.nonfinite = !finite};
}

}  // namespace lgreco::kernels
