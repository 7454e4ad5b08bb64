// One stack a GPU thread, and the switch between them. EMULATOR_ADDRESS and EMULATOR_THREAD say
// which sanitizer must be told.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#ifdef EMULATOR_ADDRESS
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMULATOR_THREAD
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_java_alloc(uintptr_t begin, uintptr_t size);  // forgets what was accessed there
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

// Saves what a call must preserve, swaps stacks, restores. `from` gets the old stack pointer.
extern "C" void emulator_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.pushsection .text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emulator_switch, .-emulator_switch
.popsection
)");
#elif defined(__aarch64__)
asm(R"(
.pushsection .text
.hidden emulator_switch
.globl emulator_switch
.type emulator_switch, %function
emulator_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]; stp x21, x22, [sp, #16]; stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]; stp x27, x28, [sp, #64]; stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]; stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]; ldp x21, x22, [sp, #16]; ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]; ldp x27, x28, [sp, #64]; ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]; ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulator_switch, .-emulator_switch
.popsection
)");
#else
#error "the emulator has a stack switch for x86-64 and aarch64 only"
#endif

namespace emulator {

constexpr size_t kStackBytes = 256 << 10;

// A stack of its own, with a page below it that faults; or the stack of whoever launched.
struct Fiber {
  void* saved = nullptr;  // stack pointer while not running
  char* base = nullptr;
#ifdef EMULATOR_ADDRESS
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake = nullptr;
#endif
#ifdef EMULATOR_THREAD
  void* tsan = nullptr;
#endif

  void map() {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char* memory = (char*)mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == (char*)MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) abort();
    base = memory + page;
  }

  // The next switch to this fiber calls `entry`, which never returns.
  void start(void (*entry)()) {
    if (!base) map();
    uintptr_t* top = (uintptr_t*)(base + kStackBytes);
#if defined(__x86_64__)
    *--top = 0;                 // keeps the stack aligned as after a call
    *--top = (uintptr_t)entry;  // where emulator_switch returns to
    for (int i = 0; i < 6; ++i) *--top = 0;
#else
    top -= 20;
    for (int i = 0; i < 20; ++i) top[i] = 0;
    top[11] = (uintptr_t)entry;  // x30
#endif
    saved = top;
#ifdef EMULATOR_ADDRESS
    __asan_unpoison_memory_region(base, kStackBytes);  // frames of the thread that died here
    bottom = base;
    size = kStackBytes;
    fake = nullptr;
#endif
#ifdef EMULATOR_THREAD
    if (!tsan) tsan = __tsan_create_fiber(0);  // costs 0.3 ms, so it is kept
#endif
  }
};

inline Fiber* last_left = nullptr;

// The first thing done on a stack after a switch to it.
inline void arrive(Fiber& here) {
  (void)here;
#ifdef EMULATOR_ADDRESS  // and the bounds of the launcher's stack are learnt
  __sanitizer_finish_switch_fiber(here.fake, &last_left->bottom, &last_left->size);
#endif
}

// Leaves `from` for `to`; returns when somebody comes back, which is never if `for_good`.
inline void switch_fiber(Fiber& from, Fiber& to, bool for_good = false) {
  (void)for_good;
  last_left = &from;
#ifdef EMULATOR_THREAD
  __tsan_switch_to_fiber(to.tsan, 1);  // 1: orders nothing
#endif
#ifdef EMULATOR_ADDRESS
  __sanitizer_start_switch_fiber(for_good ? nullptr : &from.fake, to.bottom, to.size);
#endif
  emulator_switch(&from.saved, to.saved);
  arrive(from);
}

}  // namespace emulator
