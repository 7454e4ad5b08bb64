// Generalised advantage estimation over the rows of [num_rows, num_tokens].
#pragma once

#include <cstdint>

namespace logpi {

// What is known of the advantages of a row's unmasked tokens.
struct GaeMoments {
  double count, mean, square;  // square: sum (A - mean)^2
};

struct GaeParams {
  const float* rewards;
  const float* values;
  const bool* loss_mask;
  int64_t num_rows, num_tokens;
  double gamma, lam;
  float* advantages;
  float* returns;
  GaeMoments* moments;  // [num_rows], written; null: advantages are not whitened
  int num_threads;
};

void gae(const GaeParams& params);

}  // namespace logpi
