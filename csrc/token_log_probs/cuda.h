// The CUDA launchers of token_log_probs. They neither allocate nor wait for the device.
#pragma once

#include "token_log_probs/token_log_probs.h"

namespace logpi {

struct CudaPlace {
  int device;
  void* stream;
};

// Bytes of scratch that a forward of this size wants; 0 for most.
int64_t token_log_probs_cuda_forward_scratch(int64_t num_rows, int64_t support_size, bool kept);
void token_log_probs_cuda_forward(const TokenLogProbsForward& params, void* scratch,
                                  CudaPlace place);

// `scratch` holds a float for each kept id, or nothing.
void token_log_probs_cuda_backward(const TokenLogProbsBackward& params, void* scratch,
                                   CudaPlace place);

// Forward and backward in one read and one write of the logits, for whoever knows the upstream
// gradients beforehand. Outputs: log_probs, entropy and whatever else `forward` has addresses for;
// the gradient goes to backward's grad_logits. One id a row, a contiguous support.
void token_log_probs_cuda_fused(const TokenLogProbsForward& forward,
                                const TokenLogProbsBackward& backward, CudaPlace place);

}  // namespace logpi
