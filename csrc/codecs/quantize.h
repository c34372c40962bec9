// The codec that quantises by blocks to 1..8 bits.
#pragma once

#include "codecs/choice.h"
#include "codecs/codec.h"

namespace lgreco::codecs {

std::unique_ptr<Codec> make_quantize(const Choice& choice);

}  // namespace lgreco::codecs
