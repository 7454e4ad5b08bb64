// The CUDA launcher of action_sampling: one kernel. It neither allocates nor waits for the device.
#pragma once

#include "action_sampling/action_sampling.h"

namespace logpi {

struct ActionSamplingPlace {
  int device;
  void* stream;
};

void action_sampling_cuda(const ActionSampling& params, ActionSamplingPlace place);

}  // namespace logpi
