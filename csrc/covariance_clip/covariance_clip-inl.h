// The CPU body of covariance_clip, compiled once per instruction set.
//
// Two passes over the tokens; what follows looks at lists. A thread lists only keys that may be
// among the lowest of those it has seen, as many as are wanted: after a few tiles nearly none.
#include "core/simd_begin.h"
#include "core/parallel.h"
#include "core/philox.h"
#include "covariance_clip/covariance_clip.h"

#include <string.h>

namespace logpi {
namespace LOGPI_ISA {
namespace {

#include "core/simd_double.h"

typedef uint8_t vbytes __attribute__((vector_size(kLanes)));

// A bit for each lane that is below 0.
LOGPI_INLINE unsigned sign_bits(vint x) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)x);
#elif defined(__AVX2__)
  return (unsigned)_mm256_movemask_ps((__m256)x);
#elif defined(__SSE2__)
  return (unsigned)_mm_movemask_ps((__m128)x);
#else
  unsigned out = 0;
  for (int i = 0; i < kLanes; ++i) out |= (unsigned)(x[i] < 0) << i;
  return out;
#endif
}

LOGPI_INLINE unsigned sign_bits(vlong x) {
#if defined(__AVX512F__)
  return _mm512_movepi64_mask((__m512i)x);
#elif defined(__AVX2__)
  return (unsigned)_mm256_movemask_pd((__m256d)x);
#elif defined(__SSE2__)
  return (unsigned)_mm_movemask_pd((__m128d)x);
#else
  return (unsigned)(x[0] < 0) | (unsigned)(x[1] < 0) << 1;
#endif
}

// A condition for each lane: AVX-512 has registers for that, elsewhere it is -1 or 0.
#if defined(__AVX512F__)
typedef __mmask16 vflags;
constexpr vflags kAll = 0xffff;
LOGPI_INLINE unsigned lane_bits(vflags x) { return x; }
LOGPI_INLINE vflags unlike(vint a, vint b, vflags among) {
  return _mm512_mask_cmpneq_epi32_mask(among, (__m512i)a, (__m512i)b);
}
LOGPI_INLINE vflags at_most(vint x, uint32_t most, vflags among) {
  return _mm512_mask_cmple_epu32_mask(among, (__m512i)x, _mm512_set1_epi32((int)most));
}
LOGPI_INLINE vflags between(vfloat x, float lower, float upper, vflags among) {
  const __m512 value = (__m512)x;
  among = _mm512_mask_cmp_ps_mask(among, value, _mm512_set1_ps(lower), _CMP_GT_OQ);
  return _mm512_mask_cmp_ps_mask(among, value, _mm512_set1_ps(upper), _CMP_LT_OQ);
}
LOGPI_INLINE vint only(vflags some, vint x) {
  return (vint)_mm512_maskz_mov_epi32(some, (__m512i)x);
}
#else
typedef vint vflags;
constexpr vflags kAll = ~vint{};
LOGPI_INLINE unsigned lane_bits(vflags x) { return sign_bits(x); }
LOGPI_INLINE vflags unlike(vint a, vint b, vflags among) { return (a != b) & among; }
LOGPI_INLINE vflags at_most(vint x, uint32_t most, vflags among) {
  return ((vuint)x <= most) & among;
}
LOGPI_INLINE vflags between(vfloat x, float lower, float upper, vflags among) {
  return (x > lower) & (x < upper) & among;
}
LOGPI_INLINE vint only(vflags some, vint x) { return x & some; }
#endif

// Of [i, end). GCC 12 would convert 16 bytes one by one, hence by name.
LOGPI_INLINE vflags load_flags(const bool* flags, int64_t i, int64_t end) {
#if defined(__AVX512F__)
  const __mmask16 inside = i + kLanes <= end ? 0xffff : (__mmask16)((1u << (end - i)) - 1);
  const __m128i some = _mm_maskz_loadu_epi8(inside, flags + i);
  return _mm_test_epi8_mask(some, some);
#else
  bool some[kLanes] = {};
  const bool* at = flags + i;
  if (i + kLanes > end) {
    memcpy(some, at, (size_t)(end - i));
    at = some;
  }
#if defined(__AVX2__)
  return -(vint)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)at));
#else
  return -__builtin_convertvector(load<vbytes>(at), vint);
#endif
#endif
}
// Those of `some`, which lie before `end`; 0 for the others.
LOGPI_INLINE vint load_values(const float* x, int64_t i, int64_t end, vflags some) {
#if defined(__AVX512F__)
  (void)end;
  return (vint)_mm512_maskz_loadu_epi32(some, x + i);
#else
  if (i + kLanes <= end) return load<vint>(x + i) & some;
  vint out{};
  memcpy(&out, x + i, 4 * (size_t)(end - i));
  return out & some;
#endif
}

// kLanes tokens; what is not valid is 0.
struct Tokens {
  vint log_probs, advantages;
  vflags valid;
};
LOGPI_INLINE Tokens load_tokens(const CovarianceClip& p, int64_t i) {
  const vflags valid = load_flags(p.loss_mask, i, p.num_tokens);
  return {load_values(p.log_probs, i, p.num_tokens, valid),
          load_values(p.advantages, i, p.num_tokens, valid), valid};
}

// ---- sums
// -----------------------------------------------------------------------------------------

#include "covariance_clip/tile_sum.h"

void merge(ExactSum& to, const ExactSum& from) {
  for (int i = 0; i < kLimbs; ++i) to.limbs[i] += from.limbs[i];
  to.above += from.above;
  to.below += from.below;
}

int64_t tiles_of(const CovarianceClip& p) { return (p.num_tokens + kTile - 1) / kTile; }
int64_t end_of(const CovarianceClip& p, int64_t tile) {
  return (tile + 1) * kTile < p.num_tokens ? (tile + 1) * kTile : p.num_tokens;
}
// Tiles that go to a thread together, the same in both passes. Clip-Cov's are dealt in turn: its
// candidates lie where advantages are of one sign, and half of the batch may have them all. Dealt
// so, KL-Cov's threads would list more.
int64_t tiles_in_turn(const CovarianceClip& p) {
  const int64_t tiles = tiles_of(p), threads = threads_for(p.num_tokens, p.num_threads);
  if (p.rule != CovarianceRule::clip) return (tiles + threads - 1) / threads + (tiles == 0);
  const int64_t some = tiles / (4 * threads);
  return some < 1 ? 1 : some < 8 ? some : 8;
}

LOGPI_INLINE vint load_valid(const CovarianceClip& p, const float* x, int64_t i) {
  return load_values(x, i, p.num_tokens, load_flags(p.loss_mask, i, p.num_tokens));
}

// Where vectors lie that have a value which a TileSum left out.
struct Leftovers {
  int32_t at[kTile / kLanes];
  int count = 0;

  void note(int64_t i, unsigned lanes) {
    at[count] = (int32_t)i;
    count += lanes != 0;
  }
  void add_to(ExactSum& to, const CovarianceClip& p, const float* x) const {
    for (int j = 0; j < count; ++j) {
      const vint bits = load_valid(p, x, at[j]);
      add_each(to, bits, TileSum::left_out(bits));
    }
  }
};

// Adds a tile; returns how many of its tokens are valid. Its loops call nothing: else their sums
// would live in memory.
int sum_tile(const CovarianceClip& p, int64_t from, int64_t end, ExactSum& log_probs,
             ExactSum& advantages) {
  const vint first = vint{} + load<int32_t>(p.advantages + from);
  vflags others{};
  int count = 0;
  TileSum sum;
  Leftovers leftovers;
  for (int64_t i = from; i < end; i += kLanes) {
    const Tokens t = load_tokens(p, i);
    const unsigned valid = lane_bits(t.valid);
    if (!valid) continue;  // padding, in long runs
    count += __builtin_popcount(valid);
    others |= unlike(t.advantages, first, t.valid);
    leftovers.note(i, sum.add(t.log_probs));
  }
  sum.add_to(log_probs);
  leftovers.add_to(log_probs, p, p.log_probs);

  if (!lane_bits(others)) {  // one advantage, as a sequence has of its outcome
    add_times(advantages, (uint32_t)first[0], count);
    return count;
  }
  TileSum each;
  leftovers.count = 0;
  for (int64_t i = from; i < end; i += kLanes) {
    leftovers.note(i, each.add(load_valid(p, p.advantages, i)));
  }
  each.add_to(advantages);
  leftovers.add_to(advantages, p, p.advantages);
  return count;
}

// What each thread of a team does.
void sum_tokens(const CovarianceClip& p) {
  ExactSum log_probs{}, advantages{};
  int64_t count = 0;
#pragma omp for schedule(static, tiles_in_turn(p)) nowait
  for (int64_t tile = 0; tile < tiles_of(p); ++tile) {
    p.counts[tile] = sum_tile(p, tile * kTile, end_of(p, tile), log_probs, advantages);
    count += p.counts[tile];
  }
#pragma omp critical(logpi_covariance_clip)
  {
    merge(p.head->log_probs, log_probs);
    merge(p.head->advantages, advantages);
    p.head->count += count;
  }
}

// ---- keys
// -----------------------------------------------------------------------------------------

// The keys that one thread lists, with the histogram of their first digit: complete up to the last
// key that may be taken, which a bound of digits is kept at.
struct Listing {
  int64_t wanted, inside = 0;  // keys within the bound
  uint32_t bound = kDigits - 1;
  int32_t histogram[kDigits] = {};

  uint32_t limit() const { return bound << 21 | 0x1fffff; }
  void add(uint32_t key) {
    ++histogram[key >> 21];
    ++inside;
    while (bound && inside - histogram[bound] >= wanted) inside -= histogram[bound--];
  }
};

struct Means {
  float log_probs, advantages;
};
LOGPI_INLINE vfloat covariances_of(const Tokens& t, Means mean) {
  return (from_bits(t.advantages) - mean.advantages) * (from_bits(t.log_probs) - mean.log_probs);
}

void write_covariances(const CovarianceClip& p, Means mean, int64_t from, int64_t end) {
  float* const out = (float*)p.out;
  for (int64_t i = from; i < end; i += kLanes) {
    const Tokens t = load_tokens(p, i);
    const vint c = only(t.valid, bits(covariances_of(t, mean)));
    memcpy(out + i, &c, i + kLanes <= end ? sizeof c : 4 * (size_t)(end - i));
  }
}

// Lists what may be taken of a tile; returns how many.
int list_covariances(const CovarianceClip& p, Means mean, int64_t from, int64_t end,
                     Listing& listing) {
  uint32_t* const keys = p.keys + from;
  int32_t* const places = p.places + from;
  int listed = 0;
  for (int64_t i = from; i < end; i += kLanes) {
    const Tokens t = load_tokens(p, i);
    if (!lane_bits(t.valid)) continue;
    const vfloat c = covariances_of(t, mean);
    vint key = bits(c) & (c != 0.0f);
    key = c == c ? key ^ (~(key >> 31) & 0x7fffffff) : vint{};
    unsigned some = lane_bits(at_most(key, listing.limit(), t.valid));
    for (; some; some &= some - 1) {
      const int lane = __builtin_ctz(some);
      if ((uint32_t)key[lane] > listing.limit()) continue;
      keys[listed] = (uint32_t)key[lane];
      places[listed++] = (int32_t)(i + lane);
      listing.add((uint32_t)key[lane]);
    }
  }
  return listed;
}

// core/philox.h for several indices at once: a word in the low half of each lane.
typedef uint64_t vwords __attribute__((vector_size(kBytes)));
typedef uint32_t vuints __attribute__((vector_size(kBytes / 2)));
LOGPI_INLINE vwords product(vwords x, uint32_t factor) {
#if defined(__AVX512F__)
  return (vwords)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
  return (vwords)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(factor));
#elif defined(__SSE2__)
  return (vwords)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(factor));
#else
  return (x & 0xffffffff) * (uint64_t)factor;
#endif
}
// Several vectors together: one alone would wait ten times for a product.
constexpr int kTogether = 4;
LOGPI_INLINE void random_words(uint64_t seed, uint64_t step, vwords (&x)[kTogether]) {
  vwords b[kTogether], c[kTogether], d[kTogether];
  for (int i = 0; i < kTogether; ++i) {
    b[i] = x[i] >> 32;
    c[i] = vwords{} + step;
    d[i] = c[i] >> 32;
  }
  uint32_t key = (uint32_t)seed, other_key = (uint32_t)(seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) {
      const vwords from_a = product(x[i], 0xD2511F53u), from_c = product(c[i], 0xCD9E8D57u);
      x[i] = (from_c >> 32) ^ b[i] ^ key;
      b[i] = from_c;
      c[i] = (from_a >> 32) ^ d[i] ^ other_key;
      d[i] = from_a;
    }
    key += 0x9E3779B9u;
    other_key += 0xBB67AE85u;
  }
  for (vwords& word : x) word &= 0xffffffff;
}

// A candidate of a tile: its place there, and above 16 bits its rank among the valid tokens.
constexpr uint32_t kRank = 1u << 16;
static_assert(kTile <= kRank, "");

// Appends the lanes of `some`, the first of which would be `first`.
LOGPI_INLINE int append(uint32_t* candidates, unsigned some, unsigned valid, uint32_t first) {
#if defined(__AVX512F__)
  const vint lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  vint both = lane * (int)(kRank + 1);  // most vectors are valid throughout
  if (valid != 0xffff) {
    const vint rank = (vint)_mm512_maskz_expand_epi32((__mmask16)valid, (__m512i)lane);
    both = lane + rank * (int)kRank;
  }
  const vint taken = (vint)_mm512_maskz_compress_epi32((__mmask16)some, (__m512i)both);
  store(candidates, taken + (int)first);
  return __builtin_popcount(some);
#else
  int count = 0;
  for (; some; some &= some - 1) {
    const int lane = __builtin_ctz(some);
    const int rank = __builtin_popcount(valid & ((1u << lane) - 1));
    candidates[count++] = first + (uint32_t)lane + kRank * (uint32_t)rank;
  }
  return count;
#endif
}

int list_candidates(const CovarianceClip& p, Means mean, uint64_t step, int64_t index, int64_t from,
                    int64_t end, Listing& listing) {
  constexpr int kStep = kTogether * kDoubles;
  uint32_t candidates[kTile + kStep];
  uint32_t count = 0, first = 0;
  for (int64_t i = from; i < end; i += kLanes, first += kLanes) {
    const Tokens t = load_tokens(p, i);
    const unsigned valid = lane_bits(t.valid);
    if (!valid) continue;
    unsigned some = lane_bits(between(covariances_of(t, mean), p.lower, p.upper, t.valid));
    if (p.exclude) some &= ~lane_bits(load_flags(p.exclude, i, p.num_tokens));
    count += append(candidates + count, some, valid, first);
    first += kRank * __builtin_popcount(valid);
  }
  memset(candidates + count, 0, 4 * kStep);  // the last vectors' empty lanes
  int listed = 0;
  for (uint32_t j = 0; j < count; j += kStep) {
    vwords keys[kTogether];
    for (int i = 0; i < kTogether; ++i) {
      const vuints some = load<vuints>(candidates + j + i * kDoubles);
      keys[i] = (__builtin_convertvector(some, vwords) >> 16) + (uint64_t)index;
    }
    random_words(p.seed, step, keys);
    for (int i = 0; i < kTogether; ++i) {
      const uint32_t at = j + i * kDoubles;
      const vwords key = keys[i] >> 1;
      unsigned some = sign_bits((vlong)(key <= (uint64_t)listing.limit()));
      for (; some; some &= some - 1) {
        const int k = __builtin_ctz(some);
        if (at + k >= count || key[k] > listing.limit()) continue;
        p.keys[from + listed] = (uint32_t)key[k];
        p.places[from + listed++] = (int32_t)(from + candidates[at + k] % kRank);
        listing.add((uint32_t)key[k]);
      }
    }
  }
  return listed;
}

void list_tokens(const CovarianceClip& p) {
  CovarianceHead& head = *p.head;
  const Means mean = {mean_of(head.log_probs, head.count), mean_of(head.advantages, head.count)};
  const int64_t tiles = tiles_of(p);
  int32_t* const listed = p.counts + tiles;
  const uint64_t step = (uint64_t)(p.step_at ? *p.step_at : p.step);
  Listing listing;
  listing.wanted = wanted_of(head.count, p.fraction);
  int64_t index = head.first, counted = 0;  // tokens of the tiles before
#pragma omp for schedule(static, tiles_in_turn(p)) nowait
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t from = tile * kTile, end = end_of(p, tile);
    while (counted < tile) index += p.counts[counted++];
    if (p.rule == CovarianceRule::covariances) {
      write_covariances(p, mean, from, end);
      continue;
    }
    memset((bool*)p.out + from, 0, (size_t)(end - from));
    listed[tile] = p.rule == CovarianceRule::kl
                       ? list_covariances(p, mean, from, end, listing)
                       : list_candidates(p, mean, step, index, from, end, listing);
  }
  if (p.rule != CovarianceRule::covariances) {
#pragma omp critical(logpi_covariance_clip)
    for (uint32_t i = 0; i <= listing.bound; ++i) head.histogram[0][i] += listing.histogram[i];
  }
}

// ---- the radix select
// -----------------------------------------------------------------------------

Selected after(Selected before, const int32_t* histogram, int digits) {
  int64_t left = before.wanted;
  int digit = 0;
  while (digit + 1 < digits && histogram[digit] < left) left -= histogram[digit++];
  return {before.prefix * digits + digit, left};
}

// Takes the keys below what is now known of the last one; keeps those that begin like it.
void narrow(const CovarianceClip& p, int phase) {
  CovarianceHead& head = *p.head;
  const int at = phase - kSecond;  // digits known before, less one
  Selected before = head.selected[at];
  if (phase == kSecond) {
    int64_t all = 0;
    for (int i = 0; i < kDigits; ++i) all += head.histogram[0][i];
    const int64_t wanted = wanted_of(head.count, p.fraction);
    before = {0, wanted < all ? wanted : all};
  }
  const int digits = phase == kTies ? 1024 : kDigits, shift = 21 - 11 * at > 0 ? 21 - 11 * at : 0;
  const Selected now = after(before, head.histogram[at], digits);
  head.selected[at + 1] = now;
  bool* const out = (bool*)p.out;
  int64_t kept = 0;
  const auto look = [&](int64_t i) {
    const int64_t begins = p.keys[i] >> shift;
    const int32_t place = p.places[i];
    if (begins < now.prefix) out[place] = true;
    if (begins != now.prefix) return;
    if (phase != kTies) {
      const uint32_t next = phase == kSecond ? p.keys[i] >> 10 & 2047 : p.keys[i] & 1023;
      ++head.histogram[at + 1][next];
    }
    p.keys[kept] = p.keys[i];
    p.places[kept++] = place;
  };
  if (phase == kSecond) {
    const int64_t tiles = tiles_of(p);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t from = tile * kTile, end = from + p.counts[tiles + tile];
      for (int64_t i = from; i < end; ++i) look(i);
    }
  } else {
    for (int64_t i = 0; i < head.ties; ++i) look(i);
  }
  head.ties = kept;
}

void mark_ties(const CovarianceClip& p) {
  const CovarianceHead& head = *p.head;
  int64_t left = head.selected[3].wanted - head.first_tie;
  for (int64_t i = 0; i < head.ties && left > 0; ++i, --left) ((bool*)p.out)[p.places[i]] = true;
}

}  // namespace

void covariance_clip(const CovarianceClip& p, int from, int to) {
  const int threads = threads_for(p.num_tokens, p.num_threads);
  if (from == kSums) memset(p.head, 0, head_bytes(p));
  if (from <= kKeys) {  // one team for both
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      if (from == kSums) sum_tokens(p);
#pragma omp barrier
      if (to > kKeys) list_tokens(p);
    }
  }
  for (int phase = from > kSecond ? from : kSecond; phase < to; ++phase) {
    if (phase == kMark) {
      mark_ties(p);
    } else {
      narrow(p, phase);
    }
  }
}

}  // namespace LOGPI_ISA
}  // namespace logpi
