// What the tests of the sparse kernels share: a naive reference that follows sparse.h, and calls with
// all their memory.
#pragma once

#include <limits>
#include <numeric>
#include <string>

#include "kernel_cases.h"
#include "kernels/quantize_math.h"
#include "kernels/sparse.h"

namespace lgreco::kernels {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kMax = std::numeric_limits<float>::max();
inline constexpr Noise kSparseNoise{
    .seed = 0x123456789ABCDEFULL, .step = 7, .stream = 3 * 8192 + 5, .first_block = 3};

enum class Residual { kNone, kInPlace, kShadow };

inline std::string text_of(const SparseSpec& spec) {
  return concat(spec.random ? "randomk" : "topk", " density ", spec.density, " block ", spec.block_numel,
                " value bits ", spec.value_bits);
}

/// Every value coding with some density and block, of both codecs.
inline std::vector<SparseSpec> some_specs() {
  std::vector<SparseSpec> specs;
  const double densities[] = {1e-4, 1e-3, 0.01, 0.05, 0.1, 0.3, 0.5};
  const int blocks[] = {32, 64, 96, 512, 544, 1024, 4096, 8192, 65536};
  size_t turn = 0;
  for (const bool random : {false, true}) {
    for (const int bits : {2, 3, 4, 5, 6, 7, 8, 16, 32}) {
      for (const double density : densities) {
        for (int i = 0; i < 2; ++i) specs.push_back({density, blocks[turn++ % 9], bits, random});
        ++turn;
      }
    }
  }
  return specs;
}

/// Appends bits, least significant first.
class Bits {
 public:
  void put(uint32_t value, int count) {
    for (int i = 0; i < count; ++i) bits_.push_back(value >> i & 1U);
  }
  /// The bits as bytes, after `bytes`, up to a multiple of `unit`.
  void append_to(std::vector<uint8_t>& bytes, size_t unit) const {
    const size_t begin = bytes.size();
    bytes.resize(begin + (bits_.size() + 7) / 8);
    for (size_t i = 0; i < bits_.size(); ++i)
      bytes[begin + i / 8] |= static_cast<uint8_t>(bits_[i] << i % 8);
    bytes.resize((bytes.size() + unit - 1) / unit * unit);
  }
  size_t size() const { return bits_.size(); }

 private:
  std::vector<uint32_t> bits_;
};

/// A block coded by the book.
struct NaiveBlock {
  std::vector<uint32_t> index;
  std::vector<float> decoded;  ///< of the kept elements
  std::vector<uint8_t> wire;
  bool sound = true;
};

inline std::vector<uint32_t> naive_index(const SparseSpec& spec, const std::vector<float>& values,
                                         uint32_t kept, uint32_t block) {
  const auto numel = static_cast<uint32_t>(values.size());
  std::vector<uint32_t> index(numel);
  std::iota(index.begin(), index.end(), 0U);
  if (!spec.random) {
    std::stable_sort(index.begin(), index.end(), [&](uint32_t a, uint32_t b) {
      return std::fabs(values[a]) > std::fabs(values[b]);
    });
    index.resize(kept);
    std::sort(index.begin(), index.end());
    return index;
  }
  index.resize(kept);
  for (uint32_t j = 0; j < kept; ++j) {
    const uint32_t begin = j * numel / kept, end = (j + 1) * numel / kept;
    const Philox4 draws =
        philox4x32(j / 4, kSparseNoise.first_block + block, kSparseNoise.step, 3 * 8192,
                   static_cast<uint32_t>(kSparseNoise.seed), kSparseNoise.seed >> 32);
    index[j] = begin + static_cast<uint32_t>((uint64_t{draws.word[j % 4]} * (end - begin)) >> 32);
  }
  return index;
}

inline Bits naive_index_code(const std::vector<uint32_t>& index, uint32_t numel) {
  Bits shortest;
  std::vector<bool> bitmap(numel);
  for (const uint32_t i : index) bitmap[i] = true;
  for (const bool bit : bitmap) shortest.put(bit, 1);
  for (int low = 0; low < 16; ++low) {
    std::vector<bool> high(((numel - 1) >> low) + index.size());
    for (size_t i = 0; i < index.size(); ++i) high[(index[i] >> low) + i] = true;
    Bits code;
    for (const bool bit : high) code.put(bit, 1);
    for (const uint32_t i : index) code.put(i & ((1U << low) - 1U), low);
    if (code.size() < shortest.size()) shortest = code;
  }
  return shortest;
}

inline NaiveBlock naive_block(const SparseSpec& spec, const std::vector<float>& values, uint32_t block) {
  NaiveBlock coded;
  const auto numel = static_cast<uint32_t>(values.size());
  const auto kept = std::max(1U, static_cast<uint32_t>(std::floor(spec.density * numel + 0.5)));
  for (const float value : values) coded.sound &= std::isfinite(value);
  if (coded.sound || spec.random) {
    coded.index = naive_index(spec, values, kept, block);
  } else {
    coded.index.resize(kept);
    std::iota(coded.index.begin(), coded.index.end(), 0U);
  }
  float largest = 0.0F;
  for (const uint32_t i : coded.index) largest = std::max(largest, std::fabs(values[i]));
  Grid grid{};
  if (spec.value_bits <= 8) {
    const QuantizeSpec symmetric{.bits = spec.value_bits, .grid = GridKind::kSymmetric};
    grid = coded.sound ? make_grid(symmetric, {-largest, largest, 0.0F}, 1) : broken_grid();
    coded.sound = std::isfinite(grid.step);
    coded.wire.resize(4);
    memcpy(coded.wire.data(), &grid.step, 4);
  } else if (spec.value_bits == 16 && bits_of(largest) >= 0x7F7F8000U) {
    coded.sound = false;  // bf16 rounds it to inf
  }
  if (!coded.sound && !spec.random) std::iota(coded.index.begin(), coded.index.end(), 0U);
  Bits codes;
  for (const uint32_t i : coded.index) {
    const float value = coded.sound ? values[i] : kNan;
    if (spec.value_bits == 32) {
      codes.put(coded.sound ? bits_of(value) : 0x7FC00000U, 32);
      coded.decoded.push_back(value);
    } else if (spec.value_bits == 16) {
      const uint16_t half = coded.sound ? float_to_bf16(value) : uint16_t{0x7FC0};
      codes.put(half, 16);
      coded.decoded.push_back(bf16_to_float(half));
    } else {
      const int code = coded.sound ? nearest_code(value, grid, (1 << spec.value_bits) - 2) : 0;
      codes.put(static_cast<uint32_t>(code), spec.value_bits);
      coded.decoded.push_back(decode_code(grid, code));
    }
  }
  codes.append_to(coded.wire, 1);
  if (!spec.random) naive_index_code(coded.index, numel).append_to(coded.wire, 4);
  coded.wire.resize((coded.wire.size() + 3) / 4 * 4);
  return coded;
}

/// A run coded by the book: its wire, what it decodes to and what is left out, both dense.
struct NaiveRun {
  NaiveRun(const SparseSpec& spec, const std::vector<float>& values)
      : decoded(values.size()), left(values) {
    const auto block_numel = static_cast<size_t>(spec.block_numel);
    for (size_t begin = 0; begin < values.size(); begin += block_numel) {
      const size_t end = std::min(begin + block_numel, values.size());
      const NaiveBlock block = naive_block(spec, {values.begin() + begin, values.begin() + end},
                                           static_cast<uint32_t>(begin / block_numel));
      wire.insert(wire.end(), block.wire.begin(), block.wire.end());
      sound &= block.sound;
      for (size_t i = 0; i < block.index.size(); ++i) {
        decoded[begin + block.index[i]] = block.decoded[i];
        left[begin + block.index[i]] -= block.decoded[i];
      }
      if (!block.sound) std::fill(left.begin() + begin, left.begin() + end, 0.0F);
    }
  }

  std::vector<uint8_t> wire;
  std::vector<float> decoded, left;
  bool sound = true;
};

/// One call of encode with all its memory.
struct SparseCall {
  SparseCall(const SparseSpec& spec, const std::vector<float>& gradient_values,
             const std::vector<float>& residual_values, DType dtype = DType::kFloat32,
             Residual residual = Residual::kShadow, DType residual_dtype = DType::kFloat32,
             size_t misalignment = 0, float scale = 1.0F)
      : spec(spec),
        dtype(dtype),
        numel(static_cast<int64_t>(gradient_values.size())),
        gradient(numel * element_bytes(dtype), misalignment * element_bytes(dtype)),
        committed(numel * element_bytes(residual_dtype), misalignment * element_bytes(residual_dtype)),
        shadow(numel * element_bytes(residual_dtype), misalignment * element_bytes(residual_dtype)),
        wire(sparse_wire_bytes(spec, numel), misalignment * 4) {
    fill(gradient, dtype, gradient_values);
    fill(committed, residual_dtype, residual_values);
    shadow.take(committed);
    feedback.dtype = residual_dtype;
    feedback.scale = scale;
    feedback.inverse_scale = 1.0F / scale;
    if (residual == Residual::kNone) return;
    feedback.in = residual == Residual::kInPlace ? shadow.data() : committed.data();
    feedback.out = shadow.data();
  }

  void run(CpuLevel level) {
    const WithLevel guard(level);
    findings = sparse_encode(spec, gradient.data(), dtype, numel, feedback, kSparseNoise, wire.data());
    EXPECT_TRUE(gradient.guards_hold() && committed.guards_hold() && shadow.guards_hold() &&
                wire.guards_hold());
  }

  /// gradient + residual * scale, before run().
  std::vector<float> values() const {
    std::vector<float> sum = read(gradient, dtype);
    if (feedback.in == nullptr) return sum;
    const std::vector<float> owed = read(committed, feedback.dtype);
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += owed[i] * feedback.scale;
    return sum;
  }

  SparseSpec spec;
  DType dtype;
  int64_t numel;
  Buffer gradient, committed, shadow, wire;
  Feedback feedback;
  Findings findings;
};

inline std::vector<float> decoded(const SparseSpec& spec, const Buffer& wire, int64_t numel) {
  Buffer out(numel * 4);
  sparse_decode(spec, wire.data(), numel, kSparseNoise, out.data(), DType::kFloat32);
  EXPECT_TRUE(out.guards_hold());
  return read(out, DType::kFloat32);
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  const auto same = [](float x, float y) { return bits_of(x) == bits_of(y); };
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), same);
}

inline bool same_bytes(const Buffer& a, const std::vector<uint8_t>& b) {
  return std::equal(a.data(), a.data() + a.bytes(), b.begin(), b.end());
}

}  // namespace lgreco::kernels
