// The layout of one bucket's exchange: which tiles travel in which message, and where they lie.
//
// One wire buffer a bucket holds this rank's encoded tiles, a section for each owner. After the
// gather it holds every owner's average in the very same places, because both rounds' messages for
// a chunk have the same size. The inbox holds what the peers send of the chunks this rank owns.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "engine/plan.h"

namespace lgreco::engine {

/// What stands before a chunk's tiles in every message; the same code writes and checks it.
struct ChunkHeader {
  uint32_t step;  ///< committed steps, low 32 bits
  uint16_t bucket;
  uint8_t round;   ///< 0 scatter, 1 gather
  uint8_t failed;  ///< 1: the sender gives up; `culprit` says because of whom
  uint32_t chunk;
  int32_t culprit;
  uint64_t plan;      ///< Plan::fingerprint of the plan in force
  uint64_t replicas;  ///< hash of the parameters where replicas are checked, else 0
};
static_assert(sizeof(ChunkHeader) == 32);

/// A tile's place in the bucket, or in the memory of the bucket's factors, and in its chunk.
struct Piece {
  int32_t tile = 0;
  int32_t factored = -1;    ///< index of the factored layer it belongs to; -1: of the gradient itself
  int32_t masked = -1;      ///< index of the masked layer whose run it is cut from; -1: it is not
  int64_t offset = 0;       ///< elements
  int64_t wire_offset = 0;  ///< bytes from the chunk's start
};

/// A layer of the bucket of which factors are exchanged.
struct FactoredLayer {
  int32_t layer = 0;
  int64_t bucket_offset = 0;           ///< elements
  int64_t run_offset = -1;             ///< of the matrix as MaskedLayer's; -1: it lies in the bucket
  int64_t p_offset = 0, q_offset = 0;  ///< elements in the memory of the bucket's factors
};

/// A layer of the bucket whose run is exchanged, or factored.
struct MaskedLayer {
  int32_t layer = 0;
  int64_t bucket_offset = 0;  ///< elements
  int64_t run_offset = 0;     ///< elements, where the bucket's runs lie one after the other
};

/// One message a peer and round: a header, one nonzero bit a piece, the encoded pieces. All pieces are
/// of one stage and take part in the same steps.
struct Chunk {
  int32_t owner = 0;
  uint8_t stage = 0;
  Turn turn = Turn::kEvery;
  int32_t index = 0;  ///< among the owner's chunks of this bucket
  int32_t first_piece = 0;
  int32_t piece_count = 0;
  int64_t bytes = 0;
  int64_t wire_offset = 0;   ///< in the wire buffer
  int64_t inbox_offset = 0;  ///< own chunks: in a peer's part of the inbox
};

class Layout {
 public:
  /// `layers`: ids of the bucket's layers in bucket order. Chunks hold about `chunk_bytes`.
  Layout(const Plan& plan, const std::vector<int32_t>& layers, int rank, int64_t chunk_bytes);

  const std::vector<Chunk>& chunks() const { return chunks_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  const std::vector<FactoredLayer>& factored() const { return factored_; }
  /// Those without a kept element included, which have no piece.
  const std::vector<MaskedLayer>& masked() const { return masked_; }
  /// Ids of the owner's chunks are [first, first + count), the first stage's before the second's.
  int first_chunk_of(int owner) const { return owner_begin_[owner]; }
  int chunk_count_of(int owner) const { return owner_begin_[owner + 1] - owner_begin_[owner]; }
  int largest_chunk_count() const { return largest_chunk_count_; }

  int64_t numel() const { return numel_; }
  int64_t factor_numel() const { return factor_numel_; }
  int64_t run_numel() const { return run_numel_; }
  int64_t wire_bytes() const { return wire_bytes_; }
  /// Bytes of one peer's part of the inbox; the inbox has world_size parts, the own one unused.
  int64_t inbox_stride() const { return inbox_stride_; }

 private:
  /// Pieces of one owner that may share a message, by stage and turn.
  using Groups = std::map<std::pair<uint8_t, Turn>, std::vector<Piece>>;

  void place_layer(const Plan& plan, int32_t layer, std::vector<Groups>& owned);
  void cut_chunks(const Plan& plan, int owner, const std::vector<Piece>& tiles, int64_t chunk_bytes);

  int64_t numel_ = 0;
  int64_t factor_numel_ = 0;
  int64_t run_numel_ = 0;
  int64_t wire_bytes_ = 0;
  int64_t inbox_stride_ = 0;
  int largest_chunk_count_ = 0;
  std::vector<Chunk> chunks_;
  std::vector<Piece> pieces_;
  std::vector<FactoredLayer> factored_;
  std::vector<MaskedLayer> masked_;
  std::vector<int32_t> owner_begin_;
};

/// Nonzero bits follow the header, in words of 32.
inline uint32_t* bits_of(uint8_t* chunk) {
  return reinterpret_cast<uint32_t*>(chunk + sizeof(ChunkHeader));
}
inline const uint32_t* bits_of(const uint8_t* chunk) {
  return reinterpret_cast<const uint32_t*>(chunk + sizeof(ChunkHeader));
}
constexpr int64_t bit_words(int64_t pieces) { return (pieces + 31) / 32; }
inline bool bit(const uint32_t* bits, int64_t i) { return (bits[i / 32] >> (i % 32) & 1U) != 0; }
inline void set_bit(uint32_t* bits, int64_t i, bool value) {
  const uint32_t mask = 1U << (i % 32);
  bits[i / 32] = value ? bits[i / 32] | mask : bits[i / 32] & ~mask;
}

}  // namespace lgreco::engine
