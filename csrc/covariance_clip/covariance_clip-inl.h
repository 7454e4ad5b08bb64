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

// kLanes tokens; `valid` is -1 or 0, and what it leaves out is 0.
struct Tokens {
  vint log_probs, advantages, valid;
};
LOGPI_INLINE vint load_flags(const bool* at) {
  return -__builtin_convertvector(load<vbytes>(at), vint);
}
LOGPI_INLINE Tokens load_tokens(const CovarianceClip& p, int64_t i, const bool* flags,
                                bool inverted) {
  Tokens out{};
  if (i + kLanes <= p.num_tokens) {
    out.valid = load_flags(p.loss_mask + i);
    if (flags) out.valid &= inverted ? ~load_flags(flags + i) : load_flags(flags + i);
    out.log_probs = load<vint>(p.log_probs + i) & out.valid;
    out.advantages = load<vint>(p.advantages + i) & out.valid;
    return out;
  }
  for (int j = 0; i + j < p.num_tokens; ++j) {
    if (!p.loss_mask[i + j] || (flags && flags[i + j] == inverted)) continue;
    out.valid[j] = -1;
    memcpy((char*)&out.log_probs + 4 * j, p.log_probs + i + j, 4);
    memcpy((char*)&out.advantages + 4 * j, p.advantages + i + j, 4);
  }
  return out;
}

// ---- sums
// -----------------------------------------------------------------------------------------

// Where all values of a tile are 0 or in [2^-39, 2^12), doubles hold their sum whole, in two parts:
// multiples of 2^-22, rounded off by an addend of 3 2^29, and multiples of 2^-62, below 2^-23 each.
constexpr double kRound = 0x1.8p30;
constexpr int kCoarse = 16, kFine = 11;  // the limbs of 2^-22 and 2^-62
constexpr int32_t kLeast = (127 - 39) << 23, kMost = (127 + 12) << 23;

struct TileSum {
  vdouble coarse[2], fine[2];
  vint outside;  // a lane with a value that the doubles cannot hold

  void clear() {
    for (int h = 0; h < 2; ++h) coarse[h] = vdouble{} + kRound, fine[h] = vdouble{};
    outside = vint{};
  }
  void add(vint bits) {
    const vint magnitude = bits & 0x7fffffff;
    outside |= ((vuint)(magnitude - kLeast) >= (uint32_t)(kMost - kLeast)) & (magnitude != 0);
    vfloat_half halves[2];
    memcpy(halves, &bits, sizeof bits);
    for (int h = 0; h < 2; ++h) {
      const vdouble x = __builtin_convertvector(halves[h], vdouble), next = coarse[h] + x;
      fine[h] += x - (next - coarse[h]);
      coarse[h] = next;
    }
  }
  bool holds() const { return sign_bits(outside) == 0; }
};

void deposit(ExactSum& to, int limb, double value, double per_unit) {
  const int64_t units = (int64_t)(value * per_unit);
  to.limbs[limb] += units & 0xffffffff;  // 32 bits each: as many as anyone may add
  to.limbs[limb + 32 / kLimbBits] += units >> 32;
}

void add_tile(ExactSum& to, const TileSum& tile, const float* x, const bool* mask, int64_t from,
              int64_t end) {
  if (tile.holds()) {
    for (int h = 0; h < 2; ++h) {
      deposit(to, kCoarse, lanes(tile.coarse[h] - kRound), 0x1p22);
      deposit(to, kFine, lanes(tile.fine[h]), 0x1p62);
    }
    return;
  }
  for (int64_t i = from; i < end; ++i) {
    if (!mask[i]) continue;
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    const Addend one = addend(bits);
    if (one.limb < kLimbs) {
      to.limbs[one.limb] += one.value;
    } else {
      to.above += is_above(bits);
      to.below += is_below(bits);
    }
  }
}

void merge(ExactSum& to, const ExactSum& from) {
  for (int i = 0; i < kLimbs; ++i) to.limbs[i] += from.limbs[i];
  to.above += from.above;
  to.below += from.below;
}

int64_t tiles_of(const CovarianceClip& p) { return (p.num_tokens + kTile - 1) / kTile; }
int64_t end_of(const CovarianceClip& p, int64_t tile) {
  return (tile + 1) * kTile < p.num_tokens ? (tile + 1) * kTile : p.num_tokens;
}

void sum_tokens(const CovarianceClip& p, int threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    ExactSum log_probs{}, advantages{};
    int64_t count = 0;
#pragma omp for schedule(static) nowait
    for (int64_t tile = 0; tile < tiles_of(p); ++tile) {
      const int64_t from = tile * kTile, end = end_of(p, tile);
      TileSum a, b;
      a.clear();
      b.clear();
      vint valid{};
      for (int64_t i = from; i < end; i += kLanes) {
        const Tokens t = load_tokens(p, i, nullptr, false);
        valid -= t.valid;
        a.add(t.log_probs);
        b.add(t.advantages);
      }
      add_tile(log_probs, a, p.log_probs, p.loss_mask, from, end);
      add_tile(advantages, b, p.advantages, p.loss_mask, from, end);
      p.counts[tile] = lanes(valid);
      count += p.counts[tile];
    }
#pragma omp critical(logpi_covariance_clip)
    {
      merge(p.head->log_probs, log_probs);
      merge(p.head->advantages, advantages);
      p.head->count += count;
    }
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
    const Tokens t = load_tokens(p, i, nullptr, false);
    const vint c = bits(covariances_of(t, mean)) & t.valid;
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
    const Tokens t = load_tokens(p, i, nullptr, false);
    const vfloat c = covariances_of(t, mean);
    vint key = bits(c) & (c != 0.0f);
    key = c == c ? key ^ (~(key >> 31) & 0x7fffffff) : vint{};
    const vint within = (vuint)key <= listing.limit();
    for (unsigned some = sign_bits(within & t.valid); some; some &= some - 1) {
      const int lane = __builtin_ctz(some);
      if ((uint32_t)key[lane] > listing.limit()) continue;
      keys[listed] = (uint32_t)key[lane];
      places[listed++] = (int32_t)(i + lane);
      listing.add((uint32_t)key[lane]);
    }
  }
  return listed;
}

int list_candidates(const CovarianceClip& p, Means mean, uint64_t step, int64_t index, int64_t from,
                    int64_t end, Listing& listing) {
  constexpr int kGroup = 16;
  uint32_t* const keys = p.keys + from;
  int32_t* const places = p.places + from;
  int32_t ranks[kTile + kGroup];
  int candidates = 0, before = 0;
  for (int64_t i = from; i < end; i += kLanes) {
    const Tokens t = load_tokens(p, i, nullptr, false);
    const vfloat c = covariances_of(t, mean);
    const unsigned valid = sign_bits(t.valid);
    for (unsigned some = sign_bits((c > p.lower) & (c < p.upper) & t.valid); some;
         some &= some - 1) {
      const int lane = __builtin_ctz(some);
      if (p.exclude && p.exclude[i + lane]) continue;
      places[candidates] = (int32_t)(i + lane);
      ranks[candidates++] = before + __builtin_popcount(valid & ((1u << lane) - 1));
    }
    before += __builtin_popcount(valid);
  }
  for (int j = candidates; j % kGroup; ++j) ranks[j] = 0;
  int listed = 0;
  for (int j = 0; j < candidates; j += kGroup) {
    uint32_t found[kGroup];
    for (int k = 0; k < kGroup; ++k) {
      found[k] = random_word(p.seed, step, (uint64_t)(index + ranks[j + k])) >> 1;
    }
    for (int k = 0; k < kGroup && j + k < candidates; ++k) {
      if (found[k] > listing.limit()) continue;
      keys[listed] = found[k];
      places[listed++] = places[j + k];
      listing.add(found[k]);
    }
  }
  return listed;
}

void list_tokens(const CovarianceClip& p, int threads) {
  CovarianceHead& head = *p.head;
  ExactSum log_probs = head.log_probs, advantages = head.advantages;
  const Means mean = {mean_of(log_probs, head.count), mean_of(advantages, head.count)};
  const int64_t tiles = tiles_of(p);
  int32_t* const listed = p.counts + tiles;
  const uint64_t step = (uint64_t)(p.step_at ? *p.step_at : p.step);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Listing listing;
    listing.wanted = wanted_of(head.count, p.fraction);
    int64_t index = head.first, counted = 0;  // tokens of the tiles before
#pragma omp for schedule(static) nowait
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
      for (int i = 0; i < kDigits; ++i) head.histogram[0][i] += listing.histogram[i];
    }
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
  for (int phase = from; phase < to; ++phase) {
    if (phase == kSums) {
      sum_tokens(p, threads);
    } else if (phase == kKeys) {
      list_tokens(p, threads);
    } else if (phase == kMark) {
      mark_ties(p);
    } else {
      narrow(p, phase);
    }
  }
}

}  // namespace LOGPI_ISA
}  // namespace logpi
