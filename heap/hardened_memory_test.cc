// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Memory of the hardened variant: what is touched, what is given up and got by
// blocks that change their size, and guards, with a kernel that refuses them.

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "heap/fake_kernel.h"
#include "heap/guard.h"
#include "heap/hardened_testing.h"
#include "heap/heap.h"
#include "heap/heap_model.h"
#include "heap/heap_testing.h"

namespace {

using heap_testing::AddressOf;
using heap_testing::ExpectFault;
using heap_testing::fake;
using heap_testing::ReportSilently;
using heap_testing::RunHardened;
using heap_testing::RunInChild;
using heap_testing::UseFakeKernel;
using heap_testing::WriteByte;

// Memory.

size_t PeakBytes() {
  rusage usage;
  EXPECT_EQ(getrusage(RUSAGE_SELF, &usage), 0);
  return static_cast<size_t>(usage.ru_maxrss) * 1024;
}

TEST(MemoryTest, ShrinkingABigBlockDoesNotTouchWhatIsGivenUp) {
  RunHardened("all", [] {
    const size_t old_peak = PeakBytes();
    auto *ptr = static_cast<char *>(heap_alloc(size_t{1} << 30));
    ptr[0] = 'x';
    ptr = static_cast<char *>(heap_realloc(ptr, 64 << 20));
    EXPECT_EQ(ptr[0], 'x');
    EXPECT_EQ(heap_usable_size(ptr), size_t{64} << 20);
    EXPECT_LT(PeakBytes() - old_peak, size_t{100} << 20);
    heap_free(ptr);
  });
}

TEST(MemoryTest, WhatShrinksAndGrowsAgainIsZeroThere) {
  RunHardened("all", [] {
    for (size_t size : {100, 5000, 400000, 20 << 20, 100 << 20}) {
      for (size_t less : {size - 1, size - size / 8, size / 2 + 1}) {
        void *ptr = heap_alloc(size);
        memset(ptr, 1, size);
        ptr = heap_realloc(ptr, less);
        ptr = heap_realloc(ptr, size);
        EXPECT_TRUE(
            heap_testing::IsZero(static_cast<char *>(ptr) + less, size - less));
        heap_free(ptr);
      }
    }
  });
}

TEST(MemoryTest, FreeOfASparseBlockDoesNotTouchTheRest) {
  RunHardened("all", [] {
    auto *ptr = static_cast<char *>(heap_alloc(31 << 20));
    ptr[0] = 'x';
    const size_t old_peak = PeakBytes();
    ptr = static_cast<char *>(heap_realloc(ptr, 20 << 20));
    heap_free(ptr);
    EXPECT_LT(PeakBytes() - old_peak, size_t{4} << 20);
    ptr = static_cast<char *>(heap_alloc(31 << 20));
    EXPECT_TRUE(heap_testing::IsZero(ptr, 31 << 20));
    heap_free(ptr);
  });
}

// Blocks that grew have room to grow behind their marks.

void *Grown(size_t size) {
  void *ptr = heap_alloc(size / 4);
  // Less than half, or the room that it got would do.
  ptr = heap_realloc(ptr, size / 2 - size / 20);
  ptr = heap_realloc(ptr, size);
  memset(ptr, 1, size);
  return ptr;
}

TEST(GrowthTest, OneByteBehindABlockThatGrewIsFound) {
  for (size_t size : {20000, 70000, 300000, 1500000}) {
    RunHardened("all", [size] {
      ReportSilently();
      std::vector<size_t> distances = {0, 1, 7, 8, 300};
      if (size > 65536) {
        distances.push_back(4095);  // The last mark.
      }
      for (size_t distance : distances) {
        auto *ptr = static_cast<char *>(Grown(size));
        EXPECT_EQ(heap_usable_size(ptr), size);
        EXPECT_TRUE(WriteByte(ptr + size + distance));
        heap_free(ptr);
        heap_free(Grown(size));
      }
      EXPECT_EQ(heap_misuse_count(), distances.size());
    });
  }
}

TEST(GrowthTest, WriteToTheRoomToGrowIsFoundBeforeThatIsUsed) {
  RunHardened("all", [] {
    ReportSilently();
    auto *ptr = static_cast<char *>(Grown(100000));
    EXPECT_TRUE(WriteByte(ptr + 140000));
    ptr = static_cast<char *>(heap_realloc(ptr, 150000));
    EXPECT_EQ(heap_misuse_count(), 1u);
    EXPECT_TRUE(heap_testing::IsZero(ptr + 100000, 50000));
    heap_free(ptr);
    EXPECT_EQ(heap_misuse_count(), 1u);
  });
}

TEST(GrowthTest, StepsInTheRoomToGrowMoveNoGuard) {
  RunHardened("all", [] {
    void *ptr = Grown(100000);
    void *const start = ptr;
    UseFakeKernel();
    const int calls = fake.calls;
    for (size_t size = 100000; size <= 200000; size += 1000) {
      ptr = heap_realloc(ptr, size);
      ASSERT_EQ(ptr, start);
      memset(ptr, 1, size);
    }
    EXPECT_EQ(fake.calls, calls);
    ptr = heap_realloc(ptr, 1000000);
    EXPECT_GT(fake.calls, calls);
    heap_free(ptr);
  });
}

// The program wants addresses, too.
TEST(MemoryTest, FreedMappingsLeaveLimitedAddressesToOthers) {
  RunHardened("all", [] {
    const rlimit limit = {300 << 20, 300 << 20};
    ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
    for (int i = 0; i < 4; ++i) {
      void *ptr = heap_alloc(40 << 20);
      ASSERT_NE(ptr, nullptr);
      heap_free(ptr);
    }
    EXPECT_NE(mmap(nullptr, 150 << 20, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
              MAP_FAILED);
  });
}

// Guards.

void ExpectGuards() {
  void *small = heap_alloc(100);
  const uintptr_t span = AddressOf(small) & ~uintptr_t{65535};
  ExpectFault(span);
  ExpectFault(span + 4095);
  ExpectFault(span + 65536 - 4096);
  ExpectFault(span + 65535);
  heap_free(small);
  void *medium = heap_alloc(100000);
  ExpectFault(AddressOf(medium) - 1);
  ExpectFault(AddressOf(medium) - 4096);
  ExpectFault(AddressOf(medium) + 102400);
  medium = heap_realloc(medium, 200000);
  memset(medium, 1, 200000);
  ExpectFault(AddressOf(medium) - 1);
  // One that grew has room to grow again, at most its own length.
  ExpectFault(AddressOf(medium) + 401408);
  medium = heap_realloc(medium, 90000);
  ExpectFault(AddressOf(medium) + 90112);
  heap_free(medium);
  void *big = heap_alloc(40 << 20);
  ExpectFault(AddressOf(big) - 1);
  ExpectFault(AddressOf(big) + (40 << 20) + 4096);
  big = heap_realloc(big, 50 << 20);
  ExpectFault(AddressOf(big) - 1);
  ExpectFault(AddressOf(big) + (50 << 20) + 4096);
  big = heap_realloc(big, 33 << 20);
  ExpectFault(AddressOf(big) + (33 << 20) + 4096);
  heap_free(big);
}

TEST(GuardTest, StandAroundSpansAndLargerBlocks) {
  RunHardened("all", ExpectGuards);
  RunInChild([] {
    setenv("HEAP_SOURCE", "brk", 1);
    ExpectGuards();
  });
}

// As before Linux 6.13, and of locked memory.
TEST(GuardTest, AreMappingsWhereTheKernelKnowsNoOther) {
  RunHardened("all", [] {
    UseFakeKernel();
    fake.refuse_guard = true;
    ExpectGuards();
    EXPECT_GT(heap_guard_mapping_count(), 0u);
    EXPECT_EQ(heap_guard_refused_count(), 0u);
    std::vector<void *> blocks;
    for (int i = 0; i < 3000; ++i) {
      blocks.push_back(heap_alloc(40000));
      blocks.push_back(heap_alloc(1000));
    }
    for (void *ptr : blocks) {
      memset(ptr, 1, 1000);
      heap_free(ptr);
    }
    heap_trim(0);
    EXPECT_EQ(heap_guard_mapping_count(), 0u);
  });
}

TEST(GuardTest, EndAtTheirShareOfTheMappings) {
  RunHardened("all", [] {
    UseFakeKernel();
    fake.refuse_guard = true;
    std::vector<void *> blocks;
    for (int i = 0; i < 6000; ++i) {
      blocks.push_back(heap_alloc(40000));
      ASSERT_NE(blocks.back(), nullptr);
    }
    EXPECT_EQ(heap_guard_mapping_count(), 8192u);
    EXPECT_GT(heap_guard_refused_count(), 3000u);
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
    heap_trim(0);
    EXPECT_EQ(heap_guard_mapping_count(), 0u);
  });
}

TEST(GuardTest, AreDoneWithoutWhenMappingsRunOut) {
  for (size_t most : {0, 1, 7}) {
    RunHardened("all", [most] {
      UseFakeKernel();
      fake.refuse_guard = true;
      fake.most_forbidden_pages = most;
      heap_testing::RunHeapModel(heap_testing::Seed(), 20);
      EXPECT_LE(heap_guard_mapping_count(), most);
      EXPECT_GT(heap_guard_refused_count(), 0u);
    });
  }
}

TEST(GuardTest, EachFailingCallLeavesTheHeapWhole) {
  for (int fail_from = 1; fail_from < 60; ++fail_from) {
    RunHardened("all", [fail_from] {
      UseFakeKernel();
      fake.fail_from = fail_from;
      fake.fail_count = 2;
      for (size_t size : {0, 100, 30000, 100000, 6 << 20, 40 << 20}) {
        void *ptr = heap_calloc(1, size);
        EXPECT_TRUE(ptr == nullptr || heap_testing::IsZero(ptr, size));
        void *moved = heap_realloc(ptr, 2 * size + 1);
        heap_free(moved == nullptr ? ptr : moved);
        EXPECT_STREQ(heap_check(), nullptr);
      }
    });
  }
}

// Writes one byte before a block, if there is no guard, and frees it.
uint64_t UnderflowAndFree(void *ptr) {
  const bool is_written = WriteByte(static_cast<char *>(ptr) - 1);
  heap_free(ptr);
  return is_written;
}

void ExpectUnderflowsReported(bool is_any_written) {
  ReportSilently();
  std::vector<void *> blocks;
  for (int i = 0; i < 200; ++i) {
    blocks.push_back(heap_alloc(100000));
  }
  for (int i = 0; i < 50000; ++i) {
    void *ptr = heap_alloc(100);
    if (AddressOf(ptr) % 65536 == 4096) {  // The first of its span.
      blocks.push_back(ptr);
    }
  }
  EXPECT_GT(blocks.size(), 250u);
  uint64_t written = 0;
  for (void *ptr : blocks) {
    written += UnderflowAndFree(ptr);
  }
  EXPECT_EQ(written > 0, is_any_written);
  EXPECT_EQ(heap_misuse_count(), written);
}

TEST(GuardTest, UnderflowIsFoundWhereTheGuardIsNotThere) {
  RunHardened("all", [] { ExpectUnderflowsReported(false); });
  for (const char *list : {"-guard", "-guard,-zero"}) {
    RunHardened(list, [] { ExpectUnderflowsReported(true); });
  }
  for (size_t most : {0, 1, 100}) {
    RunHardened("all", [most] {
      UseFakeKernel();
      fake.refuse_guard = true;
      fake.most_forbidden_pages = most;
      ExpectUnderflowsReported(true);
    });
  }
}

// Writes to freed blocks.

// Frees blocks but each `keep_every`th, has the heap give memory back, writes
// to what was freed, and looks at what comes next.
void WriteAfterMemoryWentBack(size_t size, size_t keep_every) {
  ReportSilently();
  std::vector<void *> freed;
  const size_t count = (24 << 20) / size;
  for (size_t i = 1; i <= count; ++i) {
    void *ptr = heap_alloc(size);
    memset(ptr, 1, size);
    if (i % keep_every != 0) {
      freed.push_back(ptr);
    }
  }
  for (void *ptr : freed) {
    heap_free(ptr);
  }
  EXPECT_GT(heap_trim(0), 0u);
  std::set<uintptr_t> written;
  for (void *ptr : freed) {
    if (WriteByte(ptr)) {
      written.insert(AddressOf(ptr));
    }
  }
  EXPECT_FALSE(written.empty());
  uint64_t reused = 0;
  for (size_t i = 0; i < count; ++i) {
    void *ptr = heap_calloc(1, size);
    ASSERT_TRUE(heap_testing::IsZero(ptr, size)) << size;
    const auto found = written.lower_bound(AddressOf(ptr));
    reused += found != written.end() && *found < AddressOf(ptr) + size;
  }
  EXPECT_GT(reused, 0u) << size;
  EXPECT_GE(heap_misuse_count(), reused) << size;
}

TEST(ReuseTest, WriteIsFoundInMemoryThatHadBeenGivenBack) {
  for (size_t size : {100, 1000, 8000, 30000, 100000, 400000}) {
    for (size_t keep_every : {20, 60}) {
      RunHardened("all", [=] { WriteAfterMemoryWentBack(size, keep_every); });
    }
  }
}

// Frees most of some blocks, so that all spans stay, writes a byte to each, at
// another place in each, and allocates more than that: those that the
// quarantine let go come from the bin and from its groups.
void WriteToEachFreed(size_t size) {
  ReportSilently();
  constexpr size_t kBlocks = 3000;
  std::set<void *> written;
  std::vector<void *> blocks;
  for (size_t i = 0; i < kBlocks; ++i) {
    blocks.push_back(heap_alloc(size));
  }
  for (size_t i = 0; i < kBlocks; ++i) {
    if (i % 10 != 0) {
      heap_free(blocks[i]);
      static_cast<char *>(blocks[i])[i % size] = 1;
      written.insert(blocks[i]);
    }
  }
  uint64_t reused = 0;
  for (size_t i = 0; i < 2 * kBlocks; ++i) {
    void *ptr = heap_alloc(size);
    reused += written.erase(ptr);
    ASSERT_TRUE(heap_testing::IsZero(ptr, size)) << size;
    ASSERT_EQ(heap_usable_size(ptr), size);
  }
  EXPECT_GT(reused, kBlocks / 2);
  EXPECT_EQ(heap_misuse_count(), reused) << size;
}

TEST(ReuseTest, WriteToAFreedBlockIsFoundOnceWhereverItWas) {
  for (const char *list : {"all", "all,-random"}) {
    for (size_t size : {9, 24, 40, 56, 72, 104, 120, 200, 1000}) {
      RunHardened(list, [=] { WriteToEachFreed(size); });
    }
  }
}

// Each block that a bin caches keeps its span: a thread that only frees must
// not keep one for each.
TEST(MemoryTest, FreeingAllInAnyOrderLeavesFewSpans) {
  RunHardened("all", [] {
    std::mt19937 random(1);
    std::vector<void *> blocks;
    for (size_t bytes = 0; bytes < 100u << 20;) {
      const size_t size = 16 + random() % 1000;
      blocks.push_back(heap_alloc(size));
      bytes += size;
    }
    std::shuffle(blocks.begin(), blocks.end(), random);
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
    heap_stats_t stats;
    heap_stats_get(&stats);
    // Of some 1600; what waits keeps 80.
    printf("%zu spans left\n", stats.num_spans);
    EXPECT_LE(stats.num_spans, 350u);
    EXPECT_EQ(heap_check(), nullptr);
  });
}

}  // namespace
