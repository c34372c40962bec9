// A choice: a codec's name with its parameters, as parsed and validated by Python.
#pragma once

#include <map>
#include <string>

namespace lgreco::codecs {

/// Parameters by name, as text: {"bits": "4", "grid": "minmax", ...}. Plain data, no behaviour.
struct Choice {
  std::string codec;
  std::map<std::string, std::string> parameters;

  bool operator<(const Choice& other) const {
    return codec != other.codec ? codec < other.codec : parameters < other.parameters;
  }
  bool operator==(const Choice& other) const = default;

  /// Canonical text, for messages and hashes: "quantize(bits=4, block=512)".
  std::string text() const;

  /// The parameter's text; throws ValueError where it is missing.
  const std::string& text_of(const std::string& key) const;
  /// The parameter as an integer within [low, high]; throws ValueError otherwise.
  int integer_of(const std::string& key, int low, int high) const;
  /// The parameter as a number within [low, high]; throws ValueError otherwise.
  double number_of(const std::string& key, double low, double high) const;
};

}  // namespace lgreco::codecs
