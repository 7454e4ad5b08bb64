#include "linear_log_probs/linear_log_probs.h"

#include "core/isa.h"

namespace logpi {

#define LOGPI_DECLARE(isa)                                   \
  namespace isa {                                            \
  RowError linear_log_probs_fold(const LinearLogProbsFold&); \
  }
LOGPI_DECLARE(avx512)
LOGPI_DECLARE(avx2)
LOGPI_DECLARE(sse2)
LOGPI_DECLARE(neon)
#undef LOGPI_DECLARE

RowError linear_log_probs_fold(const LinearLogProbsFold& params) {
  return LOGPI_DISPATCH(linear_log_probs_fold)(params);
}

}  // namespace logpi
