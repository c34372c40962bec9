// The codecs that send a fixed share of each block: the largest elements (topk), or ones that all ranks
// draw alike (randomk).
#pragma once

#include "codecs/choice.h"
#include "codecs/codec.h"

namespace lgreco::codecs {

std::unique_ptr<Codec> make_topk(const Choice& choice);
std::unique_ptr<Codec> make_randomk(const Choice& choice);

}  // namespace lgreco::codecs
