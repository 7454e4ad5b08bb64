// From Python's arguments to a kernel's: what the bindings of every op share.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "core/check.h"
#include "core/rows.h"

namespace logpi {

namespace py = pybind11;

// Addresses are integers; 0 stands for an argument that is absent.
template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline Rows rows(const py::tuple& sizes, const py::tuple& strides) {
  Rows out{};
  out.dims = static_cast<int>(sizes.size());
  if (out.dims < 1 || out.dims > Rows::kMaxDims) {
    throw ValueError("logits: expected 1 to 4 leading dims, got " + std::to_string(out.dims));
  }
  for (int i = 0; i < out.dims; ++i) {
    out.sizes[i] = sizes[i].cast<int64_t>();
    out.strides[i] = strides[i].cast<int64_t>();
  }
  return out;
}

// Python passes the arguments of make() and then those of f: one call, no object in between.
template <class Params, class... Call, class... Rest>
auto flat(Params (*make)(Call...), void (*f)(const Params&, Rest...)) {
  return [make, f](Call... call, Rest... rest) { f(make(call...), rest...); };
}

// The same for an f that touches no Python object: other threads run meanwhile.
template <class Params, class... Call, class... Rest>
auto released(Params (*make)(Call...), void (*f)(const Params&, Rest...)) {
  return [make, f](Call... call, Rest... rest) {
    const Params p = make(call...);
    py::gil_scoped_release release;
    f(p, rest...);
  };
}

}  // namespace logpi
