#include "covariance_clip/covariance_clip.h"

#include "core/isa.h"

namespace logpi {

#define LOGPI_DECLARE(isa)                               \
  namespace isa {                                        \
  void covariance_clip(const CovarianceClip&, int, int); \
  }
LOGPI_DECLARE(avx512)
LOGPI_DECLARE(avx2)
LOGPI_DECLARE(sse2)
LOGPI_DECLARE(neon)
#undef LOGPI_DECLARE

void covariance_clip(const CovarianceClip& params, int from, int to) {
  LOGPI_DISPATCH(covariance_clip)(params, from, to);
}

}  // namespace logpi
