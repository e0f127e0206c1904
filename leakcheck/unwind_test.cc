// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/unwind.h"

#include <alloca.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

// Functions without call frame information, as a JIT compiler may make them.
#if defined(__x86_64__)
__asm__(
    ".text\n"
    ".p2align 4\n"
    "unwind_test_with_frame_pointer:\n"  // calls its argument
    "  pushq %rbp\n"
    "  movq %rsp, %rbp\n"
    "  callq *%rdi\n"
    "  popq %rbp\n"
    "  ret\n"
    ".p2align 4\n"
    "unwind_test_with_nonsense_in_rbp:\n"
    "  pushq %rbp\n"
    "  movq $0x123456789abc, %rbp\n"
    "  callq *%rdi\n"
    "  popq %rbp\n"
    "  ret\n"
    ".p2align 4\n"
    "unwind_test_with_far_rbp:\n"  // mapped, aligned, but another stack's
    "  pushq %rbp\n"
    "  movq %rsi, %rbp\n"
    "  callq *%rdi\n"
    "  popq %rbp\n"
    "  ret\n");
extern "C" {
void unwind_test_with_frame_pointer(void (*function)());
void unwind_test_with_nonsense_in_rbp(void (*function)());
void unwind_test_with_far_rbp(void (*function)(), const void *rbp);
}
#endif

namespace {

using Frames = std::vector<uintptr_t>;

unwind_cache_t *Cache() {
  static unwind_cache_t *const cache =
      static_cast<unwind_cache_t *>(calloc(1, unwind_cache_bytes()));
  return cache;
}

thread_local unwind_thread_t thread_state;

// The sanitizers put a function of theirs before backtrace().
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kReferenceFirst = 2;
#else
constexpr int kReferenceFirst = 1;
#endif

// Filled in signal handlers too, hence no containers.
struct Captured {
  uintptr_t frames[512];
  size_t num_frames;
  bool cut;
  void *reference[512];
  int num_reference;
};

Captured captured;

// Captures by our function and by the system's, from the same function.
__attribute__((noinline)) void CaptureBoth() {
  captured.num_frames = unwind_capture(Cache(), &thread_state, {0, 0},
                                       captured.frames, 512, &captured.cut);
  captured.num_reference = backtrace(captured.reference, 512);
}

// Without the frame of CaptureBoth(), to which the two return differently.
Frames OurFrames() {
  return Frames(captured.frames + 1, captured.frames + captured.num_frames);
}

Frames ReferenceFrames() {
  Frames frames;
  for (int i = kReferenceFirst; i < captured.num_reference; i++) {
    frames.push_back(reinterpret_cast<uintptr_t>(captured.reference[i]));
  }
  return frames;
}

void ExpectSame() {
  EXPECT_EQ(OurFrames(), ReferenceFrames());
  EXPECT_FALSE(captured.cut);
  EXPECT_GT(captured.num_frames, 3u);
}

// Not a tail call, so that there is a frame for every level.
template <typename Function>
__attribute__((noinline)) void Recurse(int depth, const Function &function) {
  if (depth == 0) {
    function();
  } else {
    Recurse(depth - 1, function);
  }
  __asm__ volatile("");
}

#if defined(__x86_64__)

TEST(UnwindTest, EqualsTheSystemsBacktrace) {
  CaptureBoth();
  ExpectSame();
}

TEST(UnwindTest, EqualsItAgainWithAWarmCache) {
  CaptureBoth();
  ExpectSame();
  CaptureBoth();
  ExpectSame();
}

TEST(UnwindTest, FollowsRecursion) {
  Recurse(100, CaptureBoth);
  ExpectSame();
  EXPECT_GT(captured.num_frames, 100u);
}

int CompareAndCapture(const void *left, const void *right) {
  CaptureBoth();
  return *static_cast<const int *>(left) - *static_cast<const int *>(right);
}

TEST(UnwindTest, FollowsCallbacksFromLibc) {
  int numbers[] = {2, 1};
  qsort(numbers, 2, sizeof(numbers[0]), CompareAndCapture);
  ExpectSame();
}

// A frame of unknown size: the CFA is found from rbp.
__attribute__((noinline)) void CaptureBelowAlloca(size_t num_bytes) {
  volatile char *bytes = static_cast<volatile char *>(alloca(num_bytes));
  bytes[0] = 1;
  CaptureBoth();
  __asm__ volatile("" : : "r"(bytes));
}

TEST(UnwindTest, FollowsFramesOfVariableSize) {
  for (size_t num_bytes : {16, 1000, 100000, 1 << 20}) {
    CaptureBelowAlloca(num_bytes);
    ExpectSame();
  }
}

// A realigned stack and a frame of unknown size: the CFA is in memory, at an
// offset from rbp.
__attribute__((noinline)) void CaptureRealigned(size_t num_bytes) {
  alignas(128) volatile char aligned[128];
  volatile char *bytes = static_cast<volatile char *>(alloca(num_bytes));
  bytes[0] = 1;
  aligned[0] = 1;
  CaptureBoth();
  __asm__ volatile("" : : "r"(bytes), "r"(aligned));
}

TEST(UnwindTest, FollowsRealignedFrames) {
  CaptureRealigned(1000);
  ExpectSame();
}

__attribute__((noinline)) void CaptureBelowLargeFrame() {
  volatile char large[600000];
  large[0] = 1;
  CaptureBoth();
  __asm__ volatile("" : : "r"(large));
}

TEST(UnwindTest, FollowsLargeFrames) {
  CaptureBelowLargeFrame();
  ExpectSame();
}

TEST(UnwindTest, FollowsThreadsToTheirStart) {
  std::thread thread([] {
    CaptureBoth();
    Recurse(20, CaptureBoth);
  });
  thread.join();
  ExpectSame();
}

void HandleSignal(int) {
  CaptureBoth();
}

TEST(UnwindTest, FollowsSignalHandlersToWhatTheyInterrupted) {
  struct sigaction action = {};
  struct sigaction old_action;
  action.sa_handler = HandleSignal;
  ASSERT_EQ(sigaction(SIGUSR1, &action, &old_action), 0);
  raise(SIGUSR1);
  ExpectSame();
  ASSERT_EQ(sigaction(SIGUSR1, &old_action, nullptr), 0);
}

TEST(UnwindTest, FollowsSignalHandlersFromTheirOwnStack) {
  std::vector<char> memory(65536);
  stack_t stack = {};
  stack_t old_stack;
  stack.ss_sp = memory.data();
  stack.ss_size = memory.size();
  ASSERT_EQ(sigaltstack(&stack, &old_stack), 0);
  struct sigaction action = {};
  struct sigaction old_action;
  action.sa_handler = HandleSignal;
  action.sa_flags = SA_ONSTACK;
  ASSERT_EQ(sigaction(SIGUSR1, &action, &old_action), 0);
  Recurse(10, [] { raise(SIGUSR1); });
  ExpectSame();
  ASSERT_EQ(sigaction(SIGUSR1, &old_action, nullptr), 0);
  ASSERT_EQ(sigaltstack(&old_stack, nullptr), 0);
}

ucontext_t main_context;
ucontext_t coroutine_context;

void RunCoroutine() {
  Recurse(5, CaptureBoth);
}

// On a mapping of its own, with an unreadable page above it.
void CaptureInCoroutine() {
  const size_t stack_bytes = 256 << 10;
  char *stack = static_cast<char *>(mmap(nullptr, stack_bytes + 4096,
                                         PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(stack, MAP_FAILED);
  ASSERT_EQ(mprotect(stack + stack_bytes, 4096, PROT_NONE), 0);
  ASSERT_EQ(getcontext(&coroutine_context), 0);
  coroutine_context.uc_stack.ss_sp = stack;
  coroutine_context.uc_stack.ss_size = stack_bytes;
  coroutine_context.uc_link = &main_context;
  makecontext(&coroutine_context, RunCoroutine, 0);
  ASSERT_EQ(swapcontext(&main_context, &coroutine_context), 0);
  ASSERT_EQ(munmap(stack, stack_bytes + 4096), 0);
}

TEST(UnwindTest, FollowsCoroutinesOnManyStacks) {
  for (int i = 0; i < 2 * UNWIND_NUM_STACKS; i++) {
    ASSERT_NO_FATAL_FAILURE(CaptureInCoroutine());
    ExpectSame();
  }
}

TEST(UnwindTest, PassesGeneratedCodeByFramePointers) {
  unwind_test_with_frame_pointer(CaptureBoth);
  EXPECT_FALSE(captured.cut);
  // The system's backtrace stops at the code without information.
  Frames ours = OurFrames();
  Frames reference = ReferenceFrames();
  ASSERT_LT(reference.size() + 3, ours.size());
  ours.resize(reference.size());
  EXPECT_EQ(ours, reference);
}

TEST(UnwindTest, IsCutAtGeneratedCodeWithoutThem) {
  unwind_test_with_nonsense_in_rbp(CaptureBoth);
  EXPECT_TRUE(captured.cut);
  EXPECT_EQ(OurFrames().size(), 1u);
  std::vector<uint64_t> elsewhere(1000);
  unwind_test_with_far_rbp(CaptureBoth, elsewhere.data());
  EXPECT_TRUE(captured.cut);
}

TEST(UnwindTest, ForgottenRangesAreLookedUpAgain) {
  CaptureBoth();
  ExpectSame();
  unwind_cache_forget(Cache(), 0, UINTPTR_MAX);
  CaptureBoth();
  ExpectSame();
}

#endif  // defined(__x86_64__)

TEST(UnwindTest, IsCutAtTheCapacity) {
  uintptr_t frames[4] = {0, 0, 0, 77};
  Recurse(10, [&frames] {
    bool cut;
    EXPECT_EQ(unwind_capture(Cache(), &thread_state, {0, 0}, frames, 3, &cut),
              3u);
    EXPECT_TRUE(cut);
  });
  EXPECT_NE(frames[2], 0u);
  EXPECT_EQ(frames[3], 77u);
}

TEST(UnwindTest, LeavesOutTheInnerFramesOfTheSkippedRange) {
  uintptr_t all[256];
  uintptr_t rest[256];
  bool cut;
  dl_find_object own;
  ASSERT_EQ(_dl_find_object(reinterpret_cast<void *>(&CaptureBoth), &own), 0);
  unwind_skip_t skip = {reinterpret_cast<uintptr_t>(own.dlfo_map_start),
                        reinterpret_cast<uintptr_t>(own.dlfo_map_end)};
  size_t num_all =
      unwind_capture(Cache(), &thread_state, {0, 0}, all, 256, &cut);
  size_t num_rest =
      unwind_capture(Cache(), &thread_state, skip, rest, 256, &cut);
  size_t first = 0;
  while (first < num_all && all[first] >= skip.start && all[first] < skip.end) {
    first++;
  }
  EXPECT_GT(first, 1u);
  ASSERT_EQ(num_rest, num_all - first);
  EXPECT_TRUE(std::equal(rest, rest + num_rest, all + first));
}

TEST(UnwindTest, PreservesNothingBetweenThreadsButTheCache) {
  std::vector<std::thread> threads;
  std::vector<Frames> results(8);
  for (size_t i = 0; i < results.size(); i++) {
    threads.emplace_back([&results, i] {
      for (int round = 0; round < 200; round++) {
        Recurse(round % 30, [&results, i] {
          uintptr_t frames[256];
          bool cut;
          size_t count =
              unwind_capture(Cache(), &thread_state, {0, 0}, frames, 256, &cut);
          results[i].assign(frames, frames + count);
        });
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  for (const Frames &result : results) {
    EXPECT_EQ(result, results[0]);
  }
}

}  // namespace
