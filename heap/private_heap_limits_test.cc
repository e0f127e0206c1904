// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Private heaps at their limits: options, capacities near 2^32 granules, large
// pages, the bounds of steps, fork. Files are in private_heap_file_test.cc.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "heap/fake_kernel.h"
#include "heap/fit.h"
#include "heap/heap_testing.h"
#include "heap/kernel.h"
#include "heap/private_heap.h"
#include "heap/private_heap_testing.h"

namespace {

using heap_testing::Create;
using heap_testing::fake;
using heap_testing::Fill;
using heap_testing::Heap;
using heap_testing::IsFilled;
using heap_testing::kStrategies;
using heap_testing::Options;
using heap_testing::Random;
using heap_testing::RunInChild;
using heap_testing::Stats;
using heap_testing::UseFakeKernel;

class PrivateHeapLimitsTest : public testing::TestWithParam<heap_strategy_t> {};

INSTANTIATE_TEST_SUITE_P(Strategies, PrivateHeapLimitsTest,
                         testing::ValuesIn(kStrategies));

// Options.

TEST(PrivateHeapOptionsTest, WrongOnesAreRefused) {
  unsigned char tiny[64];
  const auto is_refused = [](heap_options_t options) {
    errno = 0;
    return heap_create(&options) == nullptr && errno == EINVAL;
  };
  heap_options_t options = {};
  options.strategy = HEAP_STRATEGY_COUNT;
  EXPECT_TRUE(is_refused(options));
  options = {};
  for (size_t granule :
       {size_t{1}, size_t{4}, size_t{24}, size_t{131072}, SIZE_MAX}) {
    options.granule_bytes = granule;
    EXPECT_TRUE(is_refused(options)) << granule;
  }
  options = {};
  options.tlsf_lists_log2 = 6;
  EXPECT_TRUE(is_refused(options));
  options = {};
  options.strategy = HEAP_SEGREGATED;
  for (size_t span : {size_t{1}, size_t{512}, size_t{1025}, size_t{131072}}) {
    options.span_bytes = span;
    EXPECT_TRUE(is_refused(options)) << span;
  }
  options.span_bytes = 0;
  options.granule_bytes = 32;
  EXPECT_TRUE(is_refused(options));
  options = {};
  options.limit_bytes = 65535;
  EXPECT_TRUE(is_refused(options));
  options = {};
  options.buffer = tiny;
  options.buffer_bytes = sizeof(tiny);
  EXPECT_TRUE(is_refused(options));
  options.buffer_bytes = SIZE_MAX;
  EXPECT_TRUE(is_refused(options));
  options.buffer_bytes = 0;
  EXPECT_TRUE(is_refused(options));
  // The last bytes of all: aligned, it would start at 0.
  options.buffer = reinterpret_cast<void *>(UINTPTR_MAX - 3);
  options.buffer_bytes = 2;
  EXPECT_TRUE(is_refused(options));
  std::vector<unsigned char> memory(100000);
  // Tables, but no page.
  options = {};
  options.strategy = HEAP_SEGREGATED;
  options.buffer = memory.data();
  options.buffer_bytes = 5000;
  EXPECT_TRUE(is_refused(options));
  options.buffer_bytes = memory.size();
  options.span_bytes = 65536;
  EXPECT_TRUE(is_refused(options));
  options.strategy = HEAP_FIRST_FIT;
  options.buffer = memory.data();
  options.buffer_bytes = memory.size();
  options.use_file = true;
  EXPECT_TRUE(is_refused(options));
  options = {};
  heap_destroy(nullptr);
}

// More granules than can be numbered: as many as can be, if there are so many
// addresses.
TEST(PrivateHeapOptionsTest, LimitIsAtMostTwoToThe32Granules) {
  heap_options_t options = {};
  options.limit_bytes = SIZE_MAX / 2;
  Heap heap(heap_create(&options));
  if (heap != nullptr) {  // Not so where addresses are limited.
    EXPECT_NE(heap_alloc_in(heap.get(), 100), nullptr);
    EXPECT_EQ(heap_alloc_in(heap.get(), size_t{16} << 32), nullptr);
    EXPECT_EQ(errno, ENOMEM);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  } else {
    EXPECT_EQ(errno, ENOMEM);
  }
}

TEST_P(PrivateHeapLimitsTest, NothingIsSplitOffAtTheHighestThreshold) {
  heap_options_t options = Options(GetParam());
  options.split_bytes = SIZE_MAX;
  const Heap heap = Create(options);
  void *ptr = heap_alloc_in(heap.get(), 1024);
  ASSERT_NE(ptr, nullptr);
  EXPECT_EQ(heap_usable_size_in(heap.get(), ptr),
            GetParam() == HEAP_BUDDY || GetParam() == HEAP_SEGREGATED ? 1024u
                                                                      : 65536u);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

// Capacity.

constexpr size_t kMostBytes = size_t{16} << 32;

// Addresses that cost nothing until they are written to.
void *MapAddresses(size_t size_bytes) {
  void *ptr = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return ptr == MAP_FAILED ? nullptr : ptr;
}

bool CanMapAddresses(size_t size_bytes) {
  void *ptr = MapAddresses(size_bytes);
  return ptr != nullptr && munmap(ptr, size_bytes) == 0;
}

// Nothing but links is touched in what is made usable.
void UseAddressesOnly() {
  static const heap_kernel_t kKernel = [] {
    heap_kernel_t kernel = heap_kernel_default;
    kernel.map = [](size_t size_bytes, bool) {
      return MapAddresses(size_bytes);
    };
    kernel.commit = [](void *, size_t) {
      return true;
    };
    return kernel;
  }();
  heap_kernel = &kKernel;
}

// Addresses only: all of them as one block but for its last bytes, and what
// cannot be.
TEST_P(PrivateHeapLimitsTest, BlocksNearTwoToThe32Granules) {
  if (!CanMapAddresses(kMostBytes + kMostBytes / 16)) {
    GTEST_SKIP() << "addresses are limited here";
  }
  RunInChild([] {
    UseAddressesOnly();
    heap_options_t options = Options(GetParam());
    options.limit_bytes = kMostBytes;
    const Heap heap = Create(options);
    ASSERT_NE(heap, nullptr);
    const size_t capacity = size_t{heap->capacity} * 16;
    EXPECT_GT(capacity, kMostBytes - (size_t{2} << 20));
    void *small = heap_alloc_in(heap.get(), 16);
    void *behind = heap_alloc_in(heap.get(), 16);
    EXPECT_EQ(heap_realloc_in(heap.get(), small, capacity), nullptr);
    heap_free_in(heap.get(), behind);
    EXPECT_EQ(heap_alloc_in(heap.get(), capacity + 1), nullptr);
    EXPECT_EQ(heap_alloc_in(heap.get(), SIZE_MAX - 14), nullptr);
    EXPECT_EQ(heap_aligned_alloc_in(heap.get(), size_t{1} << 46, capacity - 16),
              nullptr);
    heap_free_in(heap.get(), small);
    // More than half of it has no buddy.
    const size_t half = kMostBytes / 2;
    EXPECT_EQ(heap_alloc_in(heap.get(), half + 16) == nullptr,
              GetParam() == HEAP_BUDDY);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
    heap_reset(heap.get());
    void *large = heap_alloc_in(heap.get(), half);
    ASSERT_NE(large, nullptr);
    EXPECT_EQ(heap_realloc_in(heap.get(), large, half + 16) == nullptr,
              GetParam() == HEAP_BUDDY);
    // A size class may have another place for it.
    void *shrunk = heap_realloc_in(heap.get(), large, 16);
    EXPECT_TRUE(shrunk == large || GetParam() == HEAP_SEGREGATED);
    EXPECT_NE(shrunk, nullptr);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  });
}

// What is there and free is used before more is asked for.
TEST_P(PrivateHeapLimitsTest, GrowsIntoWhatIsFreeAtTheEnd) {
  heap_options_t options = Options(GetParam());
  options.limit_bytes = 131072;
  const Heap heap = Create(options);
  heap_free_in(heap.get(), heap_alloc_in(heap.get(), 16));
  EXPECT_EQ(Stats(heap).mapped_bytes, 65536u);
  void *all = heap_alloc_in(heap.get(), 131072);
  EXPECT_NE(all, nullptr);
  EXPECT_EQ(Stats(heap).largest_free_bytes, 0u);
}

TEST_P(PrivateHeapLimitsTest, AlignsBeyondItsBase) {
  const Heap heap = Create(Options(GetParam()));
  ASSERT_NE(heap_alloc_in(heap.get(), 16), nullptr);
  for (size_t align = 1; align <= size_t{1} << 24; align *= 2) {
    void *ptr = heap_aligned_alloc_in(heap.get(), align, 40);
    if (GetParam() == HEAP_BUDDY && align > 65536) {
      EXPECT_EQ(ptr, nullptr);
      EXPECT_EQ(errno, ENOMEM);
      continue;
    }
    ASSERT_NE(ptr, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(ptr) % align, 0u);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  }
  EXPECT_EQ(heap_aligned_alloc_in(heap.get(), size_t{1} << 63, 1), nullptr);
  EXPECT_EQ(heap_aligned_alloc_in(heap.get(), 24, 1), nullptr);
  EXPECT_EQ(errno, EINVAL);
}

// With no room for the old place and a new one.
TEST_P(PrivateHeapLimitsTest, LastBlockGrowsUpToTheLimit) {
  heap_options_t options = Options(GetParam());
  options.limit_bytes = size_t{1} << 20;
  const Heap heap = Create(options);
  const size_t kBytes = GetParam() == HEAP_BUDDY ? 524288 : 600000;
  void *ptr = heap_alloc_in(heap.get(), kBytes);
  Fill(ptr, kBytes, 1);
  ASSERT_LT(Stats(heap).mapped_bytes, 700000u);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, 700000), ptr);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, size_t{1} << 20), ptr);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, (size_t{1} << 20) + 1), nullptr);
  EXPECT_EQ(errno, ENOMEM);
  EXPECT_TRUE(IsFilled(ptr, kBytes, kBytes, 1));
  EXPECT_EQ(Stats(heap).live_bytes, size_t{1} << 20);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

// What is free behind it is used as well, of a buddy heap in several pieces.
TEST_P(PrivateHeapLimitsTest, LastBlockGrowsStepByStepWithoutAMove) {
  const size_t kBytes = 65536;
  const Heap heap = Create(Options(GetParam()));
  void *ptr = heap_alloc_in(heap.get(), kBytes);
  void *second = heap_alloc_in(heap.get(), kBytes);
  void *third = heap_alloc_in(heap.get(), kBytes);
  Fill(ptr, kBytes, 1);
  heap_free_in(heap.get(), second);
  heap_free_in(heap.get(), third);
  for (size_t size = 4 * kBytes; size <= 256 * kBytes; size += kBytes / 2) {
    ASSERT_EQ(heap_realloc_in(heap.get(), ptr, size), ptr) << size;
    ASSERT_STREQ(heap_check_in(heap.get()), nullptr) << size;
  }
  EXPECT_TRUE(IsFilled(ptr, kBytes, kBytes, 1));
  EXPECT_LE(Stats(heap).mapped_bytes, 320 * kBytes);
  if (GetParam() == HEAP_TLSF) {
    EXPECT_LE(Stats(heap).max_steps, uint64_t{HEAP_TLSF_STEPS_MAX});
  }
  // Not when another is the last.
  ASSERT_NE(heap_alloc_in(heap.get(), 256 * kBytes), nullptr);
  EXPECT_NE(heap_realloc_in(heap.get(), ptr, 512 * kBytes), ptr);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

TEST_P(PrivateHeapLimitsTest, LastBlockMovesWhereThereIsNoMoreMemory) {
  RunInChild([] {
    UseFakeKernel();
    const size_t kBytes = 65536;
    const Heap heap = Create(Options(GetParam()));
    // A place that is free, but not behind the block.
    void *first = heap_alloc_in(heap.get(), 4 * kBytes);
    void *ptr = heap_alloc_in(heap.get(), kBytes);
    Fill(ptr, kBytes, 1);
    heap_free_in(heap.get(), first);
    ASSERT_EQ(Stats(heap).mapped_bytes, 5 * kBytes);
    fake.refuse_commit = true;
    void *moved = heap_realloc_in(heap.get(), ptr, 2 * kBytes);
    EXPECT_EQ(moved, first);
    EXPECT_TRUE(IsFilled(moved, kBytes, kBytes, 1));
    EXPECT_EQ(heap_realloc_in(heap.get(), moved, 8 * kBytes), nullptr);
    EXPECT_EQ(errno, ENOMEM);
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  });
}

// Pages.

uintptr_t discarded_low;
uintptr_t discarded_high;

TEST_P(PrivateHeapLimitsTest, TrimsWholePagesOfTheKernels) {
  RunInChild([] {
    static heap_kernel_t kernel = heap_kernel_default;
    kernel.discard = [](void *ptr, size_t size_bytes) {
      discarded_low = reinterpret_cast<uintptr_t>(ptr);
      discarded_high = discarded_low + size_bytes;
      return true;
    };
    heap_kernel = &kernel;
    const Heap heap = Create(Options(GetParam()));
    heap->page_bytes = 65536;
    void *ptr = heap_alloc_in(heap.get(), 200000);
    ASSERT_NE(heap_alloc_in(heap.get(), 16), nullptr);
    heap_free_in(heap.get(), ptr);
    EXPECT_GE(heap_trim_in(heap.get()), 65536u);
    EXPECT_EQ(discarded_low % 65536, 0u);
    EXPECT_EQ(discarded_high % 65536, 0u);
  });
}

// Bounded time.

uint64_t LongestCall(heap_strategy_t strategy, int steps,
                     bool is_single = false) {
  heap_options_t options = Options(strategy);
  options.single_threaded = is_single;
  const Heap heap = Create(options);
  Random random(heap_testing::Seed());
  std::vector<void *> blocks(20000);
  for (int i = 0; i < steps; ++i) {
    void *&ptr = blocks[random.Below(blocks.size())];
    heap_free_in(heap.get(), ptr);
    ptr = heap_alloc_in(heap.get(), random.SkewedSize(12));
  }
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  return Stats(heap).max_steps;
}

TEST(BoundTest, TlsfAndBuddyTakeFewSteps) {
  const uint64_t first = LongestCall(HEAP_FIRST_FIT, 100000);
  EXPECT_LE(LongestCall(HEAP_TLSF, 1000000), uint64_t{HEAP_TLSF_STEPS_MAX});
  EXPECT_LE(LongestCall(HEAP_TLSF, 1000000, true),
            uint64_t{HEAP_TLSF_STEPS_MAX});
  EXPECT_LE(LongestCall(HEAP_BUDDY, 1000000), uint64_t{HEAP_BUDDY_STEPS_MAX});
  EXPECT_GE(first, uint64_t{10 * HEAP_TLSF_STEPS_MAX});
}

// The worst cases by hand: neighbours as far away as they can be, on both
// sides; buddies that join and split through all orders; moves.
TEST(BoundTest, WorstCasesAreWithinTheBound) {
  for (const auto &[strategy, is_single] :
       {std::pair(HEAP_TLSF, false), std::pair(HEAP_TLSF, true),
        std::pair(HEAP_BUDDY, false)}) {
    heap_options_t options = Options(strategy);
    options.limit_bytes = size_t{8} << 30;
    options.single_threaded = is_single;
    const Heap heap = Create(options);
    void *a = heap_alloc_in(heap.get(), size_t{1} << 30);
    void *b = heap_alloc_in(heap.get(), 16);
    void *c = heap_alloc_in(heap.get(), size_t{1} << 30);
    ASSERT_NE(c, nullptr);
    heap_free_in(heap.get(), a);
    heap_free_in(heap.get(), c);
    heap_free_in(heap.get(), b);
    for (int i = 0; i < 10; ++i) {
      // All orders are split, then joined.
      void *ptr = heap_aligned_alloc_in(heap.get(), 4096, 1);
      void *moved = heap_realloc_in(heap.get(), ptr, size_t{1} << 20);
      ASSERT_NE(moved, nullptr);
      heap_free_in(heap.get(), moved);
      ASSERT_EQ(Stats(heap).num_live, 0u);
    }
    void *low = heap_alloc_in(heap.get(), 16);
    void *high = heap_alloc_in(heap.get(), size_t{1} << 30);
    heap_free_in(heap.get(), low);
    EXPECT_NE(heap_realloc_in(heap.get(), high, (size_t{1} << 30) + 16),
              nullptr);
    const uint64_t bound =
        strategy == HEAP_TLSF ? HEAP_TLSF_STEPS_MAX : HEAP_BUDDY_STEPS_MAX;
    EXPECT_LE(Stats(heap).max_steps, bound);
    EXPECT_GE(Stats(heap).max_steps, bound / 5) << "or the bound says nothing";
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  }
}

// The heap ends just before 1 GiB. Up to there all behind the block is free,
// buddies that get longer and longer, then shorter and shorter, but for the
// last.
TEST(BoundTest, BuddyThatCannotGrowIsWithinTheBound) {
  RunInChild([] {
    const size_t kMost = size_t{1} << 30;
    const size_t kLeast = 65536;
    static uintptr_t commit_end;
    static heap_kernel_t kernel = heap_kernel_default;
    kernel.commit = [](void *ptr, size_t size_bytes) {
      return reinterpret_cast<uintptr_t>(ptr) + size_bytes <= commit_end &&
             heap_kernel_default.commit(ptr, size_bytes);
    };
    heap_kernel = &kernel;
    const Heap heap = Create(Options(HEAP_BUDDY));
    commit_end = heap->base + kMost - kLeast;
    void *ptr = heap_alloc_in(heap.get(), 16);
    std::vector<void *> blocks;
    while (void *block = heap_alloc_in(heap.get(), kLeast)) {
      blocks.push_back(block);
    }
    ASSERT_EQ(blocks.size(), kMost / kLeast - 2);
    blocks.pop_back();
    for (void *block : blocks) {
      heap_free_in(heap.get(), block);
    }
    ASSERT_EQ(Stats(heap).num_free, 12u + 13 + 12);
    commit_end = UINTPTR_MAX;
    const uint64_t first = Stats(heap).num_steps;
    EXPECT_NE(heap_realloc_in(heap.get(), ptr, kMost), nullptr);
    const uint64_t steps = Stats(heap).num_steps - first;
    EXPECT_EQ(steps, Stats(heap).max_steps);
    EXPECT_LE(steps, uint64_t{HEAP_BUDDY_STEPS_MAX});
    EXPECT_GE(steps, uint64_t{HEAP_BUDDY_STEPS_MAX / 4})
        << "or it says nothing";
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  });
}

// Fork.

TEST_P(PrivateHeapLimitsTest, ChildHasACopy) {
  const Heap heap = Create(Options(GetParam()));
  void *ptr = heap_alloc_in(heap.get(), 1000);
  Fill(ptr, 1000, 1);
  RunInChild([&] {
    EXPECT_TRUE(IsFilled(ptr, 1000, 1000, 1));
    heap_free_in(heap.get(), ptr);
    for (int i = 0; i < 1000; ++i) {
      void *other = heap_alloc_in(heap.get(), 1000);
      ASSERT_NE(other, nullptr);
      Fill(other, 1000, 2);
    }
    EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  });
  EXPECT_EQ(Stats(heap).num_live, 1u);
  EXPECT_TRUE(IsFilled(ptr, 1000, 1000, 1));
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
}

// Whatever destroying does, and fails to do.
TEST_P(PrivateHeapLimitsTest, DestroyKeepsErrno) {
  RunInChild([] {
    static int unmapped = 0;
    static heap_kernel_t kernel = heap_kernel_default;
    kernel.unmap = [](void *, size_t) {
      ++unmapped;
      errno = ENOMEM;
      return false;
    };
    heap_kernel = &kernel;
    heap_options_t options = Options(GetParam());
    options.use_file = true;
    options.file = memfd_create("limits_test", MFD_CLOEXEC);
    Heap heap = Create(options);
    EXPECT_EQ(close(options.file), 0);
    // Its own descriptor; to close it again is EBADF.
    EXPECT_EQ(close(heap->options.file), 0);
    errno = 4711;
    heap.reset();
    EXPECT_EQ(errno, 4711);
    EXPECT_EQ(unmapped, 2);
  });
}

}  // namespace
