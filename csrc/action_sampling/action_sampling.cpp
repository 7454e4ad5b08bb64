#include "action_sampling/action_sampling.h"

#include "core/isa.h"

namespace logpi {

#define LOGPI_DECLARE(isa)                                      \
  namespace isa {                                               \
  ActionSamplingError action_sampling(const ActionSampling& p); \
  }
LOGPI_DECLARE(avx512)
LOGPI_DECLARE(avx2)
LOGPI_DECLARE(sse2)
LOGPI_DECLARE(neon)
#undef LOGPI_DECLARE

ActionSamplingError action_sampling(const ActionSampling& params) {
  return LOGPI_DISPATCH(action_sampling)(params);
}

}  // namespace logpi
