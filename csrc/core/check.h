// Errors that reach Python as ValueError: the argument, what was expected, what came.
#pragma once

#include <stdexcept>
#include <string>

namespace logpi {

struct ValueError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace logpi
