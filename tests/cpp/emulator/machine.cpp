// The machine behind emulator.h: the threads of a block, where they meet, and what goes wrong.
#include "machine.h"

#include <link.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <vector>

#include "fiber.h"
#include "initcheck.h"

namespace emulator {

uint3 thread_index, block_index;
dim3 block_dim, grid_dim;

namespace {

// Order between threads, for TSan: who acquires an address comes after all who released it.
void release(void* at) {
  (void)at;
#ifdef EMULATOR_THREAD
  __tsan_release(at);
#endif
}
void acquire(void* at) {
  (void)at;
#ifdef EMULATOR_THREAD
  __tsan_acquire(at);
#endif
}

// A new address for each meeting that orders: one used before would bring order from before. They
// come round again after so many meetings that little is left to hide.
char* new_token() {
  static char tokens[1 << 20];
  static size_t next = 0;
  next = (next + 8) % sizeof tokens;  // TSan's granule
  return tokens + next;
}

std::string hex(unsigned mask) {
  char text[16];
  snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

std::string threads(int count) {
  return std::to_string(count) + (count == 1 ? " thread" : " threads");
}

// Lanes of a warp under one mask.
struct Meeting {
  unsigned mask = 0;  // 0: free
  unsigned arrived = 0, left = 0;
  const char* what = nullptr;
  Site site{};
  char* token = nullptr;
  uint64_t values[kWarp];
};

struct Lane {
  Fiber fiber;
  bool finished = false;
  const void* waits_at = nullptr;  // a meeting, or the barrier; null: it can run
  const char* waits_for = nullptr;
  Site site{};
  unsigned mask = 0;
};

struct Barrier {
  const char* what = nullptr;
  Site site{};
  int arrived = 0, generation = 0;
  // By generation: a thread may be at the next barrier before another has left this one.
  int counts[2] = {0, 0};
  char* tokens[2] = {nullptr, nullptr};
};

struct Free {
  void operator()(void* p) const {
#ifdef EMULATOR_THREAD  // the launcher has not waited for the block that used it
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    free(p);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
#else
    free(p);
#endif
  }
};

std::mutex busy;  // two Python threads may launch at once
Shape shape;
const std::function<void()>* body;
Fiber caller;
// Blocks take turns with two teams: to TSan the threads of neighbouring blocks are strangers, and
// their races show.
std::vector<Lane> teams[2];
Lane* lanes;  // of the block that runs
// As many meetings as a warp can have open. Made before any thread runs, or TSan would take their
// allocation for a write.
std::vector<std::array<Meeting, kWarp>> meetings;
Barrier at_barrier;
std::unique_ptr<void, Free> shared;
std::exception_ptr failure;
bool inside;  // a thread of a block is running
int num_lanes, alive, current;
uint64_t block_begins, block_ends, fences;

std::string who(int lane) {
  return "thread " + std::to_string(lane) + " of block " +
         std::to_string(block_index.x + grid_dim.x * (block_index.y + grid_dim.y * block_index.z));
}

std::string report(const std::string& what) {
  return what + "\n  in the kernel launched at " + shape.site.text() + " on " +
         std::to_string(grid_dim.x) + "x" + std::to_string(grid_dim.y) + "x" +
         std::to_string(grid_dim.z) + " blocks of " + threads(num_lanes);
}

void go_to(int next) {
  current = next;
  thread_index = {(unsigned)next % block_dim.x, (unsigned)next / block_dim.x % block_dim.y,
                  (unsigned)next / (block_dim.x * block_dim.y)};
}

int next_lane() {
  for (int i = current + 1; i < num_lanes; ++i) {
    if (!lanes[i].finished && !lanes[i].waits_at) return i;
  }
  for (int i = 0; i <= current; ++i) {
    if (!lanes[i].finished && !lanes[i].waits_at) return i;
  }
  return -1;
}

[[noreturn]] void give_up(const std::string& text) {
  failure = std::make_exception_ptr(Fault(report(text)));
  switch_fiber(lanes[current].fiber, caller, true);
  abort();
}

// Who waits where: threads at one place are one line.
std::string deadlock() {
  std::string text = "deadlock in block " + who(0).substr(strlen("thread 0 of block "));
  std::vector<bool> told((size_t)num_lanes);
  int finished = 0;
  for (int i = 0; i < num_lanes; ++i) {
    const Lane& lane = lanes[i];
    finished += lane.finished;
    if (lane.finished || told[i]) continue;
    int count = 0, last = i;
    for (int j = i; j < num_lanes; ++j) {
      const Lane& other = lanes[j];
      if (other.finished || other.waits_at != lane.waits_at || other.site.line != lane.site.line ||
          strcmp(other.site.file, lane.site.file) != 0) {
        continue;
      }
      told[j] = true;
      last = j;
      ++count;
    }
    const std::string range =
        i == last ? std::to_string(i) : std::to_string(i) + " to " + std::to_string(last);
    text += "\n  " + threads(count) + " (" + range + ") at " + lane.waits_for;
    if (lane.mask) text += " with mask " + hex(lane.mask);
    text += " " + lane.site.text();
  }
  if (finished) text += "\n  " + threads(finished) + " returned";
  return text;
}

// Lets others run until somebody clears `waits_at`.
void wait(const void* at, const char* what, Site site, unsigned mask) {
  Lane& lane = lanes[current];
  const int me = current;
  lane.waits_at = at;
  lane.waits_for = what;
  lane.site = site;
  lane.mask = mask;
  const int next = next_lane();
  if (next < 0) give_up(deadlock());
  go_to(next);
  switch_fiber(lane.fiber, lanes[next].fiber);
  go_to(me);
}

// After a failure: whatever comes next comes after the threads that were left where they stand.
void abandon_threads() {
#ifdef EMULATOR_THREAD
  for (int i = 0; i < num_lanes; ++i) {
    __tsan_switch_to_fiber(lanes[i].fiber.tsan, 1);
    release(&block_ends);
    __tsan_switch_to_fiber(caller.tsan, 1);
    __tsan_destroy_fiber(lanes[i].fiber.tsan);  // in the midst of calls that never return
    lanes[i].fiber.tsan = nullptr;
  }
#endif
}

// A thread, from its first to its last instruction.
void enter() {
  arrive(lanes[current].fiber);
  acquire(&block_begins);
  try {
    (*body)();
  } catch (...) {
    failure = std::current_exception();
  }
  Lane& lane = lanes[current];
  lane.finished = true;
  release(&block_ends);
  if (--alive == 0 || failure) {
    switch_fiber(lane.fiber, caller, true);
    abort();
  }
  const int next = next_lane();
  if (next < 0) give_up(deadlock());
  go_to(next);
  switch_fiber(lane.fiber, lanes[next].fiber, true);
  abort();
}

// Shared memory is new to each block, and no block has touched it before.
void fill(char* memory, size_t size) {
#ifdef EMULATOR_THREAD
  __tsan_java_alloc((uintptr_t)memory, (size + 7) / 8 * 8);
#endif
#ifdef EMULATOR_INITCHECK
  add_region(memory, size);
#endif
  memset(memory, 0xff, size);
}

// `__shared__` is thread_local: this library's whole block of thread-local storage is filled with
// NaN, through the loader.
int fill_module(dl_phdr_info* info, size_t, void*) {
  const uintptr_t here = (uintptr_t)&fill_module;
  bool ours = false;
  size_t size = 0;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD && here >= begin && here < begin + header.p_memsz) ours = true;
    if (header.p_type == PT_TLS) size = header.p_memsz;
  }
  if (ours && size && info->dlpi_tls_data) fill((char*)info->dlpi_tls_data, size);
  return ours;
}

void fill_shared() {
#ifdef EMULATOR_INITCHECK
  forget_regions();
#endif
  static thread_local volatile char touch;  // or the loader has not made the block yet
  touch = 1;
  dl_iterate_phdr(&fill_module, nullptr);
  void* memory = nullptr;  // exactly as long as asked for, so that ASan sees its end
  if (shape.shared_bytes && posix_memalign(&memory, 16, shape.shared_bytes) != 0) abort();
  if (memory) fill((char*)memory, shape.shared_bytes);
  shared.reset(memory);
}

void run_block(std::vector<Lane>& team) {
  if ((int)team.size() < num_lanes) team.resize((size_t)num_lanes);
  lanes = team.data();
  for (auto& warp : meetings) {
    for (Meeting& meeting : warp) meeting.mask = 0;
  }
  at_barrier = Barrier();
  alive = num_lanes;
  fill_shared();
  for (int i = 0; i < num_lanes; ++i) {
    lanes[i].finished = false;
    lanes[i].waits_at = nullptr;
    lanes[i].fiber.start(&enter);
  }
  release(&block_begins);
  go_to(0);
  inside = true;
  switch_fiber(caller, lanes[0].fiber);
  inside = false;
  if (!failure) return;
  abandon_threads();
  acquire(&block_ends);
  std::rethrow_exception(failure);
}

void check_shape() {
  const dim3 &g = shape.grid, &b = shape.block;
  const uint64_t count = (uint64_t)b.x * b.y * b.z;
  const auto refuse = [](const std::string& what, uint64_t most, uint64_t got) {
    throw Fault("invalid launch at " + shape.site.text() + ": expected 1 to " +
                std::to_string(most) + " " + what + ", got " + std::to_string(got));
  };
  if (count < 1 || count > 1024) refuse("threads a block", 1024, count);
  if (g.x < 1 || g.x > 0x7fffffff) refuse("blocks in x", 0x7fffffff, g.x);
  if (g.y < 1 || g.y > 65535) refuse("blocks in y", 65535, g.y);
  if (g.z < 1 || g.z > 65535) refuse("blocks in z", 65535, g.z);
  if (shape.shared_bytes > kMaxSharedBytes) {
    refuse("bytes of dynamic shared memory", kMaxSharedBytes, shape.shared_bytes);
  }
}

}  // namespace

int lane() { return current % kWarp; }
void* dynamic_shared() { return shared.get(); }
void fence() { release(&fences); }
void after_atomic() { acquire(&fences); }

void fail(const std::string& what, Site site) {
  if (!inside) {  // a launcher's own mistake, found by UBSan
    fprintf(stderr, "%s at %s\n", what.c_str(), site.text().c_str());
    abort();
  }
  give_up(what + " at " + site.text() + " by " + who(current));
}

void run(const Shape& asked, const std::function<void()>& one_thread) {
  const std::lock_guard<std::mutex> lock(busy);
  shape = asked;
  body = &one_thread;
  check_shape();
  grid_dim = shape.grid;
  block_dim = shape.block;
  num_lanes = (int)(block_dim.x * block_dim.y * block_dim.z);
  meetings.resize((size_t)(num_lanes + kWarp - 1) / kWarp);
  failure = nullptr;
#ifdef EMULATOR_THREAD
  caller.tsan = __tsan_get_current_fiber();
#endif
  int turn = 0;
  for (unsigned z = 0; z < grid_dim.z; ++z) {
    for (unsigned y = 0; y < grid_dim.y; ++y) {
      for (unsigned x = 0; x < grid_dim.x; ++x) {
        block_index = {x, y, z};
        run_block(teams[turn++ % 2]);
      }
    }
  }
  acquire(&block_ends);
}

int barrier(const char* what, bool value, Site site) {
  Barrier& here = at_barrier;
  const int generation = here.generation, parity = generation % 2;
  if (here.arrived == 0) {
    here.what = what;
    here.site = site;
    here.counts[parity] = 0;
    here.tokens[parity] = new_token();
  } else if (here.site.line != site.line || strcmp(here.site.file, site.file) != 0) {
    fail("divergent barrier: others wait at " + std::string(here.what) + " " + here.site.text() +
             ", and this is " + what,
         site);
  }
  here.counts[parity] += value;
  release(here.tokens[parity]);
  if (++here.arrived == num_lanes) {
    here.arrived = 0;
    ++here.generation;
    for (int i = 0; i < num_lanes; ++i) lanes[i].waits_at = nullptr;
  } else {
    wait(&here, what, site, 0);
  }
  acquire(here.tokens[parity]);
  return here.counts[parity];
}

Values meet(const char* what, unsigned mask, uint64_t value, bool orders, Site site) {
  const int lane = current % kWarp, first = current - lane, size = num_lanes - first;
  if (!(mask >> lane & 1)) {
    fail(std::string(what) + " with mask " + hex(mask) + ", which the caller is not in,", site);
  }
  if (size < kWarp) mask &= (1u << size) - 1;  // a block's last warp may be short
  Meeting *meeting = nullptr, *unused = nullptr;
  for (Meeting& one : meetings[(size_t)current / kWarp]) {
    if (one.mask == 0) {
      unused = unused ? unused : &one;
    } else if (one.mask == mask && one.left == 0 && !(one.arrived >> lane & 1)) {
      meeting = &one;
    }
  }
  if (!meeting) {
    meeting = unused;
    *meeting = Meeting{mask, 0, 0, what, site, orders ? new_token() : nullptr, {}};
  } else if (strcmp(meeting->what, what) != 0) {
    fail("others of mask " + hex(mask) + " are at " + meeting->what + " " + meeting->site.text() +
             ", and this is " + what,
         site);
  }
  meeting->values[lane] = value;
  meeting->arrived |= 1u << lane;
  if (orders) release(meeting->token);
  if (meeting->arrived != mask) {
    wait(meeting, what, site, mask);
  } else {
    for (int i = first; i < first + kWarp && i < num_lanes; ++i) {
      if (lanes[i].waits_at == meeting) lanes[i].waits_at = nullptr;
    }
  }
  if (orders) acquire(meeting->token);
  Values result;
  result.mask = mask;
  for (int i = 0; i < kWarp; ++i) result.of[i] = meeting->values[i];
  meeting->left |= 1u << lane;
  if (meeting->left == mask) meeting->mask = 0;
  return result;
}

}  // namespace emulator

// -fsanitize=alignment,bounds call these; ours report as everything else does.
extern "C" {
struct UbsanSite {
  const char* file;
  uint32_t line, column;
};
struct UbsanType {
  uint16_t kind, info;
  char name[1];
};
struct UbsanMismatch {
  UbsanSite site;
  const UbsanType* type;
  unsigned char log_alignment, kind;
};
struct UbsanBounds {
  UbsanSite site;
  const UbsanType *array, *index;
};
#define EMULATOR_HANDLER __attribute__((visibility("hidden"), noreturn)) void

EMULATOR_HANDLER __ubsan_handle_type_mismatch_v1_abort(const UbsanMismatch* data, uintptr_t at) {
  const emulator::Site site{data->site.file, (int)data->site.line};
  const std::string type = data->type->name;
  const int alignment = 1 << data->log_alignment;
  emulator::fail(at ? "misaligned access: " + type + " needs an address divisible by " +
                          std::to_string(alignment) + " and this one ends in " +
                          std::to_string(at % (uintptr_t)alignment)
                    : "null pointer to " + type,
                 site);
}
EMULATOR_HANDLER __ubsan_handle_out_of_bounds_abort(const UbsanBounds* data, uintptr_t index) {
  emulator::fail(
      "index " + std::to_string((intptr_t)index) + " out of bounds for " + data->array->name,
      {data->site.file, (int)data->site.line});
}
}
