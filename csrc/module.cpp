// The extension's table of contents: one bind_<op>(m) line per op.
#include <pybind11/pybind11.h>

#include "core/check.h"
#include "core/isa.h"

namespace logpi {
void bind_action_sampling(pybind11::module_& m);
void bind_covariance_clip(pybind11::module_& m);
void bind_flow_balance(pybind11::module_& m);
void bind_gae(pybind11::module_& m);
void bind_linear_log_probs(pybind11::module_& m);
void bind_policy_loss(pybind11::module_& m);
void bind_token_log_probs(pybind11::module_& m);
void bind_token_sampling(pybind11::module_& m);
#ifdef LOGPI_HAS_CUDA
void bind_action_sampling_cuda(pybind11::module_& m);
void bind_covariance_clip_cuda(pybind11::module_& m);
void bind_flow_balance_cuda(pybind11::module_& m);
void bind_linear_log_probs_cuda(pybind11::module_& m);
void bind_token_log_probs_cuda(pybind11::module_& m);
void bind_token_sampling_cuda(pybind11::module_& m);
#endif
}  // namespace logpi

PYBIND11_MODULE(_C, m) {
  namespace py = pybind11;
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const logpi::ValueError& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    }
  });

  m.attr("version") = LOGPI_VERSION;
#ifdef LOGPI_HAS_CUDA
  m.attr("has_cuda") = true;
#else
  m.attr("has_cuda") = false;
#endif
  logpi::active_isa();  // a bad LOGPI_CPU_ISA stops the import with its sentence
  m.def("cpu_isa", [] { return logpi::isa_name(logpi::active_isa()); });
  m.def("force_cpu_isa", &logpi::force_isa, py::arg("name"));

  logpi::bind_action_sampling(m);
  logpi::bind_covariance_clip(m);
  logpi::bind_flow_balance(m);
  logpi::bind_gae(m);
  logpi::bind_linear_log_probs(m);
  logpi::bind_policy_loss(m);
  logpi::bind_token_log_probs(m);
  logpi::bind_token_sampling(m);
#ifdef LOGPI_HAS_CUDA
  logpi::bind_action_sampling_cuda(m);
  logpi::bind_covariance_clip_cuda(m);
  logpi::bind_flow_balance_cuda(m);
  logpi::bind_linear_log_probs_cuda(m);
  logpi::bind_token_log_probs_cuda(m);
  logpi::bind_token_sampling_cuda(m);
#endif
}
