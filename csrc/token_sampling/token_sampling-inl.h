// The CPU body of token_sampling, compiled once per instruction set.
//
// A row is read once for the maxima of its blocks. They bound from below what top-k can keep, and
// with the row's sum what top-p can: only blocks above that bound are looked at again.
#include "core/simd_begin.h"
#include "core/parallel.h"
#include "core/philox.h"
#include "token_sampling/token_sampling.h"

#include <stdlib.h>
#include <string.h>

namespace logpi {
namespace LOGPI_ISA {
namespace {

#include "core/simd_double.h"
#include "token_sampling/reach.h"
#include "token_sampling/row.h"

constexpr int32_t kAllTies = 0x7fffffff;

template <class T>
class Sampler {
 public:
  explicit Sampler(const TokenSamplingParams& params) : p(params), size(params.vocab_size) {
    const int64_t blocks = (size + kBlock - 1) / kBlock, tiles = (size + kTile - 1) / kTile;
    const int64_t list = p.truncated ? size + kPack : blocks;  // blocks: reach() among maxima
    sums = (double*)malloc(tiles * sizeof(double) + (blocks + 5 * list) * sizeof(float));
    maxima = (float*)(sums + tiles);
    z = maxima + blocks;
    w = z + list;
    weights = w + list;
    ids = (int32_t*)(weights + list);
    keys = (uint32_t*)(ids + list);
  }
  ~Sampler() { free(sums); }
  Sampler(const Sampler&) = delete;

  SampleError draw(int64_t row) {
    const double temperature = p.temperatures ? p.temperatures[row] : p.temperature;
    const double top_p = p.top_ps ? p.top_ps[row] : p.top_p;
    const double min_p = p.min_ps ? p.min_ps[row] : p.min_p;
    const int64_t top_k = p.top_ks ? p.top_ks[row] : p.top_k;
    if (!(temperature > 0 && temperature < __builtin_inf())) {
      return {SampleError::temperature, row, temperature};
    }
    if (top_k < 1) return {SampleError::top_k, row, (double)top_k};
    if (!(top_p > 0 && top_p <= 1)) return {SampleError::top_p, row, top_p};
    if (!(min_p >= 0 && min_p <= 1)) return {SampleError::min_p, row, min_p};

    data = (const T*)p.logits + p.logits_rows.offset(row);
    const bool clean = block_maxima(data, size, maxima);
    float top = -__builtin_inff();
    for (int64_t b = 0; b < blocks(); ++b) top = maxima[b] > top ? maxima[b] : top;
    if (!clean) top = __builtin_nanf("");
    if (!(__builtin_fabsf(top) <= kLargest)) return {SampleError::logits, row, (double)top};
    by = Scale::of(top, temperature);
    const double u = p.greedy ? 0 : uniform(p.seed, p.step, p.row_ids ? p.row_ids[row] : row);

    int64_t id, count = size;
    float drawn;
    Mass mass;
    Cut cut = {-__builtin_inff(), 0};
    if (top_k < size || top_p < 1 || min_p > 0) {
      cut = truncate(top_k, top_p, min_p, temperature);
      count = listed;
      mass = weigh();
      double target = u * lanes(mass.sum);
      const int64_t at = p.greedy ? -1 : walk(w, listed, target);
      id = at < 0 ? -1 : ids[at];
      drawn = at < 0 ? top : z[at];
    } else {
      mass = whole();
      if (p.counts) {
        count = 0;
        at_least(data, 0, size, -kLargest, [&](float, int64_t) { ++count; });
      }
      id = p.greedy ? -1 : walk_tiles(u * lanes(mass.sum), drawn);
      if (p.greedy) drawn = top;
    }
    p.token_ids[row] = p.greedy ? first_at(top) : id;
    const double sum = lanes(mass.sum), log_sum = __builtin_log(sum);
    const double log_prob = by.factor * ((double)drawn - (double)top) - log_sum;
    p.log_probs[row] = (float)(log_prob > 0 ? 0 : log_prob);
    if (p.entropy) {
      const double entropy = log_sum - kLn2 * lanes(mass.dot) / sum;
      p.entropy[row] = (float)(entropy < 0 ? 0 : entropy);
    }
    if (p.cuts) p.cuts[row] = cut;
    if (p.counts) p.counts[row] = count;
    return {};
  }

 private:
  const TokenSamplingParams& p;
  const int64_t size;
  const T* data;
  Scale by;
  double* sums;   // of tiles
  float* maxima;  // of blocks
  float *z, *w;   // the list: what may be kept, ids rising
  int32_t* ids;
  int64_t listed;
  float* weights;  // scratch of reach()
  uint32_t* keys;

  int64_t blocks() const { return (size + kBlock - 1) / kBlock; }
  int64_t tiles() const { return (size + kTile - 1) / kTile; }

  // f(x, i) for the row's packs, without blocks whose weights are all 0.
  template <class F>
  void over_live(int64_t from, int64_t to, const F& f) const {
    for (int64_t at = from; at < to; at += kBlock) {
      if (by.vanishes(maxima[at / kBlock])) continue;
      over_packs(data + at, to - at < kBlock ? to - at : kBlock, f);
    }
  }

  // The mass of the whole row, and of each tile. The order of the sums is the row's own.
  Mass whole() {
    Mass all;
    for (int64_t tile = 0; tile < tiles(); ++tile) {
      const int64_t from = tile * kTile, to = from + kTile < size ? from + kTile : size;
      Mass one;
      over_live(from, to, [&](const float* x, int64_t) { one.add(by, x); });
      sums[tile] = lanes(one.sum);
      all.sum += one.sum;
      all.dot += one.dot;
    }
    return all;
  }

  int64_t walk_tiles(double target, float& drawn) const {
    int64_t last = 0;  // rounding may carry the target past the end
    for (int64_t tile = 0; tile < tiles(); ++tile) {
      if (sums[tile] == 0) continue;
      last = tile;
      if (sums[tile] > target) break;
      target -= sums[tile];
    }
    const int64_t from = last * kTile, to = from + kTile < size ? from + kTile : size;
    alignas(kBytes) float x[kTile + kPack], e[kTile + kPack];
    over_packs(data + from, to - from, [&](const float* pack, int64_t i) {
      for (int j = 0; j < kPack; j += kLanes) {
        const vfloat v = load<vfloat>(pack + j);
        store(x + i + j, v);
        store(e + i + j, exp2(by.exponents(v)));
      }
    });
    const int64_t at = walk(e, to - from, target);
    drawn = x[at];
    return from + at;
  }

  int64_t first_at(float top) const {
    int64_t block = 0, found = -1;
    while (maxima[block] != top) ++block;
    const int64_t from = block * kBlock, left = size - from;
    at_least(data, from, left < kBlock ? left : kBlock, top, [&](float, int64_t id) {
      if (found < 0) found = id;
    });
    return found;
  }

  void list(float least) {
    listed = 0;
    for (int64_t b = 0; b < blocks(); ++b) {
      if (maxima[b] < least) continue;
      const int64_t from = b * kBlock, left = size - from;
      at_least(data, from, left < kBlock ? left : kBlock, least, [&](float x, int64_t id) {
        z[listed] = x;
        ids[listed++] = (int32_t)id;
      });
    }
  }

  // Weights of the list, and zeros up to a whole pack.
  Mass weigh() {
    Mass mass;
    over_packs(z, listed, [&](const float* x, int64_t i) {
      mass.add(by, x);
      for (int j = 0; j < kPack; j += kLanes) {
        store(w + i + j, exp2(by.exponents(load<vfloat>(x + j))));
      }
    });
    return mass;
  }

  void keep(Cut cut) {
    int64_t kept = 0;
    for (int64_t i = 0; i < listed; ++i) {
      const float x = z[i];
      const bool tie = x == cut.value;
      z[kept] = x;
      ids[kept] = ids[i];
      kept += x > cut.value || (tie && cut.ties > 0);
      cut.ties -= tie;
    }
    listed = kept;
  }

  // Lists what is kept, and says how to find it again.
  Cut truncate(int64_t top_k, double top_p, double min_p, double temperature) {
    const bool some = top_k < size;
    float lowest = -kLargest;  // of min-p: the smallest float that is large enough
    if (min_p > 0) {
      const double least = (double)by.top + temperature * __builtin_log(min_p);
      if (least > -(double)kLargest) {
        lowest = (float)least;
        if ((double)lowest < least) lowest = __builtin_nextafterf(lowest, __builtin_inff());
      }
    }
    float floor = top_p < 1 ? -kLargest : lowest;  // min-p takes nothing from top-p's sum
    double total = 0;
    if (some && top_k <= blocks()) {  // as many blocks hold a value of at least this
      const float bound = reach(maxima, nullptr, blocks(), (double)top_k, keys, weights).value;
      floor = bound > floor ? bound : floor;
    } else if (!some && top_p < 1) {
      total = lanes(whole().sum);
      // Weights below (1 - top_p) / V of the sum are together less than what may be left out.
      const double t = __builtin_log2((1 - top_p) * total / (double)size) - 0.01;
      const double bound = (double)by.top + t / (double)by.scale;
      floor = bound > (double)floor ? (float)bound : floor;
    }
    list(floor);
    Cut cut = floor > -kLargest ? Cut{floor, kAllTies} : Cut{-__builtin_inff(), 0};
    if (some && listed > top_k) {
      const Reached at = reach(z, nullptr, listed, (double)top_k, keys, weights);
      cut = {at.value, (int32_t)((double)top_k - at.before)};
      keep(cut);
    }
    if (top_p < 1) {
      const double sum = lanes(weigh().sum), target = top_p * (some ? sum : total);
      const Reached at = reach(z, w, listed, target, keys, weights);
      const float each = weight(at.value);
      const double ties = each > 0 ? __builtin_ceil((target - at.before) / (double)each) : 1;
      cut = {at.value, ties<1 ? 1 : ties>(double) size ? (int32_t)size : (int32_t)ties};
      keep(cut);
      if (lowest > cut.value) {
        cut = {lowest, kAllTies};
        keep(cut);
      }
    }
    return cut;
  }

  float weight(float x) const { return exp2(by.exponents(splat(x)))[0]; }
};

template <class T>
SampleError sample(const TokenSamplingParams& p) {
  SampleError first;
  const int threads = threads_for(p.num_rows * p.vocab_size, p.num_threads);
  const int64_t block = rows_at_a_time(p.vocab_size), count = (p.num_rows + block - 1) / block;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Sampler<T> sampler(p);
#pragma omp for schedule(dynamic)
    for (int64_t b = 0; b < count; ++b) {
      for (int64_t n = b * block; n < (b + 1) * block && n < p.num_rows; ++n) {
        const SampleError error = sampler.draw(n);
        if (error.kind == SampleError::none) continue;
#pragma omp critical(logpi_sample_error)
        if (first.kind == SampleError::none || error.row < first.row) first = error;
      }
    }
  }
  return first;
}

template <class T>
void write_kept(const TokenSamplingParams& p, const int64_t* indptr, int32_t* indices) {
  const int threads = threads_for(p.num_rows * p.vocab_size, p.num_threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t n = 0; n < p.num_rows; ++n) {
    Cut cut = p.cuts[n];
    int32_t* out = indices + indptr[n];
    const float least = cut.value < -kLargest ? -kLargest : cut.value;
    const T* row = (const T*)p.logits + p.logits_rows.offset(n);
    at_least(row, 0, p.vocab_size, least, [&](float x, int64_t id) {
      if (x > cut.value || cut.ties-- > 0) *out++ = (int32_t)id;
    });
  }
}

}  // namespace

SampleError sample_tokens(const TokenSamplingParams& p) {
  switch (p.dtype) {
    case DType::float32:
      return sample<float>(p);
    case DType::bfloat16:
      return sample<bf16_t>(p);
    case DType::float16:
      return sample<f16_t>(p);
  }
  return {};
}

void kept_ids(const TokenSamplingParams& p, const int64_t* indptr, int32_t* indices) {
  switch (p.dtype) {
    case DType::float32:
      return write_kept<float>(p, indptr, indices);
    case DType::bfloat16:
      return write_kept<bf16_t>(p, indptr, indices);
    case DType::float16:
      return write_kept<f16_t>(p, indptr, indices);
  }
}

}  // namespace LOGPI_ISA
}  // namespace logpi
