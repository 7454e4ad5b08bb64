// A GPU of one multiprocessor: blocks one after another, a fiber a thread, everything in one OS
// thread. What a kernel may not do is reported with the file and line where it did it.
#pragma once

#include <link.h>

#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

namespace emulator {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Site {
  const char* file;
  int line;
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

constexpr int kWarp = 32;

// Threads that meet: of a whole block, or of a warp under a mask.
struct Meeting {
  const char* what = nullptr;  // null: nobody is here
  Site site{};
  unsigned mask = 0, arrived = 0, left = 0;
  uint64_t values[kWarp];
};

struct Lane {
  Fiber fiber;
  bool finished = false;
  const char* waits_for = nullptr;  // null: can run
  Site site{};
  unsigned mask = 0;
};

class Machine {
 public:
  // Runs `body` for every thread of a block.
  void run_block(int num_lanes, size_t shared_bytes, const std::function<void()>& body) {
    num_lanes_ = num_lanes;
    body_ = &body;
    if ((int)lanes_.size() < num_lanes) lanes_.resize(num_lanes);
    meetings_.clear();
    meetings_.resize((size_t)(num_lanes + kWarp - 1) / kWarp);
    barrier_arrived_ = 0;
    barrier_what_ = nullptr;
    failure_ = nullptr;
    // Exactly as long as asked for, so that ASan sees the end; filled with NaN.
    shared_.reset(shared_bytes ? (char*)aligned_alloc(16, (shared_bytes + 15) / 16 * 16) : nullptr);
    if (shared_bytes) {
      memset(shared_.get(), 0xff, shared_bytes);
#if defined(__SANITIZE_ADDRESS__)
      __asan_poison_memory_region(shared_.get() + shared_bytes,
                                  (shared_bytes + 15) / 16 * 16 - shared_bytes);
#endif
    }
    fill_static_shared();
#if defined(__SANITIZE_THREAD__)
    caller_.tsan = __tsan_get_current_fiber();
    __tsan_release(&block_begins_);
#endif
    for (int i = 0; i < num_lanes; ++i) {
      Lane& lane = lanes_[i];
      if (!lane.fiber.base) lane.fiber.map();
      lane.finished = false;
      lane.waits_for = nullptr;
      lane.fiber.start(&Machine::enter);
    }
    alive_ = num_lanes;
    current_ = 0;
#if defined(__SANITIZE_ADDRESS__)
    caller_bounds();
#endif
    switch_fiber(caller_, lanes_[0].fiber);
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(&block_ends_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    if (shared_) __asan_unpoison_memory_region(shared_.get(), (shared_bytes + 15) / 16 * 16);
#endif
    if (failure_) std::rethrow_exception(failure_);
  }

  int current() const { return current_; }
  char* shared() { return shared_.get(); }

  // A barrier of the whole block.
  void barrier(const char* what, Site site) {
    Quiet quiet;
    if (barrier_arrived_ == 0) {
      barrier_what_ = what;
      barrier_site_ = site;
    } else if (barrier_site_.line != site.line || strcmp(barrier_site_.file, site.file) != 0) {
      quiet.end();
      fail("divergent barrier: " + who(current_) + " is at " + what + " " + site.text() +
           " while others wait at " + barrier_what_ + " " + barrier_site_.text());
    }
    order_release(&barrier_order_);
    const int generation = barrier_generation_;
    if (++barrier_arrived_ == num_lanes_) {
      barrier_arrived_ = 0;
      ++barrier_generation_;
      for (int i = 0; i < num_lanes_; ++i) {
        if (lanes_[i].waits_for == kBarrier) lanes_[i].waits_for = nullptr;
      }
    } else {
      while (barrier_generation_ == generation) wait(kBarrier, site, 0);
    }
    quiet.end();
    order_acquire(&barrier_order_);
  }

  // Sums a value over the block at a barrier (syncthreads_or and its kin).
  int barrier_count(const char* what, bool value, Site site) {
    int& count = counts_[barrier_generation_ % 2];  // the next barrier takes the other
    count = barrier_arrived_ == 0 ? value : count + value;
    barrier(what, site);
    return count;
  }

  // Lanes of `mask` bring a value each; `read(values)` is called once all have.
  template <class Read>
  auto meet(const char* what, unsigned mask, uint64_t value, bool orders, Site site,
            const Read& read) {
    Quiet quiet;
    const int lane = current_ % kWarp, warp = current_ / kWarp;
    if (!(mask >> lane & 1)) {
      quiet.end();
      fail(who(current_) + " calls " + what + " with mask " + hex(mask) +
           ", in which it is not, at " + site.text());
    }
    auto& open = meetings_[warp];
    Meeting* meeting = nullptr;
    for (auto& one : open) {
      // A lane still reading an older one under the same mask cannot be here: it left that first.
      if (one->mask == mask && !(one->arrived >> lane & 1) && one->left == 0) meeting = one.get();
    }
    if (!meeting) {
      open.push_back(std::make_unique<Meeting>());
      meeting = open.back().get();
      meeting->what = what;
      meeting->site = site;
      meeting->mask = mask;
    } else if (strcmp(meeting->what, what) != 0) {
      quiet.end();
      fail(who(current_) + " is at " + what + " " + site.text() + " while others of mask " +
           hex(mask) + " are at " + meeting->what + " " + meeting->site.text());
    }
    meeting->values[lane] = value;
    meeting->arrived |= 1u << lane;
    if (orders) order_release(meeting);
    if (meeting->arrived == mask) {
      for (int i = 0; i < kWarp; ++i) {
        const int at = warp * kWarp + i;
        if (at < num_lanes_ && mask >> i & 1 && lanes_[at].waits_for == what) {
          lanes_[at].waits_for = nullptr;
        }
      }
    } else {
      while (meeting->arrived != mask) wait(what, site, mask);
    }
    auto result = read(meeting->values);
    if (orders) order_acquire(meeting);
    meeting->left |= 1u << lane;
    if (meeting->left == mask) {
      for (size_t i = 0; i < open.size(); ++i) {
        if (open[i].get() == meeting) {
          open.erase(open.begin() + (long)i);
          break;
        }
      }
    }
    return result;
  }

  [[noreturn]] void fail(const std::string& message) { throw Fault(message); }

  std::string who(int lane) const {
    return "thread " + std::to_string(lane) + " of block " + std::to_string(block_);
  }
  static std::string hex(unsigned mask) {
    char text[16];
    snprintf(text, sizeof text, "0x%08x", mask);
    return text;
  }

  long block_ = 0;

  // TSan neither looks at the emulator's own bookkeeping nor takes order from it.
  struct Quiet {
#if defined(__SANITIZE_THREAD__)
    bool on = true;
    Quiet() { begin(); }
    ~Quiet() { end(); }
    static void begin() {
      AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
      AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    }
    void end() {
      if (!on) return;
      on = false;
      AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
      AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    }
#else
    void end() {}
#endif
  };

  static Machine& get() {
    static Machine machine;
    return machine;
  }

 private:
  static constexpr const char* kBarrier = "a barrier";
  struct Free {
    void operator()(char* p) const { free(p); }
  };

  Fiber caller_;
  std::vector<Lane> lanes_;
  std::vector<std::vector<std::unique_ptr<Meeting>>> meetings_;
  std::unique_ptr<char, Free> shared_;
  const std::function<void()>* body_ = nullptr;
  std::exception_ptr failure_;
  int num_lanes_ = 0, alive_ = 0, current_ = 0;
  int barrier_arrived_ = 0, barrier_generation_ = 0, counts_[2] = {0, 0};
  const char* barrier_what_ = nullptr;
  Site barrier_site_{};
  char barrier_order_ = 0, block_begins_ = 0, block_ends_ = 0;

  static void order_release(void* at) {
    (void)at;
#if defined(__SANITIZE_THREAD__)
    __tsan_release(at);
#endif
  }
  static void order_acquire(void* at) {
    (void)at;
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(at);
#endif
  }

  static void enter() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    Machine& machine = get();
    order_acquire(&machine.block_begins_);
    try {
      (*machine.body_)();
    } catch (...) {
      machine.failure_ = std::current_exception();
    }
    order_release(&machine.block_ends_);
    machine.leave();
  }

  // The end of a lane; never returns.
  void leave() {
    Quiet quiet;
    Lane& lane = lanes_[current_];
    lane.finished = true;
    --alive_;
    const int next = failure_ || alive_ == 0 ? -1 : next_lane();
    if (next < 0 && !failure_ && alive_ > 0) failure_ = std::make_exception_ptr(Fault(deadlock()));
    quiet.end();
    if (next < 0) {
      switch_fiber(lane.fiber, caller_, true);
    } else {
      current_ = next;
      switch_fiber(lane.fiber, lanes_[next].fiber, true);
    }
    abort();
  }

  // Lets others run until this lane can.
  void wait(const char* what, Site site, unsigned mask) {
    Lane& lane = lanes_[current_];
    const int me = current_;
    lane.waits_for = what;
    lane.site = site;
    lane.mask = mask;
    const int next = next_lane();
    if (next < 0) {
      failure_ = std::make_exception_ptr(Fault(deadlock()));
      switch_fiber(lane.fiber, caller_);  // and is never come back to
      abort();
    }
    if (next != me) {
      current_ = next;
      switch_fiber(lane.fiber, lanes_[next].fiber);
    }
    lane.waits_for = nullptr;
  }

  int next_lane() const {
    for (int i = 1; i <= num_lanes_; ++i) {
      const int at = (current_ + i) % num_lanes_;
      if (!lanes_[at].finished && !lanes_[at].waits_for) return at;
    }
    return -1;
  }

  // Who waits where: lanes at one place are one line.
  std::string deadlock() const {
    std::string text = "deadlock in block " + std::to_string(block_) + ":";
    std::vector<bool> told((size_t)num_lanes_);
    int finished = 0;
    for (int i = 0; i < num_lanes_; ++i) {
      const Lane& lane = lanes_[i];
      finished += lane.finished;
      if (lane.finished || told[i]) continue;
      int count = 0, last = i;
      for (int j = i; j < num_lanes_; ++j) {
        const Lane& other = lanes_[j];
        if (other.finished || other.waits_for != lane.waits_for || other.mask != lane.mask ||
            other.site.line != lane.site.line || other.site.file != lane.site.file) {
          continue;
        }
        told[j] = true;
        last = j;
        ++count;
      }
      text += "\n  " + std::to_string(count) + " threads (" + std::to_string(i) + " to " +
              std::to_string(last) + ") wait for " + lane.waits_for + " at " + lane.site.text();
      if (lane.mask) text += " with mask " + hex(lane.mask);
    }
    if (finished) text += "\n  " + std::to_string(finished) + " threads have returned";
    return text;
  }

#if defined(__SANITIZE_ADDRESS__)
  void caller_bounds() {
    pthread_attr_t attributes;
    void* address = nullptr;
    size_t size = 0;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &address, &size);
    pthread_attr_destroy(&attributes);
    caller_.asan_bottom = address;
    caller_.asan_size = size;
  }
#endif

  // `__shared__` is thread_local: this module's whole block of thread-local storage is filled with
  // NaN, through the loader, before each block.
  static int fill_module(dl_phdr_info* info, size_t, void*) {
    const uintptr_t here = (uintptr_t)&Machine::fill_module;
    bool ours = false;
    size_t size = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const auto& header = info->dlpi_phdr[i];
      const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
      if (header.p_type == PT_LOAD && here >= begin && here < begin + header.p_memsz) ours = true;
      if (header.p_type == PT_TLS) size = header.p_memsz;
    }
    if (ours && size && info->dlpi_tls_data) memset(info->dlpi_tls_data, 0xff, size);
    return ours;
  }
  static void fill_static_shared() {
    static thread_local volatile char touch;  // or the loader has not made the block yet
    touch = 1;
    dl_iterate_phdr(&Machine::fill_module, nullptr);
  }
};

}  // namespace emulator
