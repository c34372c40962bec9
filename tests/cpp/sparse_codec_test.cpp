// From a choice to the codecs topk and randomk.
#include <gtest/gtest.h>

#include <string>

#include "codecs/sparse.h"
#include "core/error.h"
#include "kernels/sparse.h"

namespace lgreco::codecs {
namespace {

Choice topk(const std::string& density, const std::string& block, const std::string& values) {
  return {"topk", {{"density", density}, {"block", block}, {"values", values}}};
}

std::string refusal_of(const Choice& choice) {
  try {
    make_topk(choice);
  } catch (const ValueError& error) {
    return error.what();
  }
  return "";
}

TEST(SparseCodec, TakesWhatTheChoiceSays) {
  const auto largest = make_topk(topk("0.01", "4096", "int8"));
  EXPECT_EQ(largest->block_numel(), 4096);
  EXPECT_EQ(largest->wire_bytes(4096), 92);
  EXPECT_FALSE(largest->lossless(DType::kFloat32));
  EXPECT_EQ(make_randomk(topk("0.01", "4096", "fp32"))->wire_bytes(2 * 4096), 2 * 41 * 4);
  EXPECT_EQ(make_randomk(topk("1e-4", "32", "bf16"))->wire_bytes(32), 4);
  EXPECT_EQ(make_topk(topk("0.5", "65536", "int2"))->wire_bytes(65536), 4 + 65536 / 8 + 65536 / 8);
}

TEST(SparseCodec, RefusesWhatIsOutOfRange) {
  EXPECT_NE(refusal_of(topk("0.6", "4096", "int8")).find("density must be from 0.0001 to 0.5, got 0.6"),
            std::string::npos);
  for (const char* density : {"0.00009", "nan", "0.1x", ""}) {
    EXPECT_NE(refusal_of(topk(density, "4096", "int8")).find("density must be"), std::string::npos);
  }
  EXPECT_NE(refusal_of(topk("0.1", "65568", "int8")).find("block must be 32..65536, got 65568"),
            std::string::npos);
  EXPECT_NE(refusal_of(topk("0.1", "100", "int8")).find("multiple of 32, got 100"), std::string::npos);
  for (const char* values : {"int1", "int9", "fp16", "int", "integer"}) {
    EXPECT_NE(refusal_of(topk("0.1", "4096", values)).find("values must be fp32, bf16 or int2 to int8"),
              std::string::npos);
  }
}

}  // namespace
}  // namespace lgreco::codecs
