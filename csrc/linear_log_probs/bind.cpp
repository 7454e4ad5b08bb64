// The CPU kernel of linear_log_probs as Python sees it.
#include "linear_log_probs/bind.h"

namespace logpi {
namespace {

void fold(const TokenLogProbsParams& call, uintptr_t state, uintptr_t targets, bool all,
          bool top1) {
  const LinearLogProbsFold p = fold_params(call, state, targets, all, top1);
  RowError error;
  {
    py::gil_scoped_release release;
    error = linear_log_probs_fold(p);
  }
  if (error.kind != RowError::none) raise(error, call);
}

}  // namespace

void bind_linear_log_probs(py::module_& m) { m.def("linear_log_probs_fold", flat(&params, &fold)); }

}  // namespace logpi
