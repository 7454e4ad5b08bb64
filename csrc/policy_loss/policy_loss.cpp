#include "policy_loss/policy_loss.h"

#include "core/isa.h"

namespace logpi {

#define LOGPI_DECLARE(isa)                   \
  namespace isa {                            \
  void policy_loss(const PolicyLossParams&); \
  }
LOGPI_DECLARE(avx512)
LOGPI_DECLARE(avx2)
LOGPI_DECLARE(sse2)
LOGPI_DECLARE(neon)
#undef LOGPI_DECLARE

void policy_loss(const PolicyLossParams& params) { LOGPI_DISPATCH(policy_loss)(params); }

}  // namespace logpi
