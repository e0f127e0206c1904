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
#include <random>
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

unwind_thread_t *ThreadState() {
  // Not on the stack that is walked, and not in static thread storage.
  thread_local std::unique_ptr<unwind_thread_t> state = [] {
    auto fresh = std::make_unique<unwind_thread_t>();
    unwind_thread_forget(fresh.get());
    return fresh;
  }();
  return state.get();
}

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
  unwind_stack_t stack;
  unwind_capture(Cache(), ThreadState(), {0, 0}, UNWIND_CAPACITY_MAX, &stack);
  captured.num_reference = backtrace(captured.reference, 512);
  captured.num_frames = stack.num_frames;
  captured.cut = stack.cut;
  for (size_t i = 0; i < stack.num_frames; i++) {
    captured.frames[i] = stack.frames[i].ip;
  }
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
  for (int i = 0; i < 2 * STACK_MEMORY_NUM_STACKS; i++) {
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

Frames CaptureFrames(unwind_skip_t skip, size_t capacity, bool *out_cut) {
  unwind_stack_t stack;
  unwind_capture(Cache(), ThreadState(), skip, capacity, &stack);
  Frames frames;
  for (size_t i = 0; i < stack.num_frames; i++) {
    frames.push_back(stack.frames[i].ip);
  }
  *out_cut = stack.cut;
  return frames;
}

TEST(UnwindTest, IsCutAtTheCapacity) {
  Recurse(100, [] {
    bool cut;
    Frames all = CaptureFrames({0, 0}, UNWIND_CAPACITY_MAX, &cut);
    EXPECT_FALSE(cut);
    for (size_t capacity : {size_t{2}, size_t{3}, size_t{50}, all.size() - 1}) {
      Frames inner = CaptureFrames({0, 0}, capacity, &cut);
      EXPECT_TRUE(cut);
      ASSERT_EQ(inner.size(), capacity);
      // The first differs: the call of CaptureFrames() itself.
      EXPECT_TRUE(std::equal(inner.begin() + 2, inner.end(), all.begin() + 2));
    }
    EXPECT_EQ(CaptureFrames({0, 0}, all.size(), &cut).size(), all.size());
    EXPECT_FALSE(cut);
  });
}

TEST(UnwindTest, LeavesOutTheInnerFramesOfTheSkippedRange) {
  bool cut;
  dl_find_object own;
  ASSERT_EQ(_dl_find_object(reinterpret_cast<void *>(&CaptureBoth), &own), 0);
  unwind_skip_t skip = {reinterpret_cast<uintptr_t>(own.dlfo_map_start),
                        reinterpret_cast<uintptr_t>(own.dlfo_map_end)};
  Frames all = CaptureFrames({0, 0}, UNWIND_CAPACITY_MAX, &cut);
  Frames rest = CaptureFrames(skip, UNWIND_CAPACITY_MAX, &cut);
  size_t first = 0;
  while (first < all.size() && all[first] >= skip.start &&
         all[first] < skip.end) {
    first++;
  }
  EXPECT_GT(first, 1u);
  all.erase(all.begin(), all.begin() + static_cast<ptrdiff_t>(first));
  EXPECT_EQ(rest, all);
}

// Calls itself and captures in a pattern that `random` decides, through
// functions with frames of all kinds, so that consecutive stacks share some of
// their frames, in the same and in other places.
void Wander(std::mt19937 *random, int depth) {
  for (int i = 0; i < 3; i++) {
    switch ((*random)() % (depth == 0 ? 3 : 7)) {
      case 0:
        CaptureBoth();
        ExpectSame();
        break;
      case 1:
        CaptureBelowAlloca((*random)() % 500 + 1);
        ExpectSame();
        break;
      case 2:
        CaptureRealigned((*random)() % 500 + 1);
        ExpectSame();
        break;
      case 3:
        Recurse(static_cast<int>((*random)() % 3),
                [random, depth] { Wander(random, depth - 1); });
        break;
      default:
        Wander(random, depth - 1);
        break;
    }
    if (::testing::Test::HasFailure()) {
      return;
    }
  }
}

TEST(UnwindTest, StacksThatShareFramesAreRight) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  for (int i = 0; i < 30; i++) {
    Wander(&random, 7);
    ASSERT_FALSE(HasFailure());
  }
}

TEST(UnwindTest, SaysHowManyFramesAreTheSame) {
  unwind_stack_t stack;
  std::vector<uintptr_t> last;
  Recurse(30, [&] {
    for (int i = 0; i < 10; i++) {
      Recurse(i % 4, [&] {
        unwind_capture(Cache(), ThreadState(), {0, 0}, UNWIND_CAPACITY_MAX,
                       &stack);
        ASSERT_FALSE(stack.cut);
        if (!last.empty()) {
          EXPECT_GE(stack.num_same, 30u);
        }
        ASSERT_LE(stack.num_same, stack.num_frames);
        for (size_t same = 1; same <= stack.num_same && !last.empty(); same++) {
          ASSERT_EQ(stack.frames[stack.num_frames - same].ip,
                    last[last.size() - same]);
        }
        last.clear();
        for (size_t k = 0; k < stack.num_frames; k++) {
          last.push_back(stack.frames[k].ip);
        }
      });
    }
  });
}

TEST(UnwindTest, PreservesNothingBetweenThreadsButTheCache) {
  std::vector<std::thread> threads;
  std::vector<Frames> results(8);
  for (size_t i = 0; i < results.size(); i++) {
    threads.emplace_back([&results, i] {
      for (int round = 0; round < 200; round++) {
        Recurse(round % 30, [&results, i] {
          bool cut;
          results[i] = CaptureFrames({0, 0}, UNWIND_CAPACITY_MAX, &cut);
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
