#include "gae/gae.h"

#include "core/isa.h"

namespace logpi {

#define LOGPI_DECLARE(isa)    \
  namespace isa {             \
  void gae(const GaeParams&); \
  }
LOGPI_DECLARE(avx512)
LOGPI_DECLARE(avx2)
LOGPI_DECLARE(sse2)
LOGPI_DECLARE(neon)
#undef LOGPI_DECLARE

void gae(const GaeParams& params) { LOGPI_DISPATCH(gae)(params); }

}  // namespace logpi
