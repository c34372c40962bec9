// How the sixteen-lane sparse encoders go through up to 512 elements. Part of sparse_simd.h.
#pragma once

namespace lgreco::kernels {

/// Fetches into the second cache: the first one holds the buffer.
template <class Level>
void SimdSparse<Level>::fetch(const char* from) {
  __builtin_prefetch(from + kAheadBytes, 0, 2);
}

/// Vector by vector what is left out of one block goes to the residual and what the next block holds
/// takes its place: reads and writes of memory then keep an even pace, which no prefetching makes up
/// for.
template <class Level>
template <DType kInput, Rest kRest, bool kSummed, bool kSettle>
void SimdSparse<Level>::turn_chunk(const Turn& given, int vectors, float* values, uint16_t* tops) {
  constexpr int kBytes = kLanes * (kInput == DType::kFloat32 ? 4 : 2);
  const Turn turn = given;
  const Float scale = Level::set(turn.scale), factor = Level::set(turn.factor);
  const Float inverse = Level::set(turn.inverse_scale);
#pragma GCC unroll 1
  for (int v = 0; v < vectors; ++v) {
    if constexpr (kSettle) settle_vector<kRest>(turn.left, v, inverse, values);
    if constexpr (!kSummed) fetch(turn.input + v * kBytes);
    if constexpr (kRest != Rest::kNone) fetch(turn.owed + v * kLanes * residual_bytes_of(kRest));
    Float value = Level::template load<kInput>(turn.input + v * kBytes);
    if constexpr (kSummed) {
      Level::store_bits(const_cast<char*>(turn.input) + v * kBytes, Level::zero());
      value = Level::mul(value, factor);
    }
    if constexpr (kRest != Rest::kNone) {
      const Float owed =
          Level::template load<residual_type(kRest)>(turn.owed + v * kLanes * residual_bytes_of(kRest));
      value = Level::add(value, Level::mul(owed, scale));
    }
    Level::template store<DType::kFloat32>(values + v * kLanes, value);
  }
  find_tops(values, vectors, tops);
}

/// The greatest magnitudes of vectors, as tops.
template <class Level>
void SimdSparse<Level>::find_tops(const float* values, int vectors, uint16_t* tops) {
  if (vectors == kChunkVectors) [[likely]] {
    Int rows[kChunkVectors / 2];
#pragma GCC unroll 16
    for (int row = 0; row < kChunkVectors / 2; ++row) {
      rows[row] = Level::tops(Level::load_bits(values + 2 * row * kLanes),
                              Level::load_bits(values + (2 * row + 1) * kLanes));
    }
    Level::store_row_maxima(rows, tops);
  } else {
    for (int v = 0; v < vectors; ++v) tops[v] = Level::top(Level::load_bits(values + v * kLanes));
  }
}

template <class Level>
template <Rest kRest>
void SimdSparse<Level>::settle_vector(char* left, int v, Float inverse, const float* values) {
  const Float value = Level::template load<DType::kFloat32>(values + v * kLanes);
  const Float error = Level::mul(value, inverse);
  char* const to = left + v * kLanes * residual_bytes_of(kRest);
  if constexpr (kRest == Rest::kStreamedFloat32) {
    Level::stream(reinterpret_cast<float*>(to), error);
  } else if constexpr (kRest != Rest::kNone) {
    Level::template store<residual_type(kRest)>(to, error);
  }
}

template <class Level>
template <Rest kRest>
void SimdSparse<Level>::settle_chunk(const Turn& turn, int vectors, const float* values) {
  const Float inverse = Level::set(turn.inverse_scale);
  for (int v = 0; v < vectors; ++v) settle_vector<kRest>(turn.left, v, inverse, values);
}

template <class Level>
template <DType kInput, Rest kRest, bool kSummed>
typename SimdSparse<Level>::Passes SimdSparse<Level>::passes_of() {
  return {&turn_chunk<kInput, kRest, kSummed, false>, &turn_chunk<kInput, kRest, kSummed, true>,
          &settle_chunk<kRest>};
}

template <class Level>
template <DType kInput, bool kSummed>
typename SimdSparse<Level>::Passes SimdSparse<Level>::passes_for(const Feedback& feedback) {
  switch (rest_of(feedback, Level::kStreamAlignment)) {
    case Rest::kNone: break;
    case Rest::kFloat32: return passes_of<kInput, Rest::kFloat32, kSummed>();
    case Rest::kStreamedFloat32: return passes_of<kInput, Rest::kStreamedFloat32, kSummed>();
    case Rest::kBFloat16: return passes_of<kInput, Rest::kBFloat16, kSummed>();
  }
  return passes_of<kInput, Rest::kNone, kSummed>();
}

template <class Level>
typename SimdSparse<Level>::Passes SimdSparse<Level>::passes_for(DType input, const Feedback& feedback) {
  switch (input) {
    case DType::kFloat32: break;
    case DType::kBFloat16: return passes_for<DType::kBFloat16, false>(feedback);
    case DType::kFloat16: return passes_for<DType::kFloat16, false>(feedback);
  }
  return passes_for<DType::kFloat32, false>(feedback);
}

}  // namespace lgreco::kernels
