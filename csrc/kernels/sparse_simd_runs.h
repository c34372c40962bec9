// How the sixteen-lane sparse encoders go through a run: sources, pipeline, tails. Part of
// sparse_simd.h.
#pragma once

namespace lgreco::kernels {

/// Copies elements [first, end) to where a whole vector may be read, with zeros after them.
template <class Level>
const char* SimdSparse<Level>::padded(const char* from, int64_t bytes, int first, int end, Tail& tail) {
  memset(tail.bytes, 0, sizeof tail.bytes);
  memcpy(tail.bytes, from + first * bytes, (end - first) * bytes);
  return tail.bytes;
}

template <class Level>
struct SimdSparse<Level>::GradientSource {
  void open(const SparseShape&, int64_t, SparseScratch&) {}

  Passes passes(const Feedback& feedback) const { return passes_for(dtype, feedback); }
  /// Element `first` of the block that begins at `begin`.
  const char* at(int64_t begin, int first) const {
    return input + (begin + first) * element_bytes(dtype);
  }
  bool has_nonzero_in(const char* from, int numel) const {
    return has_nonzero(from, element_bytes(dtype), numel);
  }
  /// Its last few elements, where a whole vector may be read.
  const char* readable(const char* from, int first, int end, Tail& tail) const {
    return padded(from, element_bytes(dtype), first, end, tail);
  }

  const char* input;
  DType dtype;
  float factor = 1.0F;
};

template <class Level>
struct SimdSparse<Level>::PayloadSource {
  /// Sums the payloads of the block that begins at element `begin`.
  void open(const SparseShape& shape, int64_t begin, SparseScratch& scratch) {
    const auto block = static_cast<uint32_t>(begin / spec.block_numel);
    for (int k = 0; k < count; ++k) {
      sparse_add(spec, shape, noise, block, wires[k] + offset_bytes, scratch);
    }
    offset_bytes += shape.bytes;
    sum = reinterpret_cast<const char*>(scratch.sum);
  }

  Passes passes(const Feedback& feedback) const { return passes_for<DType::kFloat32, true>(feedback); }
  const char* at(int64_t, int first) const { return sum + first * sizeof(float); }
  bool has_nonzero_in(const char*, int) const { return false; }
  const char* readable(const char* from, int first, int, Tail&) const {
    return from + first * sizeof(float);
  }

  const SparseSpec& spec;
  const Noise& noise;
  const uint8_t* const* wires;
  int count;
  float factor;
  int64_t offset_bytes = 0;
  const char* sum = nullptr;
};

/// What is the same for all blocks of a run.
template <class Level>
struct SimdSparse<Level>::Coder {
  Coder(const SparseSpec& spec, const Passes& passes, const Feedback& feedback, const Noise& noise)
      : spec(spec),
        feedback(feedback),
        noise(noise),
        residual_bytes(feedback.out == nullptr ? 0 : element_bytes(feedback.dtype)),
        passes(passes) {}

  /// Picks and codes the block in scratch.values and leaves there what its codes leave out. Returns
  /// whether it can be delivered.
  bool code(const SparseShape& shape, int64_t begin, uint8_t* wire) {
    const int vectors = vectors_of(shape.numel);
    for (int v = vectors; v % kChunkVectors != 0; ++v) scratch.tops[v] = 0;
    const uint32_t highest = Level::highest_top(scratch.tops, vectors);
    const bool finite = highest < kNonfiniteMagnitude >> 16;
    if (spec.random) {
      draw_index(shape, noise, static_cast<uint32_t>(begin / spec.block_numel), scratch.index);
      for (int i = 0; i < shape.kept; ++i) scratch.picked[i] = scratch.values[scratch.index[i]];
    } else if (finite) {
      pick_largest(shape, highest, hint, scratch);
    }
    uint32_t largest = 0;
    for (int i = 0; i < shape.kept; ++i) largest = std::max(largest, magnitude_of(scratch.picked[i]));
    const bool sound = write_block(spec, shape, float_of(largest), finite, scratch, wire);
    if (residual_bytes != 0 && sound) {
      for (int i = 0; i < shape.kept; ++i) scratch.values[scratch.index[i]] = scratch.picked[i];
    }
    findings.nonfinite |= !sound;
    return sound;
  }

  /// Settles elements [first, first + numel) of the block at `begin` and gathers as many of the next.
  template <class Source>
  void turn(const Source& source, int64_t begin, int64_t next, int first, int left_numel,
            int next_numel) {
    Turn turn{source.factor,
              feedback.scale,
              feedback.inverse_scale,
              source.at(next, first),
              static_cast<const char*>(feedback.in) + (next + first) * residual_bytes,
              static_cast<char*>(feedback.out) + (begin + first) * residual_bytes};
    float* const values = scratch.values + first;
    uint16_t* const tops = scratch.tops + first / kLanes;
    if (!findings.nonzero && next_numel > 0) [[unlikely]]
      findings.nonzero = source.has_nonzero_in(turn.input, next_numel);
    if (left_numel == kChunkNumel && next_numel == kChunkNumel) [[likely]] {
      passes.turn(turn, kChunkVectors, values, tops);
      return;
    }
    settle(turn, left_numel, values);
    gather(source, turn, next_numel, values, tops);
  }

  template <class Source>
  void gather(const Source& source, Turn turn, int numel, float* values, uint16_t* tops) {
    const int whole = numel / kLanes, done = whole * kLanes;
    passes.gather(turn, whole, values, tops);
    if (numel == done) return;
    Tail tails[2];
    turn.input = source.readable(turn.input, done, numel, tails[0]);
    if (residual_bytes != 0) turn.owed = padded(turn.owed, residual_bytes, done, numel, tails[1]);
    passes.gather(turn, 1, values + done, tops + whole);
  }

  void settle(Turn turn, int numel, const float* values) {
    const int whole = numel / kLanes, done = whole * kLanes;
    passes.settle(turn, whole, values);
    if (numel == done) return;
    Tail tail;
    char* const left = turn.left + done * residual_bytes;
    turn.left = tail.bytes;
    passes.settle(turn, 1, values + done);
    memcpy(left, tail.bytes, (numel - done) * residual_bytes);
  }

  const SparseSpec& spec;
  const Feedback& feedback;
  const Noise& noise;
  const int64_t residual_bytes;
  const Passes passes;
  SparseScratch& scratch = sparse_scratch();
  Hint hint;
  Findings findings;
};

template <class Level>
template <class Source>
Findings SimdSparse<Level>::code_run(const SparseSpec& spec, Source& source, int64_t numel,
                                     const Feedback& feedback, const Noise& noise, uint8_t* wire) {
  if (numel == 0) return {};
  const SparseShapes shapes(spec, numel);
  Coder coder(spec, source.passes(feedback), feedback, noise);
  // Before the first block there is none to settle, after the last none to gather.
  for (int64_t begin = -spec.block_numel; begin < numel; begin += spec.block_numel) {
    const int64_t next = begin + spec.block_numel;
    const int next_numel = next < numel ? shapes.at(next).numel : 0;
    int left_numel = 0;
    if (begin >= 0) {
      const SparseShape& shape = shapes.at(begin);
      const bool sound = coder.code(shape, begin, wire);
      wire += shape.bytes;
      if (coder.residual_bytes != 0 && sound) left_numel = shape.numel;
      if (coder.residual_bytes != 0 && !sound) {
        memset(static_cast<char*>(feedback.out) + begin * coder.residual_bytes, 0,
               shape.numel * coder.residual_bytes);
      }
    }
    if (next_numel > 0) source.open(shapes.at(next), next, coder.scratch);
    for (int first = 0; first < std::max(left_numel, next_numel); first += kChunkNumel) {
      coder.turn(source, begin, next, first, std::clamp(left_numel - first, 0, kChunkNumel),
                 std::clamp(next_numel - first, 0, kChunkNumel));
    }
  }
  Level::fence();
  return coder.findings;
}

}  // namespace lgreco::kernels
