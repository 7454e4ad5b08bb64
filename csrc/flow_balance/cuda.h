// The CUDA launchers of flow_balance: one kernel each. They neither allocate nor wait for the
// device.
#pragma once

#include "flow_balance/flow_balance.h"

namespace logpi {

struct FlowBalancePlace {
  int device;
  void* stream;
};

// Bytes of scratch that a forward of this size wants.
int64_t flow_balance_cuda_scratch(int64_t num_sequences, int64_t num_tokens);
void flow_balance_cuda_forward(const FlowBalanceForward& params, void* scratch,
                               FlowBalancePlace place);
void flow_balance_cuda_backward(const FlowBalanceBackward& params, FlowBalancePlace place);

}  // namespace logpi
