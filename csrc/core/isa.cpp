#include "core/isa.h"

#include <cstdlib>
#include <cstring>
#include <string>

#include "core/check.h"

namespace logpi {
namespace {

struct Entry {
  Isa isa;
  const char* name;
  bool supported;
};

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}
const Entry kEntries[] = {
    {Isa::avx512, "avx512", has_avx512()},
    {Isa::avx2, "avx2", has_avx2()},
    {Isa::sse2, "sse2", true},
};
#else
const Entry kEntries[] = {{Isa::neon, "neon", true}};
#endif

std::string known_names() {
  std::string names;
  for (const Entry& entry : kEntries) {
    if (entry.supported) names += (names.empty() ? "" : ", ") + std::string(entry.name);
  }
  return names;
}

Isa best() {
  for (const Entry& entry : kEntries) {
    if (entry.supported) return entry.isa;
  }
  return kEntries[0].isa;
}

Isa parse(const char* source, const char* name) {
  for (const Entry& entry : kEntries) {
    if (std::strcmp(entry.name, name) == 0 && entry.supported) return entry.isa;
  }
  throw ValueError(std::string(source) + ": expected one of " + known_names() +
                   " on this CPU, got '" + name + "'");
}

Isa& active() {
  static Isa isa = [] {
    const char* forced = std::getenv("LOGPI_CPU_ISA");
    return forced && *forced ? parse("LOGPI_CPU_ISA", forced) : best();
  }();
  return isa;
}

}  // namespace

Isa active_isa() { return active(); }

const char* isa_name(Isa isa) {
  for (const Entry& entry : kEntries) {
    if (entry.isa == isa) return entry.name;
  }
  return "unknown";
}

void force_isa(const char* name) { active() = parse("force_isa", name); }

}  // namespace logpi
