// Orthonormalisation: what the threads of one CUDA block do with a factor. The C++ tests run this file
// on the host.
//
// Sixteen neighbouring threads are the sixteen lanes of a chunk's sums (lowrank_math.h), groups of them
// take chunks in turn, and the chunks' sums are added in order afterwards: the CPU kernels' bits.
#pragma once

#include "kernels/lane_group.h"
#include "kernels/lowrank_cuda.h"
#include "kernels/lowrank_math.h"

namespace lgreco::kernels {

inline constexpr int kBasisThreads = 256;
inline constexpr int kBasisGroups = kBasisThreads / kSumLanes;
inline constexpr int kBasisPairs = 32;  ///< of columns whose products are added up at a time

/// Shared by the block's threads.
struct BasisMemory {
  float partial[kBasisGroups][kBasisPairs * kSumLanes];  ///< of a wave of chunks
  float shares[kBlockColumns][kPanelColumns];
  uint32_t greatest[kBasisThreads / 32];
};

/// Columns [first, first + count) and [panel, panel + columns) of a factor.
struct BasisPairing {
  float* data;
  int64_t stride;
  int length;
  int first, count;
  int panel, columns;

  __device__ float* column(int j) const { return data + j * stride; }
};

/// Adds up the products of kBases columns from first + k and of kColumns columns of the panel, which may
/// be more than there are, into shares[k...].
template <int kBases, int kColumns>
__device__ void multiply_columns(const BasisPairing& pairing, int k, BasisMemory& memory) {
  constexpr int kPairs = kBases * kColumns;
  constexpr int kOwned = (kPairs * kSumLanes + kBasisThreads - 1) / kBasisThreads;
  static_assert(kPairs <= kBasisPairs && kBlockColumns % kBases == 0);
  const int thread = static_cast<int>(threadIdx.x);
  const int group = thread / kSumLanes, lane = thread % kSumLanes;
  const int chunks = (pairing.length + kSumChunk - 1) / kSumChunk;
  float totals[kOwned] = {};  // of the sums thread, thread + kBasisThreads, ...
  for (int wave = 0; wave < chunks; wave += kBasisGroups) {
    const int begin = (wave + group) * kSumChunk;
    const int end = begin + kSumChunk < pairing.length ? begin + kSumChunk : pairing.length;
    float sums[kBases][kColumns] = {};
    for (int i = begin + lane; i < end; i += kSumLanes) {
      float values[kColumns];
      LGRECO_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        values[c] = c < pairing.columns ? pairing.column(pairing.panel + c)[i] : 0.0F;
      }
      LGRECO_UNROLL
      for (int b = 0; b < kBases; ++b) {
        const float base = k + b < pairing.count ? pairing.column(pairing.first + k + b)[i] : 0.0F;
        LGRECO_UNROLL
        for (int c = 0; c < kColumns; ++c) sums[b][c] += base * values[c];
      }
    }
    LGRECO_UNROLL
    for (int b = 0; b < kBases; ++b) {
      LGRECO_UNROLL
      for (int c = 0; c < kColumns; ++c) {
        memory.partial[group][(b * kColumns + c) * kSumLanes + lane] = sums[b][c];
      }
    }
    __syncthreads();
    const int filled = chunks - wave < kBasisGroups ? chunks - wave : kBasisGroups;
    LGRECO_UNROLL
    for (int s = 0; s < kOwned; ++s) {
      if (thread + s * kBasisThreads >= kPairs * kSumLanes) continue;
      for (int g = 0; g < filled; ++g) totals[s] += memory.partial[g][thread + s * kBasisThreads];
    }
    __syncthreads();
  }
  LGRECO_UNROLL
  for (int s = 0; s < kOwned; ++s) {
    for (int half = kSumLanes / 2; half > 0; half /= 2) {  // sum_lanes()
      totals[s] += __shfl_xor_sync(kAllLanes, totals[s], half);
    }
    const int pair = group + s * kBasisGroups;
    if (lane == 0 && pair < kPairs) memory.shares[k + pair / kColumns][pair % kColumns] = totals[s];
  }
}

/// Takes the shares of columns [first, first + count) out of the panel, of which kColumns are more than
/// there are or as many.
template <int kColumns>
__device__ void take_out(const BasisPairing& pairing, const BasisMemory& memory) {
  for (int i = static_cast<int>(threadIdx.x); i < pairing.length; i += kBasisThreads) {
    float values[kColumns];
    LGRECO_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      values[c] = c < pairing.columns ? pairing.column(pairing.panel + c)[i] : 0.0F;
    }
    for (int k = 0; k < pairing.count; ++k) {
      const float base = pairing.column(pairing.first + k)[i];
      LGRECO_UNROLL
      for (int c = 0; c < kColumns; ++c) values[c] -= base * memory.shares[k][c];
    }
    LGRECO_UNROLL
    for (int c = 0; c < kColumns; ++c) {
      if (c < pairing.columns) pairing.column(pairing.panel + c)[i] = values[c];
    }
  }
}

/// Takes out of columns [panel, panel + columns) what lies along columns [first, first + count).
__device__ inline void subtract_columns(const BasisPairing& pairing, BasisMemory& memory) {
  if (pairing.count == 0) return;
  if (pairing.columns == 1) {
    for (int k = 0; k < pairing.count; k += 8) multiply_columns<8, 1>(pairing, k, memory);
    __syncthreads();
    take_out<1>(pairing, memory);
  } else {
    for (int k = 0; k < pairing.count; k += 4) {
      multiply_columns<4, kPanelColumns>(pairing, k, memory);
    }
    __syncthreads();
    take_out<kPanelColumns>(pairing, memory);
  }
  __syncthreads();
}

__device__ inline float norm_of(const BasisPairing& whole, int column, BasisMemory& memory) {
  const BasisPairing itself{whole.data, whole.stride, whole.length, column, 1, column, 1};
  multiply_columns<8, 1>(itself, 0, memory);
  __syncthreads();
  const float norm = sqrtf(memory.shares[0][0]);
  __syncthreads();
  return norm;
}

/// By 0 whatever the column holds becomes zero.
__device__ inline void scale_column(float scale, float* column, int length) {
  for (int i = static_cast<int>(threadIdx.x); i < length; i += kBasisThreads) {
    column[i] = scale == 0.0F ? 0.0F : column[i] * scale;
  }
  __syncthreads();
}

/// Returns the norm of the scaled column; 0: it became zero.
__device__ inline float prepare_column(const BasisPairing& whole, int column, BasisMemory& memory) {
  uint32_t greatest = 0;
  for (int i = static_cast<int>(threadIdx.x); i < whole.length; i += kBasisThreads) {
    const uint32_t bits = magnitude_bits(whole.column(column)[i]);
    greatest = bits > greatest ? bits : greatest;
  }
  for (int step = 16; step > 0; step /= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, greatest, step);
    greatest = other > greatest ? other : greatest;
  }
  if (threadIdx.x % 32 == 0) memory.greatest[threadIdx.x / 32] = greatest;
  __syncthreads();
  for (const uint32_t other : memory.greatest) greatest = other > greatest ? other : greatest;
  __syncthreads();
  const float scale = column_scale(greatest);
  scale_column(scale, whole.column(column), whole.length);
  return scale == 0.0F ? 0.0F : norm_of(whole, column, memory);
}

/// Takes out of column k of a panel what lies along the panel's columns before it.
__device__ inline void subtract_and_normalise(const BasisPairing& whole, int panel, int k, float least,
                                              BasisMemory& memory) {
  subtract_columns({whole.data, whole.stride, whole.length, panel, k, panel + k, 1}, memory);
  const float norm = norm_of(whole, panel + k, memory);
  scale_column(norm > least ? 1.0F / norm : 0.0F, whole.column(panel + k), whole.length);
}

/// Takes out of a panel what lies along the columns before it.
__device__ inline void subtract_before(const BasisPairing& whole, int panel, int columns,
                                       BasisMemory& memory) {
  for (int first = 0; first < panel; first += kBlockColumns) {
    const int count = panel - first < kBlockColumns ? panel - first : kBlockColumns;
    subtract_columns({whole.data, whole.stride, whole.length, first, count, panel, columns}, memory);
  }
}

/// The order of LowRankBasis::orthonormalise().
static __global__ void __launch_bounds__(kBasisThreads)
    lowrank_orthonormalise_kernel(const LowRankFactor* factors, float* arena) {
  __shared__ BasisMemory memory;
  const LowRankFactor factor = factors[blockIdx.x];
  const BasisPairing whole{arena + factor.offset, factor.stride, factor.length, 0, 0, 0, 0};
  for (int panel = 0; panel < factor.rank; panel += kPanelColumns) {
    const int columns = factor.rank - panel < kPanelColumns ? factor.rank - panel : kPanelColumns;
    float least[kPanelColumns];
    for (int k = 0; k < columns; ++k) {
      least[k] = prepare_column(whole, panel + k, memory) * kIndependentShare;
    }
    subtract_before(whole, panel, columns, memory);
    for (int k = 0; k < columns; ++k) {
      subtract_and_normalise(whole, panel, k, least[k], memory);
      subtract_and_normalise(whole, panel, k, kSecondShare, memory);
    }
    if (panel == 0) continue;
    subtract_before(whole, panel, columns, memory);
    for (int k = 0; k < columns; ++k) {
      subtract_and_normalise(whole, panel, k, kSecondShare, memory);
    }
  }
}

}  // namespace lgreco::kernels
