#include "token_sampling/token_sampling.h"

#include "core/isa.h"

namespace logpi {

#define LOGPI_DECLARE(isa)                                             \
  namespace isa {                                                      \
  SampleError sample_tokens(const TokenSamplingParams&);               \
  void kept_ids(const TokenSamplingParams&, const int64_t*, int32_t*); \
  }
LOGPI_DECLARE(avx512)
LOGPI_DECLARE(avx2)
LOGPI_DECLARE(sse2)
LOGPI_DECLARE(neon)
#undef LOGPI_DECLARE

SampleError sample_tokens(const TokenSamplingParams& params) {
  return LOGPI_DISPATCH(sample_tokens)(params);
}

void kept_ids(const TokenSamplingParams& params, const int64_t* indptr, int32_t* indices) {
  LOGPI_DISPATCH(kept_ids)(params, indptr, indices);
}

}  // namespace logpi
