// Which masks keep whole rows and columns, and what a plan makes of them.
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <vector>

#include "engine/kept_matrix.h"
#include "engine/layout.h"
#include "engine/plan.h"

namespace lgreco::engine {
namespace {

using Indices = std::vector<int64_t>;

Mask mask_of(const std::vector<bool>& kept) {
  std::vector<uint8_t> bits((kept.size() + 7) / 8 + 1);
  for (size_t i = 0; i < kept.size(); ++i) {
    bits[i / 8] = static_cast<uint8_t>(bits[i / 8] | (kept[i] ? 1 : 0) << (i % 8));
  }
  return {bits.data(), static_cast<int64_t>(kept.size())};
}

std::vector<bool> product_of(int64_t all_rows, int64_t all_cols, const Indices& rows,
                             const Indices& cols) {
  std::vector<bool> kept(static_cast<size_t>(all_rows * all_cols));
  for (const int64_t row : rows) {
    for (const int64_t col : cols) kept[static_cast<size_t>(row * all_cols + col)] = true;
  }
  return kept;
}

/// Some of 0..count - 1, at least one.
Indices some_of(int64_t count, std::mt19937& random) {
  std::set<int64_t> some{static_cast<int64_t>(random() % static_cast<uint64_t>(count))};
  for (int64_t i = 0; i < count; ++i) {
    if (random() % 3 > 0) some.insert(i);
  }
  return {some.begin(), some.end()};
}

TEST(KeptMatrix, IsTheProductOfKeptRowsAndColumns) {
  std::mt19937 random(1);
  for (const int64_t rows : {1, 2, 17, 70}) {
    for (const int64_t cols : {1, 3, 63, 64, 65, 128, 200}) {
      const Indices kept_rows = some_of(rows, random), kept_cols = some_of(cols, random);
      const auto found = kept_matrix(mask_of(product_of(rows, cols, kept_rows, kept_cols)), cols);
      ASSERT_TRUE(found) << rows << " x " << cols;
      EXPECT_EQ(found->rows, kept_rows);
      EXPECT_EQ(found->cols, kept_cols);
      EXPECT_EQ(found->all_rows, rows);
      EXPECT_EQ(found->all_cols, cols);
    }
  }
}

TEST(KeptMatrix, OneElementMoreOrLessMakesItNone) {
  std::mt19937 random(2);
  for (const int64_t cols : {2, 64, 130}) {
    const int64_t rows = 9;
    const std::vector<bool> kept = product_of(rows, cols, {1, 2, 5, 8}, some_of(cols, random));
    for (size_t i = 0; i < kept.size(); i += 1 + random() % 7) {
      std::vector<bool> changed = kept;
      changed[i] = !changed[i];
      const Mask mask = mask_of(changed);
      // Whatever is found must be all that is kept; a row of one kept column may vanish or appear.
      if (const auto found = kept_matrix(mask, cols)) {
        EXPECT_EQ(static_cast<int64_t>(found->rows.size() * found->cols.size()), mask.kept());
        EXPECT_EQ(mask_of(product_of(rows, cols, found->rows, found->cols)).hash(), mask.hash());
        EXPECT_EQ(found->cols.size(), 1U);
      }
    }
  }
}

TEST(KeptMatrix, NothingKeptIsNone) {
  EXPECT_FALSE(kept_matrix(mask_of(std::vector<bool>(12, false)), 4));
  EXPECT_FALSE(kept_matrix(mask_of({}), 0));
}

Plan plan_of(const std::vector<bool>& kept, std::vector<int64_t> shape) {
  const codecs::Choice choice{
      "lowrank", {{"rank", "2"}, {"factors", "int8"}, {"q", "same"}, {"iterate", "alternate"}}};
  return {{{"layer", std::move(shape), static_cast<int64_t>(kept.size()), DType::kFloat32}},
          {choice},
          2,
          {std::make_shared<const Mask>(mask_of(kept))}};
}

TEST(KeptMatrix, APlanFactorsItInTheLayersPlace) {
  const Plan small = plan_of(product_of(40, 60, {0, 7, 9, 39}, {5, 6, 30, 31, 59}), {40, 6, 10});
  const PlannedLayer& planned = small.planned()[0];
  EXPECT_EQ(planned.lowrank->rows, 4);
  EXPECT_EQ(planned.lowrank->cols, 5);
  EXPECT_EQ(planned.residual_numel, 20);
  EXPECT_EQ(planned.run_mask(), planned.mask);
  const Layout layout(small, {0}, 0, 1 << 20);
  EXPECT_EQ(layout.numel(), 2400);
  EXPECT_EQ(layout.factored()[0].run_offset, 0);
  for (const Piece& piece : layout.pieces()) EXPECT_EQ(piece.masked, -1);
  const codecs::Choice choice = small.choices()[0];
  const Plan alone({{"layer", {4, 5}, 20, DType::kFloat32}}, {choice}, 2);
  EXPECT_EQ(small.wire_bytes(0), alone.wire_bytes(0));
}

TEST(KeptMatrix, OfAnyOtherMaskThePlanFactorsTheWhole) {
  std::vector<bool> kept = product_of(40, 60, {0, 7, 9, 39}, {5, 6, 30, 31, 59});
  kept[1] = true;
  const Plan whole = plan_of(kept, {40, 60});
  const PlannedLayer& planned = whole.planned()[0];
  EXPECT_EQ(planned.lowrank->rows, 40);
  EXPECT_EQ(planned.lowrank->cols, 60);
  EXPECT_EQ(planned.residual_numel, 2400);
  EXPECT_EQ(planned.run_mask(), nullptr);
  const Layout layout(whole, {0}, 0, 1 << 20);
  EXPECT_EQ(layout.factored()[0].run_offset, -1);
  EXPECT_TRUE(layout.masked().empty());
}

}  // namespace
}  // namespace lgreco::engine
