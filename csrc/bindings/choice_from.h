// A choice as Python gives it: {"codec": name, parameter: value, ...}.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include "codecs/choice.h"

namespace lgreco::bindings {

inline codecs::Choice choice_from(const pybind11::dict& fields) {
  codecs::Choice choice;
  for (const auto& [key, value] : fields) {
    const auto name = pybind11::cast<std::string>(key);
    (name == "codec" ? choice.codec : choice.parameters[name]) =
        pybind11::cast<std::string>(pybind11::str(value));
  }
  return choice;
}

}  // namespace lgreco::bindings
