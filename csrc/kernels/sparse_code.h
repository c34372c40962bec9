// One sparse block's kept elements as bytes, written and read on the CPU.
#pragma once

#include <bit>
#include <cstring>

#include "kernels/octet.h"
#include "kernels/sparse_math.h"
#include "kernels/sparse_scratch.h"

namespace lgreco::kernels {

/// Stores the values' codes at `wire` and leaves in `values` what the codes leave out; zeros where the
/// block cannot be delivered. Up to 8 bytes from a code's begin may be written, but none beyond `end`.
LGRECO_HD void write_values(const ValueCode& code, float* values, int count, uint8_t* wire,
                            const uint8_t* end) {
  if (code.bits > 8) {
    const int bytes = code.bits / 8;
    for (int i = 0; i < count; ++i) {
      const uint32_t coded = code_value(code, values[i]);
      memcpy(wire + i * bytes, &coded, bytes == 4 ? 4 : 2);
      values[i] = code.sound ? values[i] - decode_value(code.bits, code.grid, coded) : 0.0F;
    }
    return;
  }
  const float step = code.grid.step;
  memcpy(wire, &step, sizeof step);
  wire += sizeof step;
  for (int first = 0; first < count; first += kOctet, wire += code.bits) {
    const int some = octet_count(count, first / kOctet);
    uint32_t coded[kOctet] = {};
    for (int e = 0; e < some; ++e) {
      coded[e] = code_value(code, values[first + e]);
      values[first + e] =
          code.sound ? values[first + e] - decode_value(code.bits, code.grid, coded[e]) : 0.0F;
    }
    const uint64_t packed = pack_codes(coded, code.bits);
    const int64_t room = end - wire;
    memcpy(wire, &packed, room >= 8 ? 8 : static_cast<size_t>(room));
  }
}

/// Reads all values.
LGRECO_HD void read_values(const SparseSpec& spec, const SparseShape& shape, const uint8_t* wire,
                           float* values) {
  Grid grid{0.0F, 0.0F, 0.0F};
  const uint8_t* const end = wire + shape.bytes;
  if (!has_integer_values(spec)) {
    const int bytes = spec.value_bits / 8;
    for (int i = 0; i < shape.kept; ++i) {
      uint32_t coded = 0;
      memcpy(&coded, wire + i * bytes, bytes == 4 ? 4 : 2);
      values[i] = decode_value(spec.value_bits, grid, coded);
    }
    return;
  }
  memcpy(&grid.step, wire, sizeof grid.step);
  grid.lo = symmetric_low(spec.value_bits, grid.step);
  wire += sizeof grid.step;
  for (int first = 0; first < shape.kept; first += kOctet, wire += spec.value_bits) {
    const int64_t room = end - wire;
    uint64_t packed = 0;
    memcpy(&packed, wire, room >= 8 ? 8 : static_cast<size_t>(room));
    const int some = octet_count(shape.kept, first / kOctet);
    for (int e = 0; e < some; ++e) {
      values[first + e] = decode_value(spec.value_bits, grid, unpack_code(packed, spec.value_bits, e));
    }
  }
}

/// Stores the index code of ascending indices at `wire`, which has room for whole bytes of it.
LGRECO_HD void write_index(const SparseShape& shape, const uint32_t* index, uint64_t* code,
                           uint8_t* wire) {
  const int bits = sparse_index_bits(shape), low_bits = shape.low_bits;
  memset(code, 0, (bits / 64 + 2) * sizeof *code);
  // A word is kept in a register as long as bits go to it: or-ing into memory waits for the last store.
  int word = 0;
  uint64_t pending = 0;
  for (int i = 0; i < shape.kept; ++i) {
    const int bit = index_bit(shape, static_cast<int>(index[i]), i);
    if (bit / 64 != word) {
      code[word] = pending;
      pending = 0;
      word = bit / 64;
    }
    pending |= uint64_t{1} << (bit % 64);
  }
  code[word] = pending;
  if (low_bits > 0) {
    uint64_t* at = code + shape.high_bits / 64;
    int filled = shape.high_bits % 64;
    pending = *at;
    for (int i = 0; i < shape.kept; ++i) {
      const uint64_t low = index[i] & ((1U << low_bits) - 1U);
      pending |= low << filled;
      filled += low_bits;
      if (filled < 64) continue;
      *at++ = pending;
      filled -= 64;
      pending = filled == 0 ? 0 : low >> (low_bits - filled);
    }
    *at = pending;
  }
  memcpy(wire, code, (bits + 7) / 8);
}

/// Reads all indices.
LGRECO_HD void read_index(const SparseShape& shape, const uint8_t* wire, uint64_t* code,
                          uint32_t* index) {
  const int bits = sparse_index_bits(shape), low_bits = shape.low_bits;
  code[bits / 64] = code[bits / 64 + 1] = 0;
  memcpy(code, wire, (bits + 7) / 8);
  int i = 0, position = shape.high_bits;
  const int words = (shape.high_bits + 63) / 64;
  for (int word = 0; word < words; ++word) {
    uint64_t set = code[word];
    for (; set != 0 && i < shape.kept; ++i, set &= set - 1, position += low_bits) {
      const int bit = word * 64 + std::countr_zero(set);
      const int shift = position % 64;
      const uint64_t* at = code + position / 64;
      // Shifted in two steps, because a shift by 64 is none.
      const uint64_t low = at[0] >> shift | (at[1] << 1) << (63 - shift);
      index[i] = static_cast<uint32_t>(
          index_of(shape, bit, i, static_cast<uint32_t>(low) & ((1U << low_bits) - 1U)));
    }
  }
}

/// The elements that randomk draws from a block, ascending.
LGRECO_HD void draw_index(const SparseShape& shape, const Noise& noise, uint32_t block,
                          uint32_t* index) {
  const auto numel = static_cast<uint32_t>(shape.numel), kept = static_cast<uint32_t>(shape.kept);
  for (uint32_t j = 0; j < kept; j += 4) {
    const Philox4 draws = stratum_draws(noise, block, j / 4);
    for (uint32_t w = 0; w < 4 && j + w < kept; ++w) {
      index[j + w] = stratum_element(numel, kept, j + w, draws.word[w]);
    }
  }
}

/// Codes a block's kept elements, of which `largest` is the greatest magnitude, and leaves in `picked`
/// what their codes leave out. `finite`: the whole block is. Returns whether it can be delivered.
LGRECO_HD bool write_block(const SparseSpec& spec, const SparseShape& shape, float largest, bool finite,
                           SparseScratch& scratch, uint8_t* wire) {
  const ValueCode code = value_code(spec, largest, finite);
  uint8_t* const end = wire + shape.bytes;
  if (!code.sound && !spec.random) {
    for (int i = 0; i < shape.kept; ++i) scratch.index[i] = static_cast<uint32_t>(i);
  }
  write_values(code, scratch.picked, shape.kept, wire, end);
  uint8_t* at = wire + shape.value_bytes;
  memset(at, 0, end - at);
  if (!spec.random) write_index(shape, scratch.index, scratch.code, at);
  return code.sound;
}

/// Reads a block's kept elements into `index` and `picked`.
LGRECO_HD void read_block(const SparseSpec& spec, const SparseShape& shape, const Noise& noise,
                          uint32_t block, const uint8_t* wire, SparseScratch& scratch) {
  read_values(spec, shape, wire, scratch.picked);
  if (spec.random) {
    draw_index(shape, noise, block, scratch.index);
  } else {
    read_index(shape, wire + shape.value_bytes, scratch.code, scratch.index);
  }
}

}  // namespace lgreco::kernels
