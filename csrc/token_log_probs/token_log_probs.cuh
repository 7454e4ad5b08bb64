// A row of logits on a GPU as the contract sees it, and how its sums and outputs are formed.
//
// A row is cut into segments by the size of its support alone; a segment is summed by 8 warps, each
// leaving one Partial; a row is the merge of its partials in a fixed order. Whether one block takes
// all segments or each has its own block, the bits are the same.
#pragma once

#include <float.h>

#include <type_traits>

#include "core/online_softmax.cuh"
#include "core/vector.cuh"
#include "token_log_probs/token_log_probs.h"

namespace logpi {

constexpr int kThreads = 256;  // that sum a segment
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxSegments = 32;
constexpr int64_t kSegment = 16384;  // elements, unless the row is longer than 32 of them
constexpr int64_t kSeedElements = 1024;

struct Segments {
  int64_t length;  // in elements; a whole number of vectors for every thread
  int count;

  LOGPI_HOST_DEVICE static Segments of(int64_t size) {
    const int64_t unit = 8 * kThreads;
    int64_t length = (size + kMaxSegments - 1) / kMaxSegments;
    length = length <= kSegment ? kSegment : (length + unit - 1) / unit * unit;
    const int64_t count = (size + length - 1) / length;
    return {length, count > 0 ? (int)count : 1};
  }
};

template <class T, bool kSoftcap>
struct DeviceRow {
  using Value = std::conditional_t<kSoftcap, double, float>;
  const T* z;  // the row; columns count from here
  int64_t begin, size;
  const int32_t* kept;  // or the ids of the support
  double factor;        // x = factor * squash(z)
  float scale;          // the same in units of log2
  double cap, inner;    // squash(z) = cap * tanh(inner * z / cap)
  bool valid;

  __device__ DeviceRow(const TokenLogProbsParams& p, int64_t n) {
    z = (const T*)p.logits + p.logits_rows.offset(n);
    begin = p.support_begin;
    size = p.support_end - begin;
    kept = nullptr;
    valid = true;
    if (p.keep_indptr) {
      const int64_t from = p.keep_indptr[n], to = p.keep_indptr[n + 1];
      begin = 0;
      size = from < 0 || to < from || to > p.num_keep_indices ? 0 : to - from;
      kept = p.keep_indices + (size ? from : 0);
      valid = size > 0;
    }
    double temperature = p.temperature;
    if (p.temperatures) {
      const float t = p.temperatures[n];
      valid = valid && t > 0.0f && t < INFINITY;
      temperature = (double)t;
    }
    factor = (kSoftcap ? 1.0 : p.logit_scale) / temperature;
    scale = (float)(factor * kLog2e);
    cap = p.softcap;
    inner = p.logit_scale;
  }

  // In double: the roundings of floats near the cap would show in every probability.
  __device__ Value squash(float v) const {
    if constexpr (kSoftcap) {
      const double t = exp(-2.0 * fabs(inner * (double)v / cap));
      return copysign(cap * (1.0 - t) / (1.0 + t), (double)v);
    } else {
      return v;
    }
  }
  // d squash / d z = inner * (1 - tanh^2), without the cancellation.
  __device__ float slope(float v) const {
    if (!kSoftcap) return 1.0f;
    const double t = exp(-2.0 * fabs(inner * (double)v / cap)), inverse = 1.0 / (1.0 + t);
    return (float)(4.0 * inner * t * inverse * inverse);
  }
  __device__ float operator()(float a, float b) const {
    return (float)(squash(a) - squash(b)) * scale;
  }

  // Whether column `id` is in the support; the whole warp asks together.
  __device__ bool warp_supports(int64_t id) const {
    if (!kept) return id >= begin && id < begin + size;
    bool found = false;
    for (int64_t i = threadIdx.x % kWarp; i < size; i += kWarp) found |= kept[i] == id;
    return __any_sync(kFullWarp, found);
  }
  // Entry i of a KeepSet as a logit; an id that is none makes the row NaN.
  __device__ float kept_logit(int64_t i, int64_t vocab_size) const {
    const int32_t id = kept[i];
    return id < 0 || id >= vocab_size ? NAN : to_float(z[id]);
  }
};

// A thread's sums while it reads.
template <Sums kSums, bool kSoftcap, bool kKept>
struct Accumulator {
  Partial sums;
  float bar;  // what an element must reach to become the reference

  __device__ explicit Accumulator(float seed) {
    sums = {seed, 0.0f, 0.0f, 0.0f, -1, 0.0};
    bar = seed;
  }

  // Takes z[0..n); entries past `count` are padding. id(i) is the column of entry i.
  template <int n, class Row, class Id>
  __device__ void add(const Row& row, float (&z)[n], int count, const Id& id) {
    typename Row::Value y[n], linear = 0;
    float top = -INFINITY;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      // A softcap makes infinities ordinary numbers. Not fminf: it would lose a NaN.
      if (kSoftcap && fabsf(z[i]) > FLT_MAX) z[i] = z[i] < 0.0f ? -FLT_MAX : FLT_MAX;
      y[i] = row.squash(z[i]);
      if (i < count) {
        top = fmaxf(top, z[i]);
        if (kSums == Sums::all) linear += y[i];
      } else {
        y[i] = -INFINITY;
      }
    }
    if (top >= bar) raise(row, z, y, count, top, id);
    const typename Row::Value ref = row.squash(sums.ref);
    float rest = 0.0f, dot = 0.0f, square = 0.0f;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const float t =
          (float)(y[i] - ref) * row.scale;  // subtracted first: near the top it is exact
      const float e = exp2_fast(t);
      rest += e;
      if (kSums != Sums::lse) dot = fmaf(fmaxf(t, kLowest), e, dot);
      if (kSums == Sums::all) square = fmaf(e, e, square);
    }
    if (kSums == Sums::all) sums.linear += (double)linear;  // cancels as nothing else does
    sums.rest += rest;
    sums.dot += dot;
    sums.square += square;
  }

 private:
  // Rare: rows begin with the maximum of their first thousand elements as the reference.
  template <int n, class Row, class Id>
  __device__ void raise(const Row& row, const float (&z)[n], typename Row::Value (&y)[n], int count,
                        float top, const Id& id) {
    if (kKept && sums.at >= 0 && top == sums.ref) {  // equals in any order: the lowest id counts
      for (int i = 0; i < n; ++i) {
        if (i < count && z[i] == top) sums.at = min(sums.at, (int)id(i));
      }
      return;
    }
    const float t = fmaxf(row(sums.ref, top), kLowest), w = exp2_fast(t), own = sums.own();
    sums.dot = (sums.dot + (sums.rest + own) * t) * w;
    sums.square = (sums.square + own) * (w * w);
    sums.rest = (sums.rest + own) * w;
    sums.ref = top;
    bar = kKept ? top : next_above(top);
    bool found = false;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (i >= count || z[i] != top) continue;
      if (!found) {
        y[i] = -INFINITY;  // left out of the sums
        sums.at = (int)id(i);
      } else if (kKept) {
        sums.at = min(sums.at, (int)id(i));
      }
      found = true;
    }
  }
};

// The reference that every thread of a row begins with: no more than the row's maximum.
template <class T, bool kSoftcap>
__device__ float warp_seed(const DeviceRow<T, kSoftcap>& row, int64_t vocab_size) {
  const int64_t n = row.size < kSeedElements ? row.size : kSeedElements;
  const int lane = threadIdx.x % kWarp;
  float top = -FLT_MAX;  // finite, so that a distance to it is never -inf - -inf
  if (row.kept) {
    for (int64_t i = lane; i < n; i += kWarp) top = fmaxf(top, row.kept_logit(i, vocab_size));
    return warp_max(top);
  }
  const VectorReader<T> reader(row.z + row.begin, row.size);
  const int64_t whole = n / kVector<T>;
  for (int64_t at = lane; at < whole; at += kWarp) {
    float v[kVector<T>];
    Unpack<T>::raw(reader.load(at), v);
    for (int i = 0; i < kVector<T>; ++i) top = fmaxf(top, v[i]);
  }
  const int64_t i = whole * kVector<T> + lane;
  if (i < n) top = fmaxf(top, to_float(row.z[row.begin + i]));
  return warp_max(top);
}

// Segment `at` of a row by the kThreads threads of which this is number `thread`; `seen(i, raw)` is
// told of every whole vector read. The partial is the warp's, in all its lanes.
template <Sums kSums, class T, bool kSoftcap, class Seen>
__device__ Partial sum_segment(const DeviceRow<T, kSoftcap>& row, const Segments& cut, int at,
                               float seed, int thread, const Seen& seen) {
  constexpr int n = kVector<T>;
  Accumulator<kSums, kSoftcap, false> sums(seed);
  const VectorReader<T> reader(row.z + row.begin, row.size);
  const int64_t first = at * cut.length / n, all = row.size / n;
  const int64_t last = min(first + cut.length / n, all);
  const auto take = [&](int64_t i, const uint4& raw) {
    float z[n];
    Unpack<T>::raw(raw, z);
    seen(i, raw);
    sums.add(row, z, n, [&](int j) { return row.begin + i * n + j; });
  };
  constexpr int kAhead = 4;  // loads in flight a thread
  int64_t i = first + thread;
  for (; i + (kAhead - 1) * kThreads < last; i += kAhead * kThreads) {
    uint4 raw[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) raw[j] = reader.load(i + j * kThreads);
#pragma unroll
    for (int j = 0; j < kAhead; ++j) take(i + j * kThreads, raw[j]);
  }
  for (; i < last; i += kThreads) take(i, reader.load(i));
  if (i == all && at == cut.count - 1 && all * n < row.size) {  // the row's ragged end
    const int count = (int)(row.size - all * n);
    float z[n];
#pragma unroll
    for (int j = 0; j < n; ++j) z[j] = j < count ? to_float(row.z[row.begin + all * n + j]) : 0.0f;
    sums.add(row, z, count, [&](int j) { return row.begin + all * n + j; });
  }
  return warp_merge<kSums>(sums.sums, row);
}

// The same of a KeepSet's entries.
template <Sums kSums, class T, bool kSoftcap>
__device__ Partial sum_kept(const DeviceRow<T, kSoftcap>& row, const Segments& cut, int at,
                            float seed, int64_t vocab_size) {
  Accumulator<kSums, kSoftcap, true> sums(seed);
  const int64_t first = at * cut.length, last = min(first + cut.length, row.size);
  for (int64_t i = first + threadIdx.x; i < last; i += kThreads) {
    float z[1] = {row.kept_logit(i, vocab_size)};
    sums.add(row, z, 1, [&](int) { return row.kept[i]; });
  }
  return warp_merge<kSums>(sums.sums, row);
}

__device__ inline void write_masked(const TokenLogProbsForward& p, int64_t n) {
  for (int64_t k = threadIdx.x % kWarp; k < p.ids_per_row; k += kWarp) {
    p.log_probs[n * p.ids_per_row + k] = 0.0f;
    if (p.top1) p.top1[n * p.ids_per_row + k] = false;
  }
  if (threadIdx.x % kWarp != 0) return;
  if (p.entropy) p.entropy[n] = 0.0f;
  if (p.collision) p.collision[n] = 0.0f;
  if (p.lse) p.lse[n] = 0.0f;
  if (p.mean_logit) p.mean_logit[n] = 0.0f;
  if (p.stats) p.stats[n] = {0.0f, 0.0f, 0.0f};
}

// A row's log(sum) and mean of x - ref under p, NaN where the row has no distribution.
struct RowResult {
  double sum, log_sum, mean_shifted;

  __device__ RowResult(const RowSums& sums, bool valid) {
    const bool good = valid && sums.at >= 0 && sums.ref < INFINITY;
    sum = good ? 1.0 + sums.rest : (double)NAN;
    log_sum = good ? log1p(sums.rest) : (double)NAN;
    mean_shifted = kLn2 * sums.dot / sum;
  }
  // For the backward, with the reference as a logit.
  __device__ RowStats stats(const RowSums& sums) const {
    return {sums.ref, (float)(1.0 / sum), (float)mean_shifted};
  }
  __device__ double entropy() const {
    const double h = log_sum - mean_shifted;
    return h < 0.0 ? 0.0 : h;
  }
};

// Writes a row's outputs; one warp.
template <class T, bool kSoftcap>
__device__ void finish(const TokenLogProbsForward& p, int64_t n, const DeviceRow<T, kSoftcap>& row,
                       const RowSums& sums) {
  const RowResult result(sums, row.valid);
  const double ref = (double)row.squash(sums.ref);
  const int lane = threadIdx.x % kWarp;
  for (int64_t k = 0; k < p.ids_per_row; ++k) {  // together: a KeepSet is searched by the warp
    const int64_t at = n * p.ids_per_row + k, id = p.token_ids[at];
    const bool legal = id >= 0 && id < p.vocab_size;
    const bool inside = legal && row.warp_supports(id);
    if (lane != k % kWarp) continue;
    double x = legal ? -INFINITY : NAN;
    if (inside) x = row.factor * ((double)row.squash(to_float(row.z[id])) - ref);
    double log_prob = x - result.log_sum;
    log_prob = log_prob > 0.0 ? 0.0 : log_prob;
    p.log_probs[at] = (float)log_prob;
    if (p.top1) p.top1[at] = inside && id == sums.at && log_prob == log_prob;
  }
  if (lane != 0) return;
  if (p.entropy) p.entropy[n] = (float)result.entropy();
  if (p.collision) p.collision[n] = (float)((1.0 + sums.square) / (result.sum * result.sum));
  const bool nothing = row.valid && sums.at < 0 && sums.rest == 0.0;  // but -inf
  if (p.lse) p.lse[n] = nothing ? -INFINITY : (float)(row.factor * ref + result.log_sum);
  if (p.mean_logit) {
    p.mean_logit[n] = row.valid ? (float)(row.factor * (sums.linear / (double)row.size)) : NAN;
  }
  if (p.stats) p.stats[n] = result.stats(sums);
}

}  // namespace logpi
