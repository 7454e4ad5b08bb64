// The CPU kernel of action_sampling as Python sees it.
#include "action_sampling/bind.h"

#include <sstream>

namespace logpi {
namespace {

void run(const ActionSampling& p) {
  const ActionSamplingError error = action_sampling(p);
  if (error.kind == ActionSamplingError::none) return;
  std::ostringstream text;
  if (error.kind == ActionSamplingError::temperature) {
    text << "temperature: expected finite values above 0, got " << error.value;
  } else {
    text << "logits: expected rows with a finite maximum and no NaN, got a maximum of "
         << error.value;
  }
  text << " in row " << error.row;
  throw ValueError(text.str());
}

}  // namespace

void bind_action_sampling(py::module_& m) {
  m.def("action_sampling", released(&action_sampling_params, &run));
}

}  // namespace logpi
