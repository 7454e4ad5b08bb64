// The CPU body of linear_log_probs, compiled once per instruction set: a tile of logits into the
// state of its rows. The gradient of a tile is token_log_probs' backward.
#include "core/simd_begin.h"
#include "core/parallel.h"
#include "linear_log_probs/linear_log_probs.h"

#include <stdlib.h>
#include <string.h>

namespace logpi {
namespace LOGPI_ISA {
namespace {

#include "core/simd_double.h"
#include "core/softmax_sums.h"
#include "token_log_probs/row.h"
#include "token_log_probs/sum_rows.h"

// The column of the first of [from, to) that is `top`, the maximum of them: by halves, each looked
// at as vectors.
template <class T>
int64_t first_of(const T* z, int64_t from, int64_t to, float top) {
  while (to - from > 1) {
    const int64_t middle = from + (to - from) / 2;
    if (max_of(z + from, middle - from) == top) {
      to = middle;
    } else {
      from = middle;
    }
  }
  return from;
}

// A tile's sums into the row's. All of it in double: tiles may be many.
void merge_into(FoldState& s, const RowSums& tile, double scale) {
  s.linear += tile.linear;
  if (tile.sum == 0 || s.top != s.top) return;  // nothing but -inf; or NaN already
  if (tile.sum != tile.sum || tile.ref != tile.ref) {
    s.top = __builtin_nan("");
    return;
  }
  if (s.top >= tile.ref) {
    const double t = (tile.ref - s.top) * scale, w = __builtin_exp2(t);
    s.rest += tile.sum * w;
    s.dot += (tile.dot + tile.sum * t) * w;
    s.square += tile.square * w * w;
    return;
  }
  double rest = 0, dot = 0, square = 0;
  if (s.top != -__builtin_inf()) {
    const double t = (s.top - tile.ref) * scale, w = __builtin_exp2(t), whole = 1 + s.rest;
    rest = whole * w;
    dot = (s.dot + whole * t) * w;
    square = (1 + s.square) * w * w;
  }
  s.top = tile.ref;
  s.rest = rest + (tile.sum - 1);
  s.dot = dot + tile.dot;
  s.square = square + (tile.square - 1);
}

template <class T>
RowError fold(const LinearLogProbsFold& p) {
  const Want want = p.all ? Want::all : Want::entropy;
  return sum_rows<T>(
      p, want, [](int64_t) {},
      [&](int64_t n, const Row<T>& row, const RowSums& sums) {
        FoldState& s = p.state[n];
        merge_into(s, sums, (double)row.scale);
        if (p.top1) {  // by logits: a softcap may make equals of what is not
          const float top = max_of(row.z + row.begin, row.size());
          if ((double)top > s.top_logit) {
            s.top_logit = (double)top;
            s.at = (double)first_of(row.z, row.begin, row.end, top);
          }
        }
        for (int64_t k = 0; k < p.ids_per_row; ++k) {
          const int64_t at = n * p.ids_per_row + k, id = p.token_ids[at];
          if (row.supports(id)) p.targets[at] = row.value(id);
        }
      });
}

}  // namespace

RowError linear_log_probs_fold(const LinearLogProbsFold& p) {
  switch (p.dtype) {
    case DType::float32:
      return fold<float>(p);
    case DType::bfloat16:
      return fold<bf16_t>(p);
    case DType::float16:
      return fold<f16_t>(p);
  }
  return {};
}

}  // namespace LOGPI_ISA
}  // namespace logpi
