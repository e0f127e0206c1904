// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What does the call stack of an allocation cost? At several depths: the same
// stack again and again; stacks whose inner frames vary; and, to compare with,
// libc's backtrace(), which uses libgcc's unwinder, for the first of these.

#include <benchmark/benchmark.h>
#include <execinfo.h>

#include <cstdlib>
#include <memory>

#include "leakcheck/unwind.h"

namespace {

struct Free {
  void operator()(void *memory) const {
    free(memory);
  }
};

unwind_cache_t *Cache() {
  static unwind_cache_t *const cache =
      static_cast<unwind_cache_t *>(calloc(1, unwind_cache_bytes()));
  return cache;
}

unwind_thread_t *Thread() {
  static const std::unique_ptr<unwind_thread_t, Free> thread = [] {
    std::unique_ptr<unwind_thread_t, Free> fresh(
        static_cast<unwind_thread_t *>(calloc(1, sizeof(unwind_thread_t))));
    unwind_thread_forget(fresh.get());
    return fresh;
  }();
  return thread.get();
}

__attribute__((noinline)) size_t Capture() {
  unwind_stack_t stack;
  unwind_capture(Cache(), Thread(), {0, 0}, UNWIND_CAPACITY_MAX, &stack);
  return stack.num_frames;
}

__attribute__((noinline)) size_t CaptureBelow() {
  size_t num_frames = Capture();
  __asm__ volatile("");
  return num_frames;
}

__attribute__((noinline)) size_t CaptureTwice() {
  size_t num_frames = CaptureBelow();
  __asm__ volatile("");
  return num_frames + Capture();
}

// Runs `function` with `depth` more frames on the stack.
template <typename Function>
__attribute__((noinline)) void Recurse(int64_t depth,
                                       const Function &function) {
  if (depth == 0) {
    function();
  } else {
    Recurse(depth - 1, function);
  }
  __asm__ volatile("");
}

void BM_CaptureSame(benchmark::State &state) {
  size_t num_frames = 0;
  Recurse(state.range(0), [&] {
    for (auto _ : state) {
      num_frames = Capture();
    }
  });
  state.counters["frames"] = static_cast<double>(num_frames);
}
BENCHMARK(BM_CaptureSame)->Arg(5)->Arg(15)->Arg(40);

// Four captures, from three functions, at two depths.
void BM_CaptureVaried(benchmark::State &state) {
  size_t num_frames = 0;
  Recurse(state.range(0), [&] {
    while (state.KeepRunningBatch(4)) {
      CaptureTwice();
      CaptureBelow();
      num_frames = Capture();
    }
  });
  state.counters["frames"] = static_cast<double>(num_frames);
}
BENCHMARK(BM_CaptureVaried)->Arg(5)->Arg(15)->Arg(40);

void BM_Backtrace(benchmark::State &state) {
  void *frames[UNWIND_CAPACITY_MAX];
  int num_frames = 0;
  Recurse(state.range(0), [&] {
    for (auto _ : state) {
      num_frames = backtrace(frames, UNWIND_CAPACITY_MAX);
    }
  });
  state.counters["frames"] = num_frames;
}
BENCHMARK(BM_Backtrace)->Arg(5)->Arg(15)->Arg(40);

}  // namespace
