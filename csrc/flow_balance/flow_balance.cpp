#include "flow_balance/flow_balance.h"

#include <vector>

#include "core/isa.h"
#include "flow_balance/sequence.h"

namespace logpi {

#define LOGPI_DECLARE(isa)                                                               \
  namespace isa {                                                                        \
  void flow_balance_sums(const FlowBalanceForward&, int64_t, int64_t, FlowBalanceSums*); \
  void flow_balance_gradient(const FlowBalanceBackward&, int64_t, int64_t);              \
  }
LOGPI_DECLARE(avx512)
LOGPI_DECLARE(avx2)
LOGPI_DECLARE(sse2)
LOGPI_DECLARE(neon)
#undef LOGPI_DECLARE

namespace {

// Tokens a thread takes at a time: enough to pay for taking them, few enough that one long sequence
// has work for many.
constexpr int64_t kPiece = 4096;

int64_t pieces_of(int64_t num_tokens) { return (num_tokens + kPiece - 1) / kPiece; }

}  // namespace

void flow_balance_forward(const FlowBalanceForward& p) {
  const int64_t pieces = pieces_of(p.num_tokens);
  std::vector<FlowBalanceSums> sums(p.num_sequences * pieces);
  LOGPI_DISPATCH(flow_balance_sums)(p, kPiece, pieces, sums.data());
  FlowBalanceTotals totals{};
  const double divisor = divisor_of(p);
  for (int64_t i = 0; i < p.num_sequences; ++i) {
    FlowBalanceSums row{};
    for (int64_t n = i * pieces; n < (i + 1) * pieces; ++n) {
      row.tokens += sums[n].tokens;
      row.log_probs += sums[n].log_probs;
      row.ref_log_probs += sums[n].ref_log_probs;
      row.old_log_probs += sums[n].old_log_probs;
    }
    p.slopes[i] = add_sequence(p, i, row, divisor, totals);
  }
  write_results(p, totals);
}

void flow_balance_backward(const FlowBalanceBackward& p) {
  if (p.grad_log_z) {
    for (int64_t i = 0; i < p.num_sequences; ++i) {
      p.grad_log_z[i] = (float)(p.slopes[i].of_log_z * (double)*p.grad_loss);
    }
  }
  if (p.grad_log_probs) {
    LOGPI_DISPATCH(flow_balance_gradient)(p, kPiece, pieces_of(p.num_tokens));
  }
}

}  // namespace logpi
