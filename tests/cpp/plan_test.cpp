// Plans and layouts: every element is coded once, has one owner, and no bucket changes how.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "engine/layout.h"
#include "engine/plan.h"

namespace lgreco::engine {
namespace {

const codecs::Choice kDense{"dense", {{"dtype", "fp32"}}};
const codecs::Choice kFourBits{
    "quantize",
    {{"bits", "4"}, {"block", "512"}, {"grid", "minmax"}, {"rounding", "nearest"}, {"scales", "fp32"}}};

LayerSpec layer(const std::string& name, int64_t numel) {
  LayerSpec spec;
  spec.name = name;
  spec.shape = {numel};
  spec.numel = numel;
  return spec;
}

std::vector<LayerSpec> model() {
  return {layer("embedding", 300'000), layer("bias", 7),   layer("empty", 0),
          layer("square", 512 * 512),  layer("odd", 4097), layer("large", 3'000'001)};
}

Plan plan_for(int world_size) {
  return Plan(model(), {kFourBits, kDense, kFourBits, kFourBits, kDense, kFourBits}, world_size);
}

TEST(Plan, TilesCoverEachLayerOnceAndBeginAtBlocks) {
  for (const int world_size : {1, 2, 3, 4, 7}) {
    const Plan plan = plan_for(world_size);
    for (size_t id = 0; id < plan.layers().size(); ++id) {
      const PlannedLayer& planned = plan.planned()[id];
      int64_t next = 0;
      for (int32_t i = 0; i < planned.tile_count; ++i) {
        const Tile& tile = plan.tiles()[planned.first_tile + i];
        EXPECT_EQ(tile.offset, next);
        EXPECT_EQ(tile.offset % planned.codec->block_numel(), 0);
        EXPECT_EQ(tile.first_block, tile.offset / planned.codec->block_numel());
        EXPECT_GE(tile.owner, 0);
        EXPECT_LT(tile.owner, world_size);
        EXPECT_GE(tile.wire_bytes, planned.codec->wire_bytes(tile.numel));
        next += tile.numel;
      }
      EXPECT_EQ(next, plan.layers()[id].numel);
    }
  }
}

TEST(Plan, LargeLayersAreSharedEvenlySmallOnesStayWhole) {
  const Plan plan = plan_for(4);
  std::map<int, std::map<int, int64_t>> owned;  // layer -> owner -> elements
  for (const Tile& tile : plan.tiles()) owned[tile.layer][tile.owner] += tile.numel;
  EXPECT_EQ(owned[1].size(), 1U);
  EXPECT_EQ(owned[5].size(), 4U);
  for (const auto& [owner, numel] : owned[5]) EXPECT_NEAR(numel, 3'000'001 / 4, 512);
}

TEST(Plan, ResidualsOfLossyLayersDoNotOverlap) {
  const Plan plan = plan_for(3);
  int64_t end = 0;
  std::map<int, int64_t> owner_end;
  for (const Tile& tile : plan.tiles()) {
    if (plan.layers()[tile.layer].name == "bias" || plan.layers()[tile.layer].name == "odd") {
      EXPECT_EQ(tile.residual_offset, -1) << "dense fp32 loses nothing";
      continue;
    }
    EXPECT_GE(tile.residual_offset, end);
    end = tile.residual_offset + tile.numel;
    EXPECT_GE(tile.owner_residual_offset, owner_end[tile.owner]);
    owner_end[tile.owner] = tile.owner_residual_offset + tile.numel;
  }
  EXPECT_LE(end, plan.residual_numel());
  for (const auto& [owner, numel] : owner_end) EXPECT_LE(numel, plan.owner_residual_numel(owner));
}

TEST(Plan, FingerprintTellsPlansApart) {
  EXPECT_EQ(plan_for(2).fingerprint(), plan_for(2).fingerprint());
  EXPECT_NE(plan_for(2).fingerprint(), plan_for(3).fingerprint());
  const Plan other(model(), {kFourBits, kDense, kFourBits, kFourBits, kDense, kDense}, 2);
  EXPECT_NE(plan_for(2).fingerprint(), other.fingerprint());
}

TEST(Plan, RefusesAChoiceThatIsNone) {
  codecs::Choice nine = kFourBits;
  nine.parameters["bits"] = "9";
  EXPECT_THROW(Plan({layer("a", 10)}, {nine}, 2), ValueError);
  EXPECT_THROW(Plan({layer("a", 10)}, {{"gzip", {}}}, 2), ValueError);
  EXPECT_THROW(Plan({layer("a", 10)}, {}, 2), ValueError);
}

TEST(Layout, EveryTileTravelsOnceWhateverTheBuckets) {
  const Plan plan = plan_for(3);
  for (const auto& buckets : std::vector<std::vector<std::vector<int32_t>>>{
           {{0, 1, 2, 3, 4, 5}}, {{5, 4}, {3}, {2, 1, 0}}, {{2}, {5, 0, 3}, {1}, {4}}}) {
    std::set<int32_t> seen;
    for (const auto& bucket : buckets) {
      const Layout layout(plan, bucket, 1, 64 * 1024);
      for (const Piece& piece : layout.pieces()) EXPECT_TRUE(seen.insert(piece.tile).second);
    }
    EXPECT_EQ(seen.size(), plan.tiles().size());
  }
}

TEST(Layout, ChunksHoldOneOwnersTilesWithoutOverlap) {
  const Plan plan = plan_for(3);
  const Layout layout(plan, {5, 0, 3, 1}, 2, 64 * 1024);
  int64_t end = 0;
  for (const Chunk& chunk : layout.chunks()) {
    EXPECT_GE(chunk.wire_offset, end);
    end = chunk.wire_offset + chunk.bytes;
    int64_t piece_end = static_cast<int64_t>(sizeof(ChunkHeader)) + 4 * bit_words(chunk.piece_count);
    for (int32_t i = 0; i < chunk.piece_count; ++i) {
      const Piece& piece = layout.pieces()[chunk.first_piece + i];
      const Tile& tile = plan.tiles()[piece.tile];
      EXPECT_EQ(tile.owner, chunk.owner);
      EXPECT_EQ(piece.wire_offset % kTileAlignment, 0);
      EXPECT_GE(piece.wire_offset, piece_end);
      piece_end = piece.wire_offset + tile.wire_bytes;
      EXPECT_GE(piece.bucket_offset, 0);
      EXPECT_LE(piece.bucket_offset + tile.numel, layout.numel());
    }
    EXPECT_LE(piece_end, chunk.bytes);
  }
  EXPECT_LE(end, layout.wire_bytes());
  EXPECT_GT(layout.chunk_count_of(2), 1) << "the test must see several chunks";
}

TEST(Layout, ABucketWithoutElementsHasNoChunks) {
  const Layout layout(plan_for(2), {2}, 0, 1024);
  EXPECT_TRUE(layout.chunks().empty());
  EXPECT_EQ(layout.numel(), 0);
}

}  // namespace
}  // namespace lgreco::engine
