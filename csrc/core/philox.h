// Philox4x32-10: random words that are a function of a key and a counter.
//
// Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3. tests/core/test_draws.py holds
// it to the authors' vectors. `static`, so that each instruction set keeps its own copy.
#pragma once

#include <stdint.h>

#include "core/host_device.h"

namespace logpi {

struct Philox {
  uint32_t x[4];
};

LOGPI_HOST_DEVICE static inline Philox philox(Philox counter, uint32_t key, uint32_t other_key) {
  uint32_t a = counter.x[0], b = counter.x[1], c = counter.x[2], d = counter.x[3];
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t from_a = (uint64_t)a * 0xD2511F53u, from_c = (uint64_t)c * 0xCD9E8D57u;
    a = (uint32_t)(from_c >> 32) ^ b ^ key;
    b = (uint32_t)from_c;
    c = (uint32_t)(from_a >> 32) ^ d ^ other_key;
    d = (uint32_t)from_a;
    key += 0x9E3779B9u;
    other_key += 0xBB67AE85u;
  }
  return {{a, b, c, d}};
}

LOGPI_HOST_DEVICE static inline Philox random_words(uint64_t seed, uint64_t step, uint64_t index) {
  const Philox counter = {
      {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)step, (uint32_t)(step >> 32)}};
  return philox(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
}

// The first word for (seed, step, index): the key by which covariance_clip chooses.
LOGPI_HOST_DEVICE static inline uint32_t random_word(uint64_t seed, uint64_t step, uint64_t index) {
  return random_words(seed, step, index).x[0];
}

// A number in (0, 1) for (seed, step, row), of 52 bits of the next two words: (m + 1/2) / 2^52. The
// ops that sample use it, so that the same (seed, step) may go to them and to covariance_clip.
// Every operation is exact; python/logpi/core/draws.py has the same.
LOGPI_HOST_DEVICE static inline double uniform(uint64_t seed, uint64_t step, uint64_t row) {
  const Philox words = random_words(seed, step, row);
  const uint64_t bits = (uint64_t)words.x[1] << 20 | words.x[2] >> 12;
  return ((double)bits + 0.5) * 0x1p-52;
}

}  // namespace logpi
