// The CUDA launchers of token_sampling. They neither allocate nor wait for the device.
#pragma once

#include "token_sampling/token_sampling.h"

namespace logpi {

struct TokenSamplingPlace {
  int device;
  void* stream;
};

// `step_at`: where the step is, or null for params.step. A bad row has log-prob and entropy NaN and
// token 0, and keeps token 0.
void sample_tokens_cuda(const TokenSamplingParams& params, const int64_t* step_at,
                        TokenSamplingPlace place);
// The kept ids of every row, rising, from what sample_tokens_cuda left in `cuts`.
void kept_ids_cuda(const TokenSamplingParams& params, const int64_t* indptr, int32_t* indices,
                   TokenSamplingPlace place);

}  // namespace logpi
