// The CUDA launcher of linear_log_probs' fold. It neither allocates nor waits for the device.
#pragma once

#include "linear_log_probs/linear_log_probs.h"
#include "token_log_probs/cuda.h"

namespace logpi {

// `top_logit` and `at` of the state are carried whether asked for or not: the one is what the next
// tile is summed against.
void linear_log_probs_cuda_fold(const LinearLogProbsFold& params, CudaPlace place);

}  // namespace logpi
