// Reading parameters out of a choice, with errors that name the choice.
#include "codecs/choice.h"

#include <charconv>

#include "core/error.h"

namespace lgreco::codecs {

std::string Choice::text() const {
  std::string out = codec + "(";
  const char* separator = "";
  for (const auto& [key, value] : parameters) {
    out += separator + key + "=" + value;
    separator = ", ";
  }
  return out + ")";
}

const std::string& Choice::text_of(const std::string& key) const {
  const auto found = parameters.find(key);
  require(found != parameters.end(), text(), " lacks the parameter '", key, "'");
  return found->second;
}

int Choice::integer_of(const std::string& key, int low, int high) const {
  const std::string& value = text_of(key);
  int number = 0;
  const auto [end, status] = std::from_chars(value.data(), value.data() + value.size(), number);
  require(status == std::errc() && end == value.data() + value.size() && number >= low && number <= high,
          key, " must be ", low, "..", high, ", got ", value, " in ", text());
  return number;
}

double Choice::number_of(const std::string& key, double low, double high) const {
  const std::string& value = text_of(key);
  double number = 0.0;
  const auto [end, status] = std::from_chars(value.data(), value.data() + value.size(), number);
  require(status == std::errc() && end == value.data() + value.size() && number >= low && number <= high,
          key, " must be from ", low, " to ", high, ", got ", value, " in ", text());
  return number;
}

}  // namespace lgreco::codecs
