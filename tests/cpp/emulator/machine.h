// A GPU of one multiprocessor: blocks one after another, a fiber a thread, all in one OS thread.
// What a kernel may not do becomes a Fault that names the file and line where it did it.
//
// Kernels are instrumented by the sanitizers; machine.cpp is not, so its bookkeeping is neither
// slowed nor reported.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

namespace emulator {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where a kernel, or its launch, stands in the source.
struct Site {
  const char* file;
  int line;
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

struct Shape {
  dim3 grid, block;
  size_t shared_bytes;
  Site site;
};

constexpr int kWarp = 32;

// Of the thread that runs; rewritten at each switch.
extern uint3 thread_index, block_index;
extern dim3 block_dim, grid_dim;
int lane();  // in its warp

// Runs `body` once for every thread of the grid; throws the first Fault.
void run(const Shape& shape, const std::function<void()>& body);

// Ends the launch with a report. Nothing is unwound: the threads are left where they stand, which
// is why this can be called from anywhere, a sanitizer's check included.
[[noreturn]] void fail(const std::string& what, Site site);

void* dynamic_shared();

// All threads of a block meet; returns how many brought `true`.
int barrier(const char* what, bool value, Site site);

// The lanes of `mask` meet; each gets the values that all have brought. `orders`: what was written
// before it is seen after it, as __syncwarp promises and a shuffle does not.
struct Values {
  uint64_t of[kWarp];
  unsigned mask;  // the lanes of the mask that the block has
};
Values meet(const char* what, unsigned mask, uint64_t value, bool orders, Site site);

// What was written before a fence is seen by whoever meets it through an atomic.
void fence();
void after_atomic();

// A small device, so that tests meet what is rare on a large one: few blocks, rows past shared
// memory.
constexpr int kMultiprocessors = 3;
constexpr size_t kMaxSharedBytes = 24 << 10;

}  // namespace emulator
