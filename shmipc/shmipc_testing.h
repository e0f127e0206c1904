// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the tests of shmipc share: regions of every kind, processes, memory that
// survives them.

#ifndef MY_ALLOC_SHMIPC_SHMIPC_TESTING_H_
#define MY_ALLOC_SHMIPC_SHMIPC_TESTING_H_

#include <sys/types.h>

#include <cstdarg>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "shmipc/region.h"

namespace shmipc_testing {

// SHMIPC_TEST_SEED, or another one each time; printed once.
uint64_t Seed();
// The value of an environment variable, or `otherwise`.
uint64_t Count(const char *variable, uint64_t otherwise);

// A name that no other test uses.
std::string Name(const char *what);

// Kills the whole process if the test is not done by then: a hang is a failure.
class Watchdog {
 public:
  explicit Watchdog(unsigned int seconds);
  ~Watchdog();
};

int64_t NowNs();

// For tests that have a `syscall` of their own: its arguments, and the call as
// libc makes it.
void ReadArguments(va_list list, long (*out_a)[6]);
long RawCall(long number, const long (&a)[6]);

// The longest that one of `count` processes was away from the CPU which do
// nothing but look at the clock, while `num_kills` of them are killed and
// replaced as in a test of kills, `most_pause_ns` apart at most. The scheduler
// does that, so no stall that such a test measures can be expected to be less.
int64_t WorstGapNs(int count, uint64_t num_kills, int64_t most_pause_ns);

// A forked process that runs `work` and ends with its result, without exit
// handlers. Killed, should it still be there at the end.
class Process {
 public:
  explicit Process(const std::function<int()> &work);
  Process(Process &&other) noexcept;
  Process &operator=(Process &&other) noexcept;
  ~Process();

  pid_t pid() const {
    return pid_;
  }
  void Signal(int signal);
  // Waits for its end: the exit code, or minus the signal.
  int Wait();
  int Kill();

 private:
  pid_t pid_;
};

// A T in memory that forked processes share, zero at first.
void *SharedMemory(size_t bytes);
void FreeSharedMemory(void *memory, size_t bytes);
template <typename T>
class Shared {
 public:
  Shared() : value_(static_cast<T *>(SharedMemory(sizeof(T)))) {
  }
  ~Shared() {
    FreeSharedMemory(value_, sizeof(T));
  }
  Shared(const Shared &) = delete;
  Shared &operator=(const Shared &) = delete;
  T *operator->() const {
    return value_;
  }
  T &operator*() const {
    return *value_;
  }

 private:
  T *value_;
};

// One of the three kinds of region, found again by other processes.
class TestRegion {
 public:
  TestRegion(shmipc_backend_t backend, size_t size_bytes,
             const std::function<void(shmipc_region_options_t *)> &change = {});
  ~TestRegion();
  TestRegion(const TestRegion &) = delete;
  TestRegion &operator=(const TestRegion &) = delete;

  // In this process, by the constructor.
  shmipc_region_t *region() const {
    return region_;
  }
  template <typename T>
  T *data() const {
    return static_cast<T *>(shmipc_region_data(region_));
  }
  // Attaches again; the status in `out_status` if that is not NULL.
  shmipc_region_t *Attach(int *out_status = nullptr) const;
  // For a child of fork: closes what it inherited, and attaches.
  shmipc_region_t *AttachInChild();
  // For changing the way to attach.
  shmipc_region_options_t &options() {
    return options_;
  }
  const std::string &name() const {
    return name_;
  }
  void CloseOwn();

 private:
  shmipc_region_options_t options_ = {};
  std::string name_;
  int fd_ = -1;
  shmipc_region_t *region_ = nullptr;
};

const char *NameOf(shmipc_backend_t backend);
// SHMIPC_KILLS, or `otherwise`; a third of it where only the kind of region
// differs from a test with memfd.
uint64_t NumKills(shmipc_backend_t backend, uint64_t otherwise);
const std::vector<shmipc_backend_t> &Backends();

// Runs `work` in a child that is stepped `steps` times from its first SIGSTOP
// on and then killed. Coming through is its second SIGSTOP, or its end.
enum class Outcome {
  kKilled,
  kCameThrough,
  kNotPermitted
};
Outcome StepAndKill(uint64_t steps, const std::function<void()> &work);

// A child that is single-stepped from its first SIGSTOP on. Killed, should it
// still be there at the end.
class Stepped {
 public:
  explicit Stepped(const std::function<void()> &work);
  // At a stop, so that it can be stepped; at first, whether that is permitted.
  bool is_stopped() const {
    return is_stopped_;
  }
  uint64_t num_steps() const {
    return num_steps_;
  }
  // Until the condition holds; false if it ends or stops itself before.
  bool StepUntil(const std::function<bool()> &condition);
  bool Step(uint64_t count);
  // To its next SIGSTOP or its end.
  void GoOn();
  int Kill() {
    return child_.Kill();
  }

 private:
  bool Wait(int signal);

  Process child_;
  bool is_stopped_ = false;
  uint64_t num_steps_ = 0;
};

// The problems that verify names, each on a line.
std::string Problems(shmipc_region_t *region);

}  // namespace shmipc_testing

#endif  // MY_ALLOC_SHMIPC_SHMIPC_TESTING_H_
