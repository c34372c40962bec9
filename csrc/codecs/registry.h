// From a choice to its codec: the one place that knows every codec by name.
#pragma once

#include "codecs/choice.h"
#include "codecs/codec.h"

namespace lgreco::codecs {

/// Throws ValueError for an unknown codec or a parameter out of range.
std::unique_ptr<Codec> make_codec(const Choice& choice);

}  // namespace lgreco::codecs
