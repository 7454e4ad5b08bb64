// The CPU kernels of covariance_clip as Python sees them.
#include "covariance_clip/bind.h"

#include "core/philox.h"

namespace logpi {

void bind_covariance_clip(py::module_& m) {
  m.def("covariance_clip", released(&covariance_params, &covariance_clip));
  m.def("philox", [](uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t key, uint32_t other) {
    const Philox out = philox({{a, b, c, d}}, key, other);
    return py::make_tuple(out.x[0], out.x[1], out.x[2], out.x[3]);
  });
  m.def("uniform", &uniform);
}

}  // namespace logpi
