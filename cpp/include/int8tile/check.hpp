// Argument checks: the exceptions the library throws and a helper that writes their messages.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace int8tile {

/// The request is valid but this machine or build cannot serve it.
struct UnsupportedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

/// Throws std::invalid_argument with the joined parts unless `condition` holds.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) throw std::invalid_argument(concat(parts...));
}

}  // namespace int8tile
