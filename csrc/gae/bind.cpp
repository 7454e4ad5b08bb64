// The CPU kernel of gae as Python sees it.
#include "core/bind.h"
#include "gae/gae.h"

namespace logpi {

void bind_gae(py::module_& m) {
  m.def("gae", [](uintptr_t rewards, uintptr_t values, uintptr_t loss_mask, int64_t num_rows,
                  int64_t num_tokens, double gamma, double lam, uintptr_t advantages,
                  uintptr_t returns, uintptr_t moments, int num_threads) {
    const GaeParams p{at<const float>(rewards),
                      at<const float>(values),
                      at<const bool>(loss_mask),
                      num_rows,
                      num_tokens,
                      gamma,
                      lam,
                      at<float>(advantages),
                      at<float>(returns),
                      at<GaeMoments>(moments),
                      num_threads};
    py::gil_scoped_release release;
    gae(p);
  });
}

}  // namespace logpi
