// Opens namespace logpi::LOGPI_ISA around what is compiled once per instruction set.
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#include <stddef.h>
#include <stdint.h>

#include "core/dtype.h"
#include "core/rows.h"

namespace logpi {
namespace LOGPI_ISA {
namespace {
#include "core/simd.h"
}
}  // namespace LOGPI_ISA
}  // namespace logpi
