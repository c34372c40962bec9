// The codec that sends every element, as fp32, bf16 or fp16.
#pragma once

#include "codecs/choice.h"
#include "codecs/codec.h"

namespace lgreco::codecs {

std::unique_ptr<Codec> make_dense(const Choice& choice);

}  // namespace lgreco::codecs
