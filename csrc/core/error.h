// Errors: ValueError for what a user can mend, Error for what went wrong while running.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace lgreco {

/// Something failed while running (a peer, a device, a file). Python sees RuntimeError.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A value that the caller chose is not allowed. Python sees ValueError.
class ValueError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

template <typename... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// Throws ValueError with the concatenated parts unless `ok`.
template <typename... Parts>
void require(bool ok, const Parts&... parts) {
  if (!ok) throw ValueError(concat(parts...));
}

/// Throws Error with the concatenated parts unless `ok`.
template <typename... Parts>
void ensure(bool ok, const Parts&... parts) {
  if (!ok) throw Error(concat(parts...));
}

}  // namespace lgreco
