// The CPU kernels of flow_balance as Python sees them.
#include "flow_balance/bind.h"

namespace logpi {

void bind_flow_balance(py::module_& m) {
  m.def("flow_balance_forward", released(&forward_params, &flow_balance_forward));
  m.def("flow_balance_backward", released(&backward_params, &flow_balance_backward));
}

}  // namespace logpi
