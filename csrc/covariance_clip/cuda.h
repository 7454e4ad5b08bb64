// The CUDA launcher of covariance_clip. It neither allocates nor waits for the device.
#pragma once

#include "covariance_clip/covariance_clip.h"

namespace logpi {

// Phases [from, to), a launch each, on a stream of a device.
void covariance_clip_cuda(const CovarianceClip& params, int from, int to, int device, void* stream);

}  // namespace logpi
