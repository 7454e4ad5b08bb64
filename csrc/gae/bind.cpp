// The CPU kernel of gae as Python sees it.
#include <pybind11/pybind11.h>

#include "gae/gae.h"

namespace logpi {

void bind_gae(pybind11::module_& m) {
  m.def("gae", [](uintptr_t rewards, uintptr_t values, uintptr_t loss_mask, int64_t num_rows,
                  int64_t num_tokens, double gamma, double lam, uintptr_t advantages,
                  uintptr_t returns, uintptr_t moments, int num_threads) {
    const GaeParams p{reinterpret_cast<const float*>(rewards),
                      reinterpret_cast<const float*>(values),
                      reinterpret_cast<const bool*>(loss_mask),
                      num_rows,
                      num_tokens,
                      gamma,
                      lam,
                      reinterpret_cast<float*>(advantages),
                      reinterpret_cast<float*>(returns),
                      reinterpret_cast<GaeMoments*>(moments),
                      num_threads};
    pybind11::gil_scoped_release release;
    gae(p);
  });
}

}  // namespace logpi
