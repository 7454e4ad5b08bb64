// Addresses and sizes from Python to the fold: what the CPU's and CUDA's bindings share.
#pragma once

#include "linear_log_probs/linear_log_probs.h"
#include "token_log_probs/bind.h"

namespace logpi {
namespace {

LinearLogProbsFold fold_params(const TokenLogProbsParams& call, uintptr_t state, uintptr_t targets,
                               bool all, bool top1) {
  LinearLogProbsFold p{};
  static_cast<TokenLogProbsParams&>(p) = call;
  p.state = at<FoldState>(state);
  p.targets = at<double>(targets);
  p.all = all;
  p.top1 = top1;
  return p;
}

}  // namespace
}  // namespace logpi
