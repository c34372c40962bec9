// From a choice to its codec: the one place that knows every codec by name.
#include "codecs/registry.h"

#include "codecs/dense.h"
#include "codecs/quantize.h"
#include "codecs/sparse.h"
#include "core/error.h"

namespace lgreco::codecs {

std::unique_ptr<Codec> make_codec(const Choice& choice) {
  if (choice.codec == "dense") return make_dense(choice);
  if (choice.codec == "quantize") return make_quantize(choice);
  if (choice.codec == "topk") return make_topk(choice);
  if (choice.codec == "randomk") return make_randomk(choice);
  throw ValueError(
      concat("codec must be dense, quantize, topk, randomk or lowrank, got '", choice.codec, "'"));
}

}  // namespace lgreco::codecs
