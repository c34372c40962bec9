// The codec that averages two factors of a matrix in its place (PowerSGD, arXiv 1905.13727).
#include "codecs/lowrank.h"

#include <algorithm>
#include <string>

#include "core/error.h"
#include "core/types.h"

namespace lgreco::codecs {
namespace {

constexpr int64_t kLargestBlock = 4096;  // of quantize
constexpr int64_t kBlockUnit = 32;

// A column is cut into as few blocks as can be, of equal length; each has a scale of its own.
FactorCoding quantized(const std::string& bits, int64_t length) {
  const int64_t blocks = std::max(round_up(length, kLargestBlock) / kLargestBlock, int64_t{1});
  const int64_t block = std::max(round_up((length + blocks - 1) / blocks, kBlockUnit), kBlockUnit);
  const Choice choice{"quantize",
                      {{"bits", bits},
                       {"block", std::to_string(block)},
                       {"grid", "symmetric"},
                       {"rounding", "nearest"},
                       {"scales", "fp32"}}};
  return {choice, length, round_up(length, block)};
}

FactorCoding coding_of(const std::string& values, int64_t length) {
  if (values.starts_with("int")) return quantized(values.substr(3), length);
  return {{"dense", {{"dtype", values}}}, length, length};
}

}  // namespace

LowRank make_lowrank(const Choice& choice, const std::vector<int64_t>& shape) {
  LowRank made;
  made.rank = choice.integer_of("rank", 1, 256);
  made.rows = shape.empty() ? 1 : shape[0];
  made.cols = 1;
  for (size_t i = 1; i < shape.size(); ++i) made.cols *= shape[i];
  const std::string& iterate = choice.text_of("iterate");
  require(iterate == "both" || iterate == "alternate", "iterate must be both or alternate, got '",
          iterate, "'");
  made.alternate = iterate == "alternate";
  const std::string &factors = choice.text_of("factors"), &q = choice.text_of("q");
  made.p = coding_of(factors, made.rows);
  made.q = coding_of(q == "same" ? factors : q, made.cols);
  return made;
}

}  // namespace lgreco::codecs
