// CPU instruction sets: each op's body is compiled once per entry; one is picked at import.
#pragma once

namespace logpi {

// In order of preference. A test forces one by name; nothing ever falls back to another.
enum class Isa { avx512, avx2, sse2, neon };

Isa active_isa();
const char* isa_name(Isa isa);
void force_isa(const char* name);  // ValueError if it is unknown, not built or not on this CPU

}  // namespace logpi

// One table entry per instruction set that was built: LOGPI_DISPATCH(f)(args) calls the active one.
#ifdef LOGPI_HAS_AVX512
#define LOGPI_CASE_AVX512(f) \
  case ::logpi::Isa::avx512: \
    return avx512::f;
#else
#define LOGPI_CASE_AVX512(f)
#endif
#ifdef LOGPI_HAS_AVX2
#define LOGPI_CASE_AVX2(f) \
  case ::logpi::Isa::avx2: \
    return avx2::f;
#else
#define LOGPI_CASE_AVX2(f)
#endif
#ifdef LOGPI_HAS_SSE2
#define LOGPI_BASELINE(f) sse2::f
#else
#define LOGPI_BASELINE(f) neon::f
#endif
#define LOGPI_DISPATCH(f)                 \
  ([]() -> decltype(&LOGPI_BASELINE(f)) { \
    switch (::logpi::active_isa()) {      \
      LOGPI_CASE_AVX512(f)                \
      LOGPI_CASE_AVX2(f)                  \
      default:                            \
        return LOGPI_BASELINE(f);         \
    }                                     \
  }())
