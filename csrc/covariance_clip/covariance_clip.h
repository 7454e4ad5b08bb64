// Covariances, and the tokens that a rule takes by them: the arguments and what is carried from
// phase to phase. All is of the global batch: between phases ranks add up or gather what `Head`
// has.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "covariance_clip/exact_sum.h"

namespace logpi {

constexpr int kTile = 1024;        // tokens that are counted together
constexpr int kDigits = 2048;      // of 11, 11 and 10 bits, from the top of a key
constexpr uint32_t kNobody = ~0u;  // the key of a token that takes no part

enum class CovarianceRule : int { covariances, clip, kl };

// In this order; each needs the one before to be done, on every rank.
enum CovariancePhase : int {
  kSums,    // of both inputs; the tokens of each tile
  kKeys,    // c; the lowest keys are taken; histogram of their first digit
  kSecond,  // histogram of the second digit, of keys whose first is that of the last one taken
  kThird,
  kTies,  // how many keys equal the last one taken
  kMark,  // keys below it, and as many of the ties as are wanted, by index
  kEnd
};

// A radix select on its way.
struct Selected {
  int64_t prefix;  // the digits of the last key taken, as far as they are known
  int64_t wanted;  // of the keys that begin so
};

struct CovarianceHead {  // kSums begins with zeros
  ExactSum log_probs, advantages;
  int64_t count;         // of unmasked tokens
  int64_t first;         // index of the first one here
  int64_t first_tie;     // how many ties lie on earlier ranks
  int64_t ties;          // and here
  Selected selected[4];  // before each phase from kSecond on
  int32_t histogram[3][kDigits];
};

struct CovarianceClip {
  const float* log_probs;  // [num_tokens], as the next three
  const float* advantages;
  const bool* loss_mask;
  const bool* exclude;  // or null
  int64_t num_tokens;
  CovarianceRule rule;
  double fraction;
  float lower, upper;
  uint64_t seed;
  int64_t step;
  const int64_t* step_at;  // or null: where the step is
  CovarianceHead* head;
  int32_t* counts;  // [2, tiles]: unmasked tokens; ties
  uint32_t* keys;   // [num_tokens]
  int32_t* places;  // [num_tokens], of the CPU alone: which token a listed key belongs to
  void* out;        // [num_tokens]: float c, or bool
  int num_threads;
};

// Phases [from, to) on a CPU.
void covariance_clip(const CovarianceClip& params, int from, int to);

// Of the head, what a rule uses.
static inline size_t head_bytes(const CovarianceClip& p) {
  const bool selects = p.rule != CovarianceRule::covariances;
  return selects ? sizeof(CovarianceHead) : offsetof(CovarianceHead, histogram);
}

// How many tokens a rule takes. One product and one rounding, as every row has it.
LOGPI_HOST_DEVICE static inline int64_t wanted_of(int64_t count, double fraction) {
  const int64_t some = (int64_t)((double)count * fraction);
  return count == 0 ? 0 : some < 1 ? 1 : some;
}

// A key that is the smaller the larger c is, 0 for NaN; equal for -0 and 0.
LOGPI_HOST_DEVICE static inline uint32_t key_of(uint32_t bits) {
  if ((bits << 1) > 0xff000000u) return 0;
  if ((bits << 1) == 0) bits = 0;
  return bits >> 31 ? bits : bits ^ 0x7fffffffu;
}

}  // namespace logpi
