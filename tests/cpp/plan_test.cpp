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

codecs::Choice lowrank(const std::string& factors, const std::string& iterate) {
  return {"lowrank", {{"rank", "8"}, {"factors", factors}, {"q", "same"}, {"iterate", iterate}}};
}

LayerSpec matrix(const std::string& name, int64_t rows, int64_t cols) {
  LayerSpec spec = layer(name, rows * cols);
  spec.shape = {rows, cols};
  return spec;
}

std::vector<LayerSpec> model() {
  return {layer("embedding", 300'000), layer("bias", 7),
          layer("empty", 0),           layer("square", 512 * 512),
          layer("odd", 4097),          layer("large", 3'000'001),
          matrix("coded", 1000, 5000), matrix("alternating", 300, 700)};
}

std::vector<codecs::Choice> choices() {
  return {kFourBits,
          kDense,
          kFourBits,
          kFourBits,
          kDense,
          kFourBits,
          lowrank("int8", "both"),
          lowrank("fp32", "alternate")};
}

Plan plan_for(int world_size) { return Plan(model(), choices(), world_size); }

TEST(Plan, TilesCoverEachLayerOnceAndBeginAtBlocks) {
  for (const int world_size : {1, 2, 3, 4, 7}) {
    const Plan plan = plan_for(world_size);
    for (size_t id = 0; id < plan.layers().size(); ++id) {
      for (const Part& part : plan.planned()[id].parts) {
        int64_t next = 0;
        for (int32_t i = 0; i < part.tile_count; ++i) {
          const Tile& tile = plan.tiles()[part.first_tile + i];
          EXPECT_EQ(tile.offset, next);
          EXPECT_EQ(tile.offset % part.codec->block_numel(), 0);
          EXPECT_EQ(tile.first_block, tile.offset / part.codec->block_numel());
          EXPECT_GE(tile.owner, 0);
          EXPECT_LT(tile.owner, world_size);
          EXPECT_GE(tile.wire_bytes, part.codec->wire_bytes(tile.numel));
          next += tile.numel;
        }
        EXPECT_EQ(next, part.numel);
      }
      const bool factored = plan.planned()[id].lowrank.has_value();
      if (!factored) {
        EXPECT_EQ(plan.planned()[id].parts[0].numel, plan.layers()[id].numel);
      }
    }
  }
}

TEST(Plan, FactorsStartEachColumnWithABlock) {
  const Plan plan = plan_for(3);
  const PlannedLayer& coded = plan.planned()[6];
  ASSERT_EQ(coded.parts.size(), 2U);
  EXPECT_EQ(coded.lowrank->p.length, 1000);
  EXPECT_EQ(coded.lowrank->p.stride, 1024) << "padded to whole units of a block";
  EXPECT_EQ(coded.lowrank->q.stride % 32, 0);
  EXPECT_GE(coded.lowrank->q.stride, 5000);
  EXPECT_LT(coded.lowrank->q.stride, 5000 + 2 * 32) << "two blocks, each padded at most once";
  for (const Part& part : coded.parts) EXPECT_EQ(part.numel % part.codec->block_numel(), 0);
}

TEST(Plan, ASecondFactorWaitsForTheFirstUnlessTheyTakeTurns) {
  const Plan plan = plan_for(3);
  const auto& both = plan.planned()[6].parts;
  EXPECT_EQ(both[0].stage, 0);
  EXPECT_EQ(both[1].stage, 1);
  EXPECT_EQ(both[1].turn, Turn::kEvery);
  const auto& alternate = plan.planned()[7].parts;
  EXPECT_EQ(alternate[1].stage, 0);
  EXPECT_NE(alternate[0].turn, alternate[1].turn);
  EXPECT_TRUE(takes_part(Turn::kEven, 4) && !takes_part(Turn::kOdd, 4) && takes_part(Turn::kEvery, 4));
}

TEST(Plan, WireBytesCountBothRoundsAndHalfOfWhatTakesTurns) {
  const Plan plan(std::vector<LayerSpec>{matrix("a", 64, 96), matrix("b", 64, 96), layer("c", 512)},
                  {lowrank("fp32", "both"), lowrank("fp32", "alternate"), kDense}, 4);
  EXPECT_DOUBLE_EQ(plan.wire_bytes(0), 4.0 * 8 * (64 + 96) * 2 * 3 / 4);
  EXPECT_DOUBLE_EQ(plan.wire_bytes(1), 4.0 * 8 * (64 + 96) / 2 * 2 * 3 / 4);
  EXPECT_DOUBLE_EQ(plan.wire_bytes(2), 4.0 * 512 * 2 * 3 / 4);
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
    if (tile.factor) {
      EXPECT_EQ(tile.residual_offset, -1) << "the residual is the layer's, not the factor's";
      continue;
    }
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
  std::vector<codecs::Choice> changed = choices();
  changed[5] = kDense;
  const Plan other(model(), changed, 2);
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
  for (const auto& buckets :
       std::vector<std::vector<std::vector<int32_t>>>{{{0, 1, 2, 3, 4, 5, 6, 7}},
                                                      {{7, 5, 4}, {3}, {2, 1, 6, 0}},
                                                      {{2}, {5, 0, 3}, {6}, {1}, {4, 7}}}) {
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
  const Layout layout(plan, {5, 6, 0, 3, 7, 1}, 2, 64 * 1024);
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
      EXPECT_EQ(plan.part_of(tile).stage, chunk.stage);
      EXPECT_EQ(plan.part_of(tile).turn, chunk.turn);
      EXPECT_EQ(piece.factored >= 0, tile.factor);
      EXPECT_GE(piece.offset, 0);
      EXPECT_LE(piece.offset + tile.numel, tile.factor ? layout.factor_numel() : layout.numel());
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
