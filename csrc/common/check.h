// One clear sentence for wrong input, without the file and line that torch's own macro puts in front.
#pragma once
#include <sstream>
#include <stdexcept>

#define PYPOSEEXT_CHECK(condition, ...) \
  do {                                  \
    if (!(condition)) ::pyposeext::fail(__VA_ARGS__); \
  } while (false)

namespace pyposeext {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace pyposeext
