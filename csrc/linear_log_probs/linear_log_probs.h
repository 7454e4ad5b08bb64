// The sums of a row of logits that comes in tiles of the vocabulary.
#pragma once

#include "token_log_probs/token_log_probs.h"

namespace logpi {

// What is carried of a row from tile to tile. One element equal to the top is left out of the sums:
// the whole sum is 1 + rest, and in a peaked row the digits of rest are the entropy.
struct FoldState {
  double top;        // the largest value so far, after softcap; -inf: none
  double rest;       // sum 2^t, t = log2(e) factor (value - top)
  double dot;        // sum t 2^t
  double square;     // sum 2^2t
  double linear;     // sum of values, the top included
  double at;         // column of the first top, or -1
  double top_logit;  // the top as a logit
};

struct LinearLogProbsFold : TokenLogProbsParams {
  FoldState* state;  // [num_rows]
  double*
      targets;  // [num_rows, ids_per_row]: values of the ids that lie in the tile; else untouched
  bool all;     // square and linear are wanted too
  bool top1;    // at is wanted
};

RowError linear_log_probs_fold(const LinearLogProbsFold& params);

}  // namespace logpi
