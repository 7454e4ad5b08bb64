#include "token_log_probs/token_log_probs.h"

#include "core/isa.h"

namespace logpi {

#define LOGPI_DECLARE(isa)                                         \
  namespace isa {                                                  \
  RowError token_log_probs_forward(const TokenLogProbsForward&);   \
  RowError token_log_probs_backward(const TokenLogProbsBackward&); \
  }
LOGPI_DECLARE(avx512)
LOGPI_DECLARE(avx2)
LOGPI_DECLARE(sse2)
LOGPI_DECLARE(neon)
#undef LOGPI_DECLARE

RowError token_log_probs_forward(const TokenLogProbsForward& params) {
  return LOGPI_DISPATCH(token_log_probs_forward)(params);
}

RowError token_log_probs_backward(const TokenLogProbsBackward& params) {
  return LOGPI_DISPATCH(token_log_probs_backward)(params);
}

}  // namespace logpi
