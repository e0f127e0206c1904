// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the benchmarks of shmipc share: contenders that run in turn, and pairs
// of processes.

#ifndef MY_ALLOC_SHMIPC_SHMIPC_BENCHMARKING_H_
#define MY_ALLOC_SHMIPC_SHMIPC_BENCHMARKING_H_

#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "shmipc/region.h"

namespace benchmarking {

struct Flags {
  int rounds = 9;
  int64_t pairs = 2000000;
  int64_t contended = 200000;
  int64_t hand_offs = 20000;
  int64_t batches = 200;
  int64_t messages = 100000;
  bool only_heap = false;
  bool only_channels = false;
};

inline Flags flags;
inline shmipc_region_t *region;
inline int share_fd;

// channel_benchmark.cc
void Channels();

[[noreturn]] inline void Die(const char *what) {
  perror(what);
  exit(1);
}

inline void Check(int status) {
  if (__builtin_expect(status < 0, 0)) {
    fprintf(stderr, "%s\n", shmipc_strerror(status));
    exit(1);
  }
}

inline double NowNs() {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) * 1e9 +
         static_cast<double>(now.tv_nsec);
}

struct Contender {
  const char *name;
  std::function<double()> run;  // Returns nanoseconds for one.
  std::vector<double> results = {};

  double Median() {
    std::sort(results.begin(), results.end());
    return results[results.size() / 2];
  }
};

// `bars`: contender by index, against which one, at most how many times.
struct Bar {
  size_t of;
  size_t against;
  double at_most;
};

inline void Compare(const char *title, std::vector<Contender> contenders,
                    const std::vector<Bar> &bars) {
  for (int i = 0; i < flags.rounds; i++) {
    for (Contender &contender : contenders) {
      contender.results.push_back(contender.run());
    }
  }
  printf("\n%s, ns\n", title);
  for (Contender &contender : contenders) {
    double median = contender.Median();
    printf("  %-44s %10.1f   (%.1f to %.1f)\n", contender.name, median,
           contender.results.front(), contender.results.back());
  }
  for (const Bar &bar : bars) {
    double ratio =
        contenders[bar.of].Median() / contenders[bar.against].Median();
    printf("  %-6s %s / %s: %.3f (bar %.3f)\n",
           ratio <= bar.at_most ? "ok" : "MISSED", contenders[bar.of].name,
           contenders[bar.against].name, ratio, bar.at_most);
  }
  fflush(stdout);
}

// Runs `work(who)` in this process and a child, which attaches anew, at the
// same time; returns the time until both are done, for each of `count`.
inline double TwoProcesses(int64_t count,
                           const std::function<void(int who)> &work) {
  static auto *start = static_cast<std::atomic<uint32_t> *>(
      mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
           -1, 0));
  if (start == MAP_FAILED) {
    Die("mmap");
  }
  *start = 0;
  pid_t child = fork();
  if (child < 0) {
    Die("fork");
  }
  if (child == 0) {
    shmipc_region_close(region);
    Check(shmipc_region_open_fd(share_fd, nullptr, &region));
    ++*start;
    while (*start < 2) {
      sched_yield();
    }
    work(1);
    shmipc_region_close(region);
    _exit(0);
  }
  while (*start < 1) {
    sched_yield();
  }
  double begin = NowNs();
  ++*start;
  work(0);
  int status;
  waitpid(child, &status, 0);
  if (status != 0) {
    fprintf(stderr, "the other process failed: %d\n", status);
    exit(1);
  }
  return (NowNs() - begin) / static_cast<double>(count);
}

inline void FutexWait(std::atomic<uint32_t> *word, uint32_t expected) {
  syscall(SYS_futex, word, FUTEX_WAIT, expected, nullptr, nullptr, 0);
}

inline void FutexWake(std::atomic<uint32_t> *word) {
  syscall(SYS_futex, word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

}  // namespace benchmarking

#endif  // MY_ALLOC_SHMIPC_SHMIPC_BENCHMARKING_H_
