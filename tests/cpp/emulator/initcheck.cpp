// Reads of shared memory that no thread of the block has written: the variant "initcheck".
//
// Kernels are compiled with -fsanitize=thread, which makes of every load and store a call, and
// linked with the calls below instead of TSan's.
#include "initcheck.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "machine.h"

namespace emulator {
namespace {

struct Region {
  uintptr_t begin;
  std::vector<char> written;  // a byte a byte
};
std::vector<Region> regions;

// The innermost place of this instruction that is not the emulator's own.
struct Place {
  std::string file = "?";
  int line = 0;
};
Place place_of(uintptr_t instruction) {
  Place place;
  Dl_info module;
  if (!dladdr((void*)instruction, &module)) return place;
  char command[4096], text[4096];
  snprintf(command, sizeof command, "addr2line -i -e '%s' %#zx", module.dli_fname,
           (size_t)(instruction - (uintptr_t)module.dli_fbase));
  FILE* const lines = popen(command, "r");
  if (!lines) return place;
  while (place.line == 0 && fgets(text, sizeof text, lines)) {
    const char* const colon = strrchr(text, ':');
    if (!colon || strstr(text, "emulator.h:")) continue;
    place.file.assign(text, (size_t)(colon - text));
    place.line = atoi(colon + 1);
  }
  pclose(lines);
  return place;
}

[[noreturn]] void report(size_t size, uintptr_t caller) {
  static Place place;  // a Site only points at its name
  place = place_of(caller - 1);
  fail("read of " + std::to_string(size) + " bytes of shared memory that no thread has written,",
       {place.file.c_str(), place.line});
}

void read(void* address, size_t size, void* caller) {
  const uintptr_t at = (uintptr_t)address;
  for (const Region& region : regions) {
    if (at - region.begin >= region.written.size()) continue;
    const size_t end = std::min(at - region.begin + size, region.written.size());
    for (size_t i = at - region.begin; i < end; ++i) {
      if (!region.written[i]) report(size, (uintptr_t)caller);
    }
  }
}

void write(void* address, size_t size) {
  const uintptr_t at = (uintptr_t)address;
  for (Region& region : regions) {
    if (at - region.begin >= region.written.size()) continue;
    const size_t first = at - region.begin;
    memset(&region.written[first], 1, std::min(size, region.written.size() - first));
  }
}

}  // namespace

void forget_regions() { regions.clear(); }
void add_region(void* begin, size_t size) {
  regions.push_back({(uintptr_t)begin, std::vector<char>(size)});
}

}  // namespace emulator

#define HOOK __attribute__((visibility("hidden")))
#define CALLER __builtin_return_address(0)
#define ACCESSES(size)                                                                \
  HOOK void __tsan_read##size(void* p) { emulator::read(p, size, CALLER); }           \
  HOOK void __tsan_write##size(void* p) { emulator::write(p, size); }                 \
  HOOK void __tsan_unaligned_read##size(void* p) { emulator::read(p, size, CALLER); } \
  HOOK void __tsan_unaligned_write##size(void* p) { emulator::write(p, size); }       \
  HOOK void __tsan_volatile_read##size(void* p) { emulator::read(p, size, CALLER); }  \
  HOOK void __tsan_volatile_write##size(void* p) { emulator::write(p, size); }
#define ATOMICS(bits, T)                                                                     \
  HOOK T __tsan_atomic##bits##_load(const volatile T* p, int) {                              \
    emulator::read((void*)p, sizeof(T), CALLER);                                             \
    return *p;                                                                               \
  }                                                                                          \
  HOOK int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* old, T next, int, \
                                                         int) {                              \
    emulator::read((void*)p, sizeof(T), CALLER);                                             \
    const bool same = *p == *old;                                                            \
    (same ? *p : *old) = same ? next : *p;                                                   \
    return same;                                                                             \
  }

// clang-format off
extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
HOOK void __tsan_read_range(void* p, size_t size) { emulator::read(p, size, CALLER); }
HOOK void __tsan_write_range(void* p, size_t size) { emulator::write(p, size); }
HOOK void __tsan_vptr_update(void** p, void*) { emulator::write(p, sizeof *p); }
HOOK void __tsan_vptr_read(void**) {}
HOOK void __tsan_func_entry(void*) {}
HOOK void __tsan_func_exit() {}
HOOK void __tsan_init() {}
}
// clang-format on
