// Tokens drawn on a GPU: a block a row, which memory sends once; what comes after finds it in L2.
//
// A first walk leaves the largest of every strip. Whatever is looked for later skips the strips
// that lie below it: after top-k or top-p, nearly all. Weights are rounded down to integers, so
// that the mass of any set of them is exact, whoever adds it up and in whatever order.
#include "core/check.h"
#include "core/dispatch.h"
#include "core/philox.h"
#include "token_sampling/cuda.h"
#include "token_sampling/strips.cuh"

namespace logpi {
namespace {

using Mass = unsigned long long;

constexpr int32_t kAllTies = 0x7fffffff;
constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits, kEach = kDigits / kThreads;
constexpr int kAtOnce = 4;  // loads of a warp that are under way together
constexpr double kLargest = 3.40282346638528859812e38;

// e^((z - top) / temperature), by way of 2^t; as a float, and as an integer: in units of 1 / unit.
struct Weight {
  float top, scale, unit;

  __device__ Weight(float largest, double temperature, int64_t size) : top(largest) {
    scale = (float)fmin(fmax(kLog2e / temperature, 1e-37), 1e38);  // 0 and -inf times it stay so
    // The sum of as many as there are is at most 2^62.
    const int bits = size > 1 ? 64 - __clzll(size - 1) : 0;
    unit = (float)(1ull << (62 - bits));
  }
  __device__ float exponent(float z) const { return fmaxf((z - top) * scale, kLowest); }
  __device__ Mass whole(float w) const { return (Mass)(w * unit); }
  __device__ Mass of(float z) const { return whole(exp2_fast(exponent(z))); }
};

// What a row keeps: keys above `key`, and the first `ties` of those that equal it.
struct Kept {
  int32_t key, ties;  // kAllTies: whatever there is

  __device__ bool some() const { return ties != kAllTies; }
};

struct Reached {
  int32_t key;  // the highest of which, with all above it, there is as much as asked for
  Mass above;   // how much there is above it
  bool reached;
};

template <class T>
struct Row {
  Strips<T> strips;
  int32_t (&tops)[kStrips];  // the largest key of each
  Mass (&bins)[kDigits];

  // f(z, key) for all elements of strips that have a key of at least `least`.
  template <class F>
  __device__ __forceinline__ void over(int32_t least, const F& f) const {
    for (int strip = threadIdx.x / kWarp; strip < strips.count; strip += kWarps) {
      if (tops[strip] < least) continue;
      for (int at = 0; at < strips.each; ++at) {
        float z[Strips<T>::n];
        strips.load(strip, at, z);
#pragma unroll
        for (int i = 0; i < Strips<T>::n; ++i) f(z[i], key_of<T>(z[i]));
      }
    }
  }

  // A key that at least k strips reach, hence k elements; near the highest there is.
  __device__ __forceinline__ int32_t reached_by(int64_t k, int32_t low, int32_t high) const {
    int64_t at = low;
    int64_t step = (int64_t)1 << (63 - __clzll(((int64_t)high - low) | 1));
    for (int bit = 0; bit < 12 && step > 0; ++bit, step /= 2) {
      int mine = 0;
      for (int i = threadIdx.x; i < strips.count; i += kThreads) mine += tops[i] >= at + step;
      if (block_sum(mine) >= k) at += step;
    }
    return (int32_t)at;
  }

  // Radix select among the keys in [low, high], each with the amount that amount(z, key) gives;
  // `more` is added at `low`.
  template <class F>
  __device__ __forceinline__ Reached reach(int32_t low, int32_t high, Mass target, Mass more,
                                           const F& amount) const {
    __shared__ int digit;
    __shared__ Mass over_it;
    Mass above = 0;
    for (;;) {
      const uint32_t range = (uint32_t)high - (uint32_t)low;
      const int bits = 32 - __clz((int)range), shift = max(bits - kDigitBits, 0);
      for (int i = threadIdx.x; i < kDigits; i += kThreads) bins[i] = 0;
      if (threadIdx.x == 0) {
        digit = -1;
        over_it = 0;
      }
      __syncthreads();
      over(low, [&](float z, int32_t key) {
        if (key < low || key > high) return;
        const Mass x = amount(z, key);
        if (x) atomicAdd(&bins[((uint32_t)key - (uint32_t)low) >> shift], x);
      });
      if (threadIdx.x == 0 && more) atomicAdd(&bins[0], more);
      __syncthreads();
      const int highest = kDigits - 1 - kEach * (int)threadIdx.x;
      Mass mine = 0;
      for (int i = 0; i < kEach; ++i) mine += bins[highest - i];
      const Scan<Mass> scan = block_scan(mine);
      Mass passed = above + scan.before;
      if (passed < target && passed + mine >= target) {  // one thread
        int at = highest;
        while (passed + bins[at] < target) passed += bins[at--];
        digit = at;
        over_it = passed;
      }
      __syncthreads();
      const int found = digit;
      above = over_it;
      __syncthreads();
      if (found < 0) return {low, 0, false};
      if (found != 0) more = 0;
      low = (int32_t)((uint32_t)low + ((uint32_t)found << shift));
      if (shift == 0) return {low, above, true};
      high = (int32_t)min((int64_t)high, low + ((int64_t)1 << shift) - 1);
    }
  }
};

// The cut of a good row: top-k, then top-p among what that left, then min-p.
template <class T>
__device__ __forceinline__ Kept truncate(const Row<T>& row, const Weight& weight, int32_t best,
                                         int64_t k, double p, double min_p, double temperature) {
  const int64_t size = row.strips.size;
  Kept kept = {key_from<T>(-kLargest), kAllTies};  // all but -inf
  if (k < size) {
    const int32_t low = k <= row.strips.count ? row.reached_by(k, kept.key, best) : kept.key;
    const Reached at = row.reach(low, best, (Mass)k, 0, [](float, int32_t) { return (Mass)1; });
    if (at.reached) kept = {at.key, (int32_t)((Mass)k - at.above)};
  }
  if (p < 1) {
    const Mass tie = weight.of(value_of<T>(kept.key)), ties = kept.some() ? kept.ties * tie : 0;
    const int32_t from = kept.some() ? kept.key + 1 : kept.key;
    const auto amount = [&](float z, int32_t key) { return key < from ? 0 : weight.of(z); };
    Mass mine = 0;
    row.over(from, [&](float z, int32_t key) { mine += amount(z, key); });
    const Mass total = block_sum(mine) + ties;
    const Mass target = min((Mass)ceil(p * (double)total), total);
    int32_t low = kept.key;
    if (!kept.some()) {
      // Weights below (1 - p) / V of the sum are together less than what may be left out.
      const double share = (1 - p) * ((double)total / (double)weight.unit) / (double)size;
      const double least = (double)weight.top + (log2(share) - 0.01) / (double)weight.scale;
      low = max(low, key_from<T>(least));
    }
    const Reached at = row.reach(low, best, target, ties, amount);
    const Mass each = weight.of(value_of<T>(at.key));
    const double need = each ? ceil((double)(target - at.above) / (double)each) : 1.0;
    const double most = (double)(at.key == kept.key ? kept.ties : (int32_t)size);
    kept = {at.key, (int32_t)fmin(need, most)};
  }
  if (min_p > 0) {
    const int32_t least = key_from<T>((double)weight.top + temperature * log(min_p));
    if (least > kept.key) kept = {least, kAllTies};
  }
  return kept;
}

// What is drawn, as one thread tells the others.
struct Draw {
  int strip, ties;  // where the target falls, and how many ties may be taken there
  Mass target;      // what is left of it at the strip's beginning
  int64_t id;
  float z;
};

// A warp looks for the place in the strip that the draw is in.
template <class T>
__device__ __forceinline__ void walk(const Strips<T>& strips, const Weight& weight,
                                     const Kept& kept, int32_t best, bool greedy, Draw& draw) {
  constexpr int n = Strips<T>::n;
  Mass passed = 0;
  int seen = 0;  // ties
  for (int at = 0; at < strips.each; ++at) {
    float z[n];
    strips.load(draw.strip, at, z);
    int ties = 0;
#pragma unroll
    for (int i = 0; i < n; ++i) ties += key_of<T>(z[i]) == kept.key;
    int rank = seen + warp_before(ties);
    unsigned in = 0;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const int32_t key = key_of<T>(z[i]);
      const bool kept_tie = key == kept.key && rank++ < draw.ties;
      in |= (unsigned)(greedy ? key == best : key > kept.key || kept_tie) << i;
    }
    const auto amount = [&](int i) -> Mass {
      return in >> i & 1 ? greedy ? 1 : weight.of(z[i]) : 0;
    };
    Mass sum = 0;
#pragma unroll
    for (int i = 0; i < n; ++i) sum += amount(i);
    Mass upto = passed + warp_before(sum);
    const unsigned hits = __ballot_sync(kFullWarp, upto + sum > draw.target);
    if (hits != 0) {
      if ((int)(threadIdx.x % kWarp) != __ffs((int)hits) - 1) return;
      int place = 0;
      float value = z[0];
#pragma unroll
      for (int i = 0; i < n - 1; ++i) {
        upto += amount(i);
        if (upto > draw.target) break;
        place = i + 1;
        value = z[i + 1];
      }
      draw.id = strips.first(draw.strip, at) + place;
      draw.z = value;
      return;
    }
    seen += warp_sum(ties);
    passed += warp_sum(sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    sample_tokens_rows(TokenSamplingParams p, const int64_t* step_at) {
  constexpr int n = Strips<T>::n;
  __shared__ int32_t tops[kStrips], tied[kStrips];
  __shared__ Mass masses[kStrips], bins[kDigits];
  __shared__ Draw draw;
  const int64_t at = blockIdx.x;
  const int lane = threadIdx.x % kWarp;
  const Row<T> row = {Strips<T>((const T*)p.logits + p.logits_rows.offset(at), p.vocab_size), tops,
                      bins};
  const Strips<T>& strips = row.strips;

  int odd = 0;
  int32_t best = INT32_MIN;
  for (int from = threadIdx.x / kWarp; from < strips.count; from += kAtOnce * kWarps) {
    float tops_of[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) tops_of[j] = -INFINITY;
    for (int vector = 0; vector < strips.each; ++vector) {
      float z[kAtOnce][n];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) strips.load(from + j * kWarps, vector, z[j]);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
        for (int i = 0; i < n; ++i) {
          odd |= z[j][i] != z[j][i];
          tops_of[j] = fmaxf(tops_of[j], z[j][i]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int32_t key = __reduce_max_sync(kFullWarp, key_of<T>(tops_of[j]));
      const int strip = from + j * kWarps;
      if (lane == 0 && strip < strips.count) tops[strip] = key;
      best = max(best, key);
    }
  }
  best = block_max(best);
  const float top = value_of<T>(best);
  const double temperature = p.temperatures ? p.temperatures[at] : p.temperature;
  const double top_p = p.top_ps ? p.top_ps[at] : p.top_p;
  const double min_p = p.min_ps ? p.min_ps[at] : p.min_p;
  const int64_t top_k = p.top_ks ? p.top_ks[at] : p.top_k;
  const bool good = __syncthreads_or(odd) == 0 && fabsf(top) <= (float)kLargest &&
                    temperature > 0 && temperature < INFINITY && top_k >= 1 && top_p > 0 &&
                    top_p <= 1 && min_p >= 0 && min_p <= 1;
  if (!good) {
    if (threadIdx.x != 0) return;
    p.token_ids[at] = 0;
    p.log_probs[at] = NAN;
    if (p.entropy) p.entropy[at] = NAN;
    if (p.cuts) p.cuts[at] = {NAN, 0};
    if (p.counts) p.counts[at] = 1;
    return;
  }
  const Weight weight(top, temperature, strips.size);
  const Kept kept = truncate(row, weight, best, top_k, top_p, min_p, temperature);

  // ---- sums over what is kept, without the ties
  double rest = 0, dot = 0;
  int ones = 0, count = 0;
  for (int strip = threadIdx.x / kWarp; strip < strips.count; strip += kWarps) {
    Mass mass = 0;
    int ties = 0;
    if (tops[strip] >= kept.key) {
      for (int vector = 0; vector < strips.each; ++vector) {
        float z[n], some = 0, turned = 0;
        strips.load(strip, vector, z);
#pragma unroll
        for (int i = 0; i < n; ++i) {
          const int32_t key = key_of<T>(z[i]);
          ties += key == kept.key;
          if (key <= kept.key) continue;
          const float t = weight.exponent(z[i]), w = exp2_fast(t);
          ++count;
          mass += weight.whole(w);
          turned += w * t;
          if (t == 0.0f) {
            ++ones;
          } else {
            some += w;
          }
        }
        rest += (double)some;
        dot += (double)turned;
      }
      mass = warp_sum(mass);
      ties = warp_sum(ties);
    }
    if (lane == 0) {
      masses[strip] = mass;
      tied[strip] = ties;
    }
  }
  __syncthreads();

  // ---- the ties of each strip, and the strip that the draw falls into
  constexpr int each = kStrips / kThreads;
  int ties_of[each], ties = 0;
  Mass mass_of[each], mass = 0;
#pragma unroll
  for (int i = 0; i < each; ++i) {
    const int strip = each * (int)threadIdx.x + i;
    ties_of[i] = strip < strips.count ? tied[strip] : 0;
    mass_of[i] = strip < strips.count ? masses[strip] : 0;
    ties += ties_of[i];
  }
  const Scan<int> ranks = block_scan(ties);
  const Mass tie = weight.of(value_of<T>(kept.key));
  int before = ranks.before;
#pragma unroll
  for (int i = 0; i < each; ++i) {
    const int taken = min(max(kept.ties - before, 0), ties_of[i]);
    before += ties_of[i];
    ties_of[i] = taken;
    mass_of[i] += taken * tie;
    if (p.greedy) {
      const int strip = each * (int)threadIdx.x + i;
      mass_of[i] = strip < strips.count && tops[strip] == best;
    }
    mass += mass_of[i];
  }
  const Scan<Mass> scan = block_scan(mass);
  Mass target = 0;
  if (!p.greedy) {
    const int64_t step = step_at ? *step_at : (int64_t)p.step;
    const int64_t name = p.row_ids ? p.row_ids[at] : at;
    const double u = uniform(p.seed, (uint64_t)step, (uint64_t)name);
    target = min((Mass)(u * (double)scan.all), scan.all - 1);
  }
  Mass passed = scan.before;
#pragma unroll
  for (int i = 0; i < each; ++i) {  // one thread and one i
    if (passed <= target && target < passed + mass_of[i]) {
      draw.strip = each * (int)threadIdx.x + i;
      draw.ties = ties_of[i];
      draw.target = target - passed;
    }
    passed += mass_of[i];
  }
  __syncthreads();
  if (threadIdx.x < kWarp) walk(strips, weight, kept, best, p.greedy, draw);

  rest = block_sum(rest);
  dot = block_sum(dot);
  count = block_sum(count);
  ones = block_sum(ones);
  if (threadIdx.x != 0) return;
  const int taken = min(kept.ties, ranks.all);
  const float t = weight.exponent(value_of<T>(kept.key)), w = exp2_fast(t);
  count += taken;
  dot += (double)taken * (double)(w * t);
  if (t == 0.0f) {
    ones += taken;
  } else {
    rest += (double)taken * (double)w;
  }
  rest += (double)(ones - 1);  // without one of the largest, which is 1
  // Asked for again: registers are few.
  const double divisor = p.temperatures ? p.temperatures[at] : p.temperature;
  const double factor = divisor < 1e-300 ? 1e300 : 1 / divisor;
  const double log_sum = log1p(rest), entropy = log_sum - kLn2 * dot / (1 + rest);
  p.token_ids[at] = draw.id;
  p.log_probs[at] = (float)fmin(factor * ((double)draw.z - (double)top) - log_sum, 0.0);
  if (p.entropy) p.entropy[at] = (float)fmax(entropy, 0.0);
  if (p.cuts) p.cuts[at] = {value_of<T>(kept.key), kept.ties};
  if (p.counts) p.counts[at] = count;
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    kept_ids_rows(TokenSamplingParams p, const int64_t* indptr, int32_t* indices) {
  constexpr int n = kVector<T>;
  const int64_t at = blockIdx.x, size = p.vocab_size;
  const T* const z = (const T*)p.logits + p.logits_rows.offset(at);
  const VectorReader<T> reader(z, size);
  const Cut cut = p.cuts[at];
  int32_t* place = indices + indptr[at];
  if (cut.value != cut.value) {
    if (threadIdx.x == 0) *place = 0;
    return;
  }
  int seen = 0;  // ties
  for (int64_t from = 0; from < size; from += kThreads * n) {
    const int64_t first = from + (int64_t)threadIdx.x * n;
    float x[n];
    load_padded(reader, z, size, first / n, x);
    int ties = 0;
#pragma unroll
    for (int i = 0; i < n; ++i) ties += x[i] == cut.value;
    const Scan<int> ranks = block_scan(ties);
    int rank = seen + ranks.before;
    unsigned flags = 0;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const bool in = x[i] > cut.value || (x[i] == cut.value && rank++ < cut.ties);
      flags |= (unsigned)in << i;
    }
    const Scan<int> kept = block_scan(__popc(flags));
    int32_t* out = place + kept.before;
#pragma unroll
    for (int i = 0; i < n; ++i) {
      if (flags >> i & 1) *out++ = (int32_t)(first + i);
    }
    seen += ranks.all;
    place += kept.all;
  }
}

}  // namespace

void sample_tokens_cuda(const TokenSamplingParams& p, const int64_t* step_at,
                        TokenSamplingPlace place) {
  check_rows(p.num_rows);
  const DeviceGuard guard(place.device);
  with_element(p.dtype, [&](auto element) {
    launch({dim3((unsigned)p.num_rows), dim3(kThreads), 0, (cudaStream_t)place.stream},
           sample_tokens_rows<decltype(element)>, p, step_at);
  });
}

void kept_ids_cuda(const TokenSamplingParams& p, const int64_t* indptr, int32_t* indices,
                   TokenSamplingPlace place) {
  check_rows(p.num_rows);
  const DeviceGuard guard(place.device);
  with_element(p.dtype, [&](auto element) {
    launch({dim3((unsigned)p.num_rows), dim3(kThreads), 0, (cudaStream_t)place.stream},
           kept_ids_rows<decltype(element)>, p, indptr, indices);
  });
}

}  // namespace logpi
