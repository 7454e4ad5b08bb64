// From a sequence's sums to its part of the loss: what the CPU and CUDA share. All of it in double.
#pragma once

#include <cmath>

#include "core/host_device.h"
#include "flow_balance/flow_balance.h"

namespace logpi {
namespace {

constexpr int kFlowBalanceMetrics = 10;  // METRICS of op.py, in its order

// What adds up over sequences.
struct FlowBalanceTotals {
  double tokens, log_probs, ref_log_probs, old_log_probs;
  double loss, log_z, reward, residual, weight, cut;
};
constexpr int kFlowBalanceTotals = sizeof(FlowBalanceTotals) / sizeof(double);

// The exponent is bounded and not the exponential: nothing overflows. NaN stays.
LOGPI_HOST_DEVICE inline double bounded_weight(const FlowBalanceForward& p, double drift) {
  if (drift >= p.log_high) return p.high;
  if (drift <= p.log_low) return p.low;
  return exp(drift);
}

// Sequence i into the totals; what its gradient will be.
LOGPI_HOST_DEVICE inline FlowBalanceSlopes add_sequence(const FlowBalanceForward& p, int64_t i,
                                                        const FlowBalanceSums& sums, double divisor,
                                                        FlowBalanceTotals& to) {
  const double length = sums.tokens > 0 ? sums.tokens : 1.0, log_z = (double)p.log_z[i];
  const double reward = sums.tokens > 0 ? p.reward_scale * (double)p.rewards[i] : 0.0;
  const double residual = log_z + (sums.log_probs - sums.ref_log_probs) / length - reward;
  const double drift = sums.log_probs - sums.old_log_probs;
  const double weight = bounded_weight(p, drift), slope = 2.0 * weight * residual / divisor;
  to.tokens += sums.tokens;
  to.log_probs += sums.log_probs;
  to.ref_log_probs += sums.ref_log_probs;
  to.old_log_probs += sums.old_log_probs;
  to.loss += weight * residual * residual;
  to.log_z += log_z;
  to.reward += reward;
  to.residual += residual;
  to.weight += weight;
  to.cut += drift > p.log_high || drift < p.log_low ? 1.0 : 0.0;
  return {slope / length, slope};
}

LOGPI_HOST_DEVICE inline double divisor_of(const FlowBalanceForward& p) {
  return p.divisor ? *p.divisor : p.count;
}

LOGPI_HOST_DEVICE inline void write_results(const FlowBalanceForward& p,
                                            const FlowBalanceTotals& all) {
  const double tokens = all.tokens > 0 ? all.tokens : 1.0;
  const double sequences = p.num_sequences > 0 ? (double)p.num_sequences : 1.0;
  *p.loss = (float)(all.loss / divisor_of(p));
  float* const to = p.metrics;
  to[0] = (float)(all.log_probs / tokens);
  to[1] = (float)(all.old_log_probs / tokens);
  to[2] = (float)(all.ref_log_probs / tokens);
  to[3] = (float)((all.old_log_probs - all.log_probs) / tokens);
  to[4] = (float)((all.ref_log_probs - all.log_probs) / tokens);
  to[5] = (float)(all.log_z / sequences);
  to[6] = (float)(all.reward / sequences);
  to[7] = (float)(all.residual / sequences);
  to[8] = (float)(all.weight / sequences);
  to[9] = (float)(all.cut / sequences);
}

}  // namespace
}  // namespace logpi
