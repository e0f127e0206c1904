// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Private heaps that several threads use: every function at once, what must be
// done before the lock is given up, and fork in the middle of it.

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "heap/fit.h"
#include "heap/heap_testing.h"
#include "heap/private_heap.h"
#include "heap/private_heap_testing.h"

namespace {

using heap_testing::Create;
using heap_testing::Heap;
using heap_testing::IsZero;
using heap_testing::kStrategies;
using heap_testing::Options;
using heap_testing::Random;
using heap_testing::RunInChild;
using heap_testing::Stats;

class PrivateHeapThreadsTest : public testing::TestWithParam<heap_strategy_t> {
};

INSTANTIATE_TEST_SUITE_P(Strategies, PrivateHeapThreadsTest,
                         testing::ValuesIn(kStrategies));

void RunInThreads(int count, const std::function<void(uint64_t)> &body) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) {
    threads.emplace_back(body, static_cast<uint64_t>(i));
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
}

// Clearing.

constexpr size_t kPageBytes = 4096;

heap_t *cleared_heap = nullptr;
void *forbidden_page = nullptr;
int faults = 0;
bool was_locked = false;

// Somebody writes to the page that nobody may access.
void NoteFault(int) {
  ++faults;
  was_locked = pthread_mutex_trylock(&cleared_heap->lock) != 0;
  if (!was_locked) {
    pthread_mutex_unlock(&cleared_heap->lock);
  }
  mprotect(forbidden_page, kPageBytes, PROT_READ | PROT_WRITE);
}

// Once the lock is free another thread may reset the heap and have the memory.
TEST_P(PrivateHeapThreadsTest, CallocClearsBeforeItUnlocks) {
  const size_t kBytes = size_t{4} << 20;
  void *memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  heap_options_t options = Options(GetParam());
  options.buffer = memory;
  options.buffer_bytes = kBytes;
  {
    const Heap heap = Create(options);
    const size_t size = size_t{1} << 20;
    auto *ptr = static_cast<unsigned char *>(heap_alloc_in(heap.get(), size));
    ASSERT_NE(ptr, nullptr);
    memset(ptr, 0x5A, size);
    heap_free_in(heap.get(), ptr);
    const uintptr_t middle = reinterpret_cast<uintptr_t>(ptr) + size / 2;
    cleared_heap = heap.get();
    forbidden_page = reinterpret_cast<void *>(middle & ~(kPageBytes - 1));
    faults = 0;
    was_locked = false;
    struct sigaction action = {};
    struct sigaction old_action = {};
    action.sa_handler = NoteFault;
    ASSERT_EQ(sigaction(SIGSEGV, &action, &old_action), 0);
    ASSERT_EQ(mprotect(forbidden_page, kPageBytes, PROT_NONE), 0);
    void *cleared = heap_calloc_in(heap.get(), 1, size);
    ASSERT_EQ(sigaction(SIGSEGV, &old_action, nullptr), 0);
    EXPECT_EQ(cleared, ptr);
    EXPECT_EQ(faults, 1);
    EXPECT_TRUE(was_locked);
    EXPECT_TRUE(IsZero(cleared, size));
  }
  EXPECT_EQ(munmap(memory, kBytes), 0);
}

// All at once.

bool AddSize(void *context, void *, size_t usable_bytes) {
  *static_cast<size_t *>(context) += usable_bytes;
  return true;
}

void LookAtAll(heap_t *heap) {
  size_t walked_bytes = 0;
  EXPECT_TRUE(heap_walk_in(heap, AddSize, &walked_bytes));
  EXPECT_LE(walked_bytes, size_t{2} << 20);
  EXPECT_STREQ(heap_check_in(heap), nullptr);
  heap_private_stats_t stats;
  heap_stats_get_in(heap, &stats);
  EXPECT_EQ(stats.live_bytes + stats.free_bytes, stats.mapped_bytes);
  heap_trim_in(heap);
}

// Threads take from and give to each other through these.
using Slots = std::array<std::atomic<void *>, 256>;

void *ResizeOneOf(heap_t *heap, Slots *slots, Random *random) {
  void *ptr = (*slots)[random->Below(slots->size())].exchange(nullptr);
  void *moved = ptr == nullptr
                    ? nullptr
                    : heap_realloc_in(heap, ptr, random->SkewedSize(13));
  return moved != nullptr ? moved : ptr;
}

void *MakeOne(heap_t *heap, Slots *slots, Random *random) {
  const size_t size = random->SkewedSize(12);
  switch (random->Below(8)) {
    case 0:
    case 1: {
      void *ptr = heap_calloc_in(heap, 1, size);
      EXPECT_TRUE(ptr == nullptr || IsZero(ptr, size));
      return ptr;
    }
    case 2:
      return heap_aligned_alloc_in(heap, size_t{1} << random->Below(13), size);
    case 3:
    case 4:
      return ResizeOneOf(heap, slots, random);
    case 5:
      return heap_alloc_in(heap, size * 40);
    default:
      return heap_alloc_in(heap, size);
  }
}

// A block that two have at once is not what its owner wrote.
void UseAndPassOn(heap_t *heap, Slots *slots, Random *random, void *ptr) {
  if (ptr != nullptr) {
    const size_t usable_bytes = heap_usable_size_in(heap, ptr);
    const auto value = static_cast<unsigned char>(random->Next());
    auto *bytes = static_cast<unsigned char *>(ptr);
    memset(bytes, value, usable_bytes);
    EXPECT_EQ(bytes[0], value);
    EXPECT_EQ(bytes[usable_bytes - 1], value);
  }
  heap_free_in(heap, (*slots)[random->Below(slots->size())].exchange(ptr));
}

TEST_P(PrivateHeapThreadsTest, AllFunctionsAtOnce) {
  const uint64_t seed = heap_testing::Seed();
  heap_options_t options = Options(GetParam());
  options.limit_bytes = size_t{2} << 20;
  const Heap heap = Create(options);
  Slots slots = {};
  RunInThreads(4, [&](uint64_t thread) {
    Random random(seed + thread);
    for (int i = 0; i < 6000; ++i) {
      UseAndPassOn(heap.get(), &slots, &random,
                   MakeOne(heap.get(), &slots, &random));
      if (i % 64 == 0) {
        LookAtAll(heap.get());
      }
    }
  });
  for (std::atomic<void *> &slot : slots) {
    heap_free_in(heap.get(), slot.load());
  }
  EXPECT_EQ(Stats(heap).num_live, 0u);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

// Nobody has a block for long, so nobody looks into one.
TEST_P(PrivateHeapThreadsTest, ResetAmongOthers) {
  const uint64_t seed = heap_testing::Seed();
  heap_options_t options = Options(GetParam());
  options.limit_bytes = size_t{2} << 20;
  const Heap heap = Create(options);
  RunInThreads(4, [&](uint64_t thread) {
    Random random(seed + thread);
    for (int i = 0; i < 3000; ++i) {
      if (i % 4 == static_cast<int>(thread)) {
        heap_reset(heap.get());
      } else if (i % 64 == 0) {
        LookAtAll(heap.get());
      } else {
        const size_t size = random.SkewedSize(16);
        void *ptr = i % 2 == 0 ? heap_calloc_in(heap.get(), 1, size)
                               : heap_aligned_alloc_in(heap.get(), 64, size);
        EXPECT_TRUE(ptr == nullptr ||
                    reinterpret_cast<uintptr_t>(ptr) >= heap->base);
      }
    }
  });
  heap_reset(heap.get());
  EXPECT_EQ(Stats(heap).num_live, 0u);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

// Fork.

bool AllocInOther(void *context, void *, size_t) {
  auto *other = static_cast<heap_t *>(context);
  heap_free_in(other, heap_alloc_in(other, 100));
  return true;
}

void UseAll(heap_t *heap) {
  void *ptr = heap_calloc_in(heap, 1, 1000);
  ASSERT_NE(ptr, nullptr);
  EXPECT_TRUE(IsZero(ptr, 1000));
  ptr = heap_realloc_in(heap, ptr, 5000);
  ASSERT_NE(ptr, nullptr);
  heap_free_in(heap, ptr);
  EXPECT_STREQ(heap_check_in(heap), nullptr);
}

// One thread is inside both heaps nearly all the time.
TEST_P(PrivateHeapThreadsTest, ChildFindsTheLocksFree) {
  const Heap heap = Create(Options(GetParam()));
  const Heap other = Create(Options(GetParam()));
  for (size_t i = 0; i < 5000; ++i) {
    ASSERT_NE(heap_alloc_in(heap.get(), 16 + i % 100), nullptr);
  }
  std::atomic<bool> is_done{false};
  std::thread thread([&] {
    while (!is_done.load()) {
      heap_walk_in(heap.get(), AllocInOther, other.get());
    }
  });
  for (int i = 0; i < 20 && !HasFailure(); ++i) {
    RunInChild([&] {
      alarm(60);  // Rather than for ever.
      UseAll(heap.get());
      UseAll(other.get());
      heap_reset(other.get());
    });
    UseAll(other.get());
  }
  is_done.store(true);
  thread.join();
  EXPECT_EQ(Stats(heap).num_live, 5000u);
  EXPECT_EQ(Stats(other).num_live, 0u);
}

bool AllocInTheProcessHeap(void * /*context*/, void * /*ptr*/,
                           size_t /*usable_bytes*/) {
  heap_free(heap_alloc(100000));  // With the central lock.
  return true;
}

// Fork takes the process heap's lock last.
TEST_P(PrivateHeapThreadsTest, VisitorMayUseTheProcessHeapDuringFork) {
  const Heap heap = Create(Options(GetParam()));
  for (size_t i = 0; i < 1000; ++i) {
    ASSERT_NE(heap_alloc_in(heap.get(), 100), nullptr);
  }
  RunInChild([&] {
    alarm(60);  // Rather than for ever.
    std::atomic<bool> is_done{false};
    std::thread thread([&] {
      while (!is_done.load()) {
        heap_walk_in(heap.get(), AllocInTheProcessHeap, nullptr);
      }
    });
    for (int i = 0; i < 100; ++i) {
      RunInChild([] {});
    }
    is_done.store(true);
    thread.join();
  });
}

// Heaps come and go while others fork, from any place of the list.
TEST_P(PrivateHeapThreadsTest, HeapsMayBeMadeWhileOthersFork) {
  std::atomic<bool> is_done{false};
  std::thread thread([&] {
    std::array<Heap, 5> heaps;
    Random random(1);
    while (!is_done.load()) {
      Heap &heap = heaps[random.Below(heaps.size())];
      heap = heap == nullptr ? Create(Options(GetParam())) : nullptr;
    }
  });
  Heap heap = Create(Options(GetParam()));
  for (int i = 0; i < 20 && !HasFailure(); ++i) {
    RunInChild([&] {
      alarm(60);  // Rather than for ever.
      UseAll(heap.get());
      const Heap own = Create(Options(GetParam()));
      UseAll(own.get());
      heap.reset();
    });
    heap = Create(Options(GetParam()));
    UseAll(heap.get());
  }
  is_done.store(true);
  thread.join();
}

}  // namespace
