// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Where the memory comes from: a kernel that refuses one kind of call for ever,
// a break that others move, reservations, memory of the program's own.

#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "heap/fake_kernel.h"
#include "heap/heap.h"
#include "heap/heap_model.h"
#include "heap/heap_testing.h"

namespace {

using heap_testing::fake;
using heap_testing::Fill;
using heap_testing::IsFilled;
using heap_testing::IsZero;
using heap_testing::Random;
using heap_testing::RunHeapModel;
using heap_testing::RunInChild;
using heap_testing::StrangersMemory;
using heap_testing::UseFakeKernel;

// What free_sized() ends in (fast_path.h, which is for C).
extern "C" void heap_free_sized_slow(void *ptr, size_t align_bytes,
                                     size_t size_bytes, bool may_have_shrunk);

heap_stats_t Stats() {
  heap_stats_t stats;
  heap_stats_get(&stats);
  return stats;
}

// The heap goes on where one kind of call is refused for ever.

TEST(HeapSourceTest, ArenasAreMappedWhereTheBreakIsRefused) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    UseFakeKernel();
    fake.refuse_break = true;
    for (uint64_t i = 0; i < 10; ++i) {
      RunHeapModel(seed + i, 12 + i);
    }
    EXPECT_EQ(fake.break_moves, 0);
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

TEST(HeapSourceTest, ReservationsAreSmallWhereAddressesAreShort) {
  RunInChild([] {
    UseFakeKernel();
    fake.refuse_break = true;
    fake.largest_map_bytes = 3 << 20;
    std::vector<void *> blocks;
    for (;;) {
      void *ptr = heap_alloc(100000);
      if (ptr == nullptr) {
        break;
      }
      memset(ptr, 1, 100000);
      blocks.push_back(ptr);
    }
    // All of the arenas the heap can have, well used.
    EXPECT_GT(blocks.size() * 100000, 50u << 20);
    EXPECT_STREQ(heap_check(), nullptr);
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

TEST(HeapSourceTest, BigBlocksAreRunsWhereNoMappingIsToBeHad) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    UseFakeKernel();
    fake.largest_map_bytes = 2 << 20;
    void *ptr = heap_calloc(1, 5 << 20);
    ASSERT_NE(ptr, nullptr);
    EXPECT_TRUE(IsZero(ptr, 5 << 20));
    Fill(ptr, 5 << 20, 1);
    EXPECT_EQ(Stats().huge_bytes, 0u);
    ptr = heap_realloc(ptr, 9 << 20);
    ASSERT_NE(ptr, nullptr);
    EXPECT_TRUE(IsFilled(ptr, 9 << 20, 5 << 20, 1));
    heap_free(ptr);
    RunHeapModel(seed, 24);
  });
}

TEST(HeapSourceTest, RefusedCommitIsEnomemAndCanBeTriedAgain) {
  RunInChild([] {
    UseFakeKernel();
    fake.refuse_break = true;
    fake.refuse_commit = true;
    for (size_t size : {size_t{10}, size_t{100000}}) {
      errno = 0;
      EXPECT_EQ(heap_alloc(size), nullptr);
      EXPECT_EQ(errno, ENOMEM);
      EXPECT_STREQ(heap_check(), nullptr);
    }
    EXPECT_NE(heap_alloc(8 << 20), nullptr) << "a mapping of its own";
    fake.refuse_commit = false;
    RunHeapModel(1, 20);
  });
}

// Neither addresses nor arenas are used up by allocations that fail.
TEST(HeapSourceTest, RefusedCommitsLeaveNoArenasBehind) {
  RunInChild([] {
    UseFakeKernel();
    fake.refuse_break = true;
    fake.refuse_commit = true;
    EXPECT_EQ(heap_alloc(100000), nullptr);
    const size_t mapped_bytes = fake.mapped_bytes;
    for (int i = 0; i < 100; ++i) {
      EXPECT_EQ(heap_alloc(100000), nullptr);
    }
    EXPECT_EQ(fake.mapped_bytes, mapped_bytes);
    EXPECT_EQ(fake.mapped_bytes, Stats().metadata_bytes);
    fake.refuse_commit = false;
    RunHeapModel(1, 20);
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

// What threads left, and bins hold, is no reason for being out of memory.
TEST(HeapSourceTest, CachedMemoryIsUsedWhenTheKernelHasNone) {
  RunInChild([] {
    UseFakeKernel();
    const auto use_all_classes = [] {
      for (size_t size = 16; size <= 32768; size += 16) {
        heap_free(heap_alloc(size));
      }
    };
    std::thread(use_all_classes).join();
    use_all_classes();
    // No run is left that is as long as half of the next block.
    while (Stats().largest_free_run_bytes >= 1 << 20) {
      ASSERT_NE(heap_alloc(Stats().largest_free_run_bytes), nullptr);
    }
    fake.fail_from = fake.calls + 1;
    fake.fail_count = INT_MAX;
    EXPECT_NE(heap_alloc(2 << 20), nullptr);
    EXPECT_EQ(heap_alloc(64 << 20), nullptr);
    EXPECT_EQ(errno, ENOMEM);
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

TEST(HeapSourceTest, PagesThatCannotBeDiscardedAreUsedAgain) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    UseFakeKernel();
    fake.refuse_discard = true;
    for (uint64_t i = 0; i < 5; ++i) {
      RunHeapModel(seed + i, 20);
      heap_trim(0);
      EXPECT_STREQ(heap_check(), nullptr);
    }
    EXPECT_GT(fake.refusals, 0);
  });
}

TEST(HeapSourceTest, TrimGivesEmptyReservationsBack) {
  RunInChild([] {
    UseFakeKernel();
    setenv("HEAP_SOURCE", "mmap", 1);
    void *kept = heap_alloc(100000);
    const size_t first_bytes = fake.mapped_bytes;
    for (int round = 0; round < 3; ++round) {
      std::vector<void *> blocks;
      while (fake.mapped_bytes < size_t{400} << 20) {
        blocks.push_back(heap_alloc(1 << 20));
        memset(blocks.back(), 1, 1 << 20);
      }
      fake.refuse_unmap = round == 1;
      for (void *ptr : blocks) {
        heap_free(ptr);
      }
      heap_trim(0);
      fake.refuse_unmap = false;
      EXPECT_STREQ(heap_check(), nullptr);
      EXPECT_EQ(fake.mapped_bytes - Stats().metadata_bytes > first_bytes,
                round == 1);
      EXPECT_EQ(Stats().idle_bytes, 0u);
      heap_trim(0);
      EXPECT_LE(fake.mapped_bytes - Stats().metadata_bytes, first_bytes);
      void *zero = heap_calloc(1, 70 << 20);
      EXPECT_TRUE(IsZero(zero, 70 << 20));
      heap_free(zero);
    }
    heap_free(kept);
    heap_trim(0);
    EXPECT_EQ(fake.mapped_bytes, Stats().metadata_bytes);
    RunHeapModel(1, 20);
  });
}

TEST(HeapSourceTest, FreePreservesErrnoWhenAPurgeIsRefused) {
  RunInChild([] {
    UseFakeKernel();
    std::vector<void *> blocks;
    for (int i = 0; i < 50000; ++i) {
      blocks.push_back(heap_alloc(300));
    }
    void *wall = heap_alloc(100000);  // Or the break would be lowered.
    fake.refuse_discard = true;
    for (void *ptr : blocks) {
      errno = EDOM;
      heap_free(ptr);
      ASSERT_EQ(errno, EDOM);
    }
    EXPECT_GT(fake.refusals, 0);
    heap_free(wall);
  });
}

TEST(HeapSourceTest, SourceMmapNeverMovesTheBreak) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    UseFakeKernel();
    setenv("HEAP_SOURCE", "mmap", 1);
    const void *old_break = sbrk(0);
    for (uint64_t i = 0; i < 5; ++i) {
      RunHeapModel(seed + i, 20);
    }
    EXPECT_EQ(fake.break_moves, 0);
    EXPECT_EQ(sbrk(0), old_break);
  });
}

TEST(HeapSourceTest, EmptyReservationsGoBackByThemselves) {
  RunInChild([] {
    UseFakeKernel();
    setenv("HEAP_SOURCE", "mmap", 1);
    void *kept = heap_alloc(100000);
    const size_t first_bytes = fake.mapped_bytes - Stats().metadata_bytes;
    std::vector<void *> blocks;
    while (fake.mapped_bytes < size_t{400} << 20) {
      blocks.push_back(heap_alloc(1 << 20));
      memset(blocks.back(), 1, 1 << 20);
    }
    // The first blocks first, so that it is not the newest that empties first.
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
    EXPECT_LE(fake.mapped_bytes - Stats().metadata_bytes, first_bytes);
    EXPECT_STREQ(heap_check(), nullptr);
    RunHeapModel(1, 20);
    heap_free(kept);
  });
}

// Where the kernel's pages are larger than 4 KiB, it takes no less than a whole
// one (the fake says so).
TEST(HeapSourceTest, TrimTakesWholePagesOfTheKernel) {
  for (size_t page_bytes : {size_t{4096}, size_t{16384}, size_t{65536}}) {
    RunInChild([=] {
      UseFakeKernel();
      fake.page_bytes = page_bytes;
      std::vector<void *> blocks;
      for (size_t i = 0; i < 20000; ++i) {
        blocks.push_back(heap_alloc(300));
        Fill(blocks.back(), 300, i);
      }
      const auto is_kept = [](size_t i) {
        return i % 150 == 77;
      };
      for (size_t i = 0; i < blocks.size(); ++i) {
        if (!is_kept(i)) {
          heap_free(blocks[i]);
        }
      }
      // One block stays in 45 KB.
      heap_trim(0);
      EXPECT_EQ(fake.discarded_bytes > 2000000, page_bytes <= 16384);
      EXPECT_STREQ(heap_check(), nullptr);
      for (size_t i = 0; i < blocks.size(); ++i) {
        if (is_kept(i)) {
          EXPECT_TRUE(IsFilled(blocks[i], 300, 300, i));
        } else {
          blocks[i] = heap_calloc(1, 300);
          EXPECT_TRUE(IsZero(blocks[i], 300));
        }
      }
    });
  }
}

TEST(HeapSourceTest, MakingABlockSmallerNeverFails) {
  for (size_t old_bytes :
       {size_t{30000}, size_t{100000}, size_t{9} << 20, size_t{80} << 20}) {
    for (size_t new_bytes :
         {size_t{0}, size_t{1}, size_t{100}, size_t{9000}, size_t{29000}}) {
      RunInChild([=] {
        UseFakeKernel();
        void *ptr = heap_alloc(old_bytes);
        Fill(ptr, old_bytes, 1);
        fake.fail_from = fake.calls + 1;
        fake.fail_count = INT_MAX;
        // All that is left to the heap.
        for (size_t size = size_t{64} << 20; size >= 16; size /= 2) {
          while (heap_alloc(size) != nullptr) {
          }
        }
        ptr = heap_realloc(ptr, new_bytes);
        ASSERT_NE(ptr, nullptr);
        EXPECT_TRUE(IsFilled(ptr, new_bytes, old_bytes, 1));
        EXPECT_GE(heap_usable_size(ptr), new_bytes);
        EXPECT_STREQ(heap_check(), nullptr);
        EXPECT_LE(heap_usable_size(ptr), old_bytes + (64 << 10));
        // As free_sized() does; no false alarm.
        heap_free_sized_slow(ptr, 0, new_bytes, true);
        EXPECT_STREQ(heap_check(), nullptr);
      });
    }
  }
}

// A block that grows beyond the size from which blocks are mapped stays where
// it is if that is the only way.
TEST(HeapSourceTest, RunGrowsInPlaceWhereNoMappingIsToBeHad) {
  RunInChild([] {
    UseFakeKernel();
    void *ptr = heap_alloc(3 << 20);
    void *behind = heap_alloc(7 << 20);
    void *wall = heap_alloc(100000);
    Fill(ptr, 3 << 20, 1);
    heap_free(behind);
    fake.fail_from = fake.calls + 1;
    fake.fail_count = INT_MAX;
    while (Stats().largest_free_run_bytes > 7 << 20) {
      ASSERT_NE(heap_alloc(8 << 20), nullptr);
    }
    EXPECT_EQ(heap_realloc(ptr, 9 << 20), ptr);
    EXPECT_TRUE(IsFilled(ptr, 3 << 20, 3 << 20, 1));
    EXPECT_STREQ(heap_check(), nullptr);
    EXPECT_EQ(heap_realloc(ptr, 12 << 20), nullptr);
    EXPECT_EQ(errno, ENOMEM);
    EXPECT_TRUE(IsFilled(ptr, 3 << 20, 3 << 20, 1));
    heap_free(wall);
  });
}

// Strangers at the break.

StrangersMemory TakeFromBreak(size_t size_bytes) {
  void *ptr = sbrk(static_cast<intptr_t>(size_bytes));
  EXPECT_NE(ptr, reinterpret_cast<void *>(-1));
  Fill(ptr, size_bytes, size_bytes);
  return {static_cast<unsigned char *>(ptr), size_bytes};
}

// Memory of the program's own.

constexpr size_t kOwnBytes = 4 << 20;
alignas(4096) unsigned char own_memory[kOwnBytes];

bool IsOwn(const void *ptr) {
  const auto *bytes = static_cast<const unsigned char *>(ptr);
  return bytes >= own_memory && bytes < own_memory + kOwnBytes;
}

TEST(HeapSourceTest, BlocksComeFromTheProgramsMemory) {
  const uint64_t seed = heap_testing::Seed();
  for (bool is_zeroed : {false, true}) {
    RunInChild([=] {
      UseFakeKernel();
      memset(own_memory, is_zeroed ? 0 : 0xA5, kOwnBytes);
      // Of the parts of pages at its ends nothing is used.
      const size_t used =
          heap_add_memory(own_memory + 1, kOwnBytes - 2, is_zeroed);
      EXPECT_EQ(used % 65536, 0u);
      EXPECT_GE(used, kOwnBytes - 2 * 65536);
      EXPECT_LT(used, kOwnBytes);
      EXPECT_STREQ(heap_check(), nullptr);
      EXPECT_EQ(Stats().mapped_bytes, used);
      for (size_t size : {size_t{10}, size_t{20000}, size_t{200000}}) {
        void *ptr = heap_calloc(1, size);
        EXPECT_TRUE(IsOwn(ptr));
        EXPECT_TRUE(IsZero(ptr, size));
        heap_free(ptr);
      }
      fake.fail_from = fake.calls + 1;
      fake.fail_count = INT_MAX;
      std::vector<void *> blocks;
      while (void *ptr = heap_alloc(50000)) {
        EXPECT_TRUE(IsOwn(ptr));
        Fill(ptr, 50000, blocks.size());
        blocks.push_back(ptr);
      }
      EXPECT_GE(blocks.size() * 50000, used - used / 8);
      for (size_t i = 0; i < blocks.size(); ++i) {
        EXPECT_TRUE(IsFilled(blocks[i], 50000, 50000, i));
        heap_free(blocks[i]);
      }
      fake.fail_count = 0;
      const int calls = fake.calls;
      heap_trim(0);
      EXPECT_EQ(fake.calls, calls) << "it never goes back";
      EXPECT_EQ(Stats().idle_bytes, 0u);
      EXPECT_EQ(Stats().mapped_bytes, used);
      for (uint64_t i = 0; i < 5; ++i) {
        RunHeapModel(seed + i, 21);
      }
      EXPECT_STREQ(heap_check(), nullptr);
      EXPECT_EQ(own_memory[0], is_zeroed ? 0 : 0xA5);
      EXPECT_EQ(own_memory[kOwnBytes - 1], is_zeroed ? 0 : 0xA5);
    });
  }
}

TEST(HeapSourceTest, MemoryThatCannotBeUsedIsRefused) {
  RunInChild([] {
    const auto refusal = [](void *memory, size_t size_bytes) {
      errno = 0;
      EXPECT_EQ(heap_add_memory(memory, size_bytes, false), 0u);
      EXPECT_STREQ(heap_check(), nullptr);
      return errno;
    };
    EXPECT_EQ(refusal(nullptr, 0), EINVAL);
    EXPECT_EQ(refusal(own_memory, 0), EINVAL);
    EXPECT_EQ(refusal(own_memory + 4096, 65535), EINVAL);
    EXPECT_EQ(refusal(own_memory, SIZE_MAX), EINVAL);
    EXPECT_EQ(refusal(reinterpret_cast<void *>(UINTPTR_MAX - 10), 5), EINVAL);
    void *block = heap_alloc(200000);
    EXPECT_EQ(refusal(block, 200000), EINVAL);
    void *mapped = heap_alloc(40 << 20);
    EXPECT_EQ(refusal(mapped, 40 << 20), EINVAL);
    EXPECT_EQ(refusal(static_cast<char *>(mapped) + (8 << 20), 1 << 20),
              EINVAL);
    heap_free(mapped);
    // The break's arena will go on behind what others have of the break.
    const StrangersMemory memory = TakeFromBreak(1 << 20);
    EXPECT_EQ(refusal(memory.ptr, memory.size_bytes), EINVAL);

    ASSERT_GT(heap_add_memory(own_memory, 1 << 20, false), 0u);
    EXPECT_EQ(refusal(own_memory, 1 << 20), EINVAL);
    EXPECT_EQ(refusal(own_memory + (1 << 19), 1 << 20), EINVAL);
    EXPECT_EQ(refusal(own_memory, kOwnBytes), EINVAL);

    // Reservations are found, too, where nothing is used yet.
    UseFakeKernel();
    fake.refuse_break = true;
    auto *reserved = static_cast<char *>(heap_alloc(5 << 20));
    ASSERT_FALSE(IsOwn(reserved));
    EXPECT_EQ(refusal(reserved + (8 << 20), 1 << 20), EINVAL);
    fake.fail_from = fake.calls + 1;
    fake.fail_count = INT_MAX;
    EXPECT_EQ(refusal(own_memory + (2 << 20), 1 << 20), ENOMEM);
    fake.fail_count = 0;

    size_t added = 0;
    for (size_t i = 0; i < 64; ++i) {
      unsigned char *page = own_memory + (1 << 20) + (i + 1) * 131072;
      if (page + 131072 > own_memory + kOwnBytes) {
        break;
      }
      added += heap_add_memory(page, 131071, false) > 0;
    }
    EXPECT_EQ(added, 15u) << "16 in all";
    EXPECT_EQ(refusal(own_memory + kOwnBytes - 200000, 200000), ENOMEM);
    // They are no reason for large reservations.
    EXPECT_LE(fake.mapped_bytes, size_t{80} << 20);
    RunHeapModel(1, 20);
  });
}

TEST(HeapSourceTest, BreakRaisedByOthersIsSteppedOver) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    UseFakeKernel();
    Random random(seed);
    std::vector<StrangersMemory> strangers;
    for (uint64_t i = 0; i < 12; ++i) {
      strangers.push_back(TakeFromBreak(1 + random.Below(200000)));
      RunHeapModel(seed + i, 21);
    }
    EXPECT_GT(fake.break_moves, 5);
    for (const StrangersMemory &memory : strangers) {
      EXPECT_TRUE(IsFilled(memory.ptr, memory.size_bytes, memory.size_bytes,
                           memory.size_bytes));
    }
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

TEST(HeapSourceTest, OthersMemoryInABreakIsNoBlock) {
  RunInChild([] {
    void *first = heap_alloc(100000);
    const StrangersMemory memory = TakeFromBreak(150001);
    void *second = heap_alloc(1 << 20);
    ASSERT_GT(static_cast<void *>(second), static_cast<void *>(memory.ptr));
    const heap_stats_t stats = Stats();
    const size_t range = static_cast<size_t>(static_cast<char *>(sbrk(0)) -
                                             static_cast<char *>(first));
    EXPECT_LE(stats.mapped_bytes, range - 150001) << "a hole is not ours";
    setenv("HEAP_ON_ERROR", "report", 1);
    heap_testing::CapturedStderr captured;
    heap_free(memory.ptr);
    heap_free(memory.ptr + 65536);
    const std::string text = captured.Take();
    EXPECT_NE(text.find("no block of this heap"), std::string::npos) << text;
    EXPECT_STREQ(heap_check(), nullptr);
    heap_free(second);
    heap_free(first);
    EXPECT_TRUE(IsFilled(memory.ptr, memory.size_bytes, memory.size_bytes,
                         memory.size_bytes));
  });
}

// Somebody moves the break just when the heap has looked where it is.
TEST(HeapSourceTest, BreakRaisedBetweenTwoCallsIsNotLost) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    UseFakeKernel();
    std::vector<StrangersMemory> strangers;
    Random random(seed);
    fake.before_break_rise = [&] {
      if (random.OneIn(2)) {
        strangers.push_back(TakeFromBreak(1 + random.Below(100000)));
      }
    };
    for (uint64_t i = 0; i < 12; ++i) {
      RunHeapModel(seed + i, 21);
    }
    EXPECT_GT(strangers.size(), 3u);
    for (const StrangersMemory &memory : strangers) {
      EXPECT_TRUE(IsFilled(memory.ptr, memory.size_bytes, memory.size_bytes,
                           memory.size_bytes));
    }
  });
}

TEST(HeapSourceTest, BreakLoweredByOthersIsNeverMovedAgain) {
  RunInChild([] {
    UseFakeKernel();
    // The heap has 256 KiB and nothing live at their end.
    void *low = heap_alloc(50000);
    memset(low, 1, 50000);
    ASSERT_NE(sbrk(-65536), reinterpret_cast<void *>(-1));
    const void *old_break = sbrk(0);
    const int old_moves = fake.break_moves;
    std::vector<void *> blocks;
    for (int i = 0; i < 50; ++i) {
      blocks.push_back(heap_alloc(1 << 20));
      ASSERT_NE(blocks.back(), nullptr);
      Fill(blocks.back(), 1 << 20, 1);
    }
    EXPECT_STREQ(heap_check(), nullptr);
    for (void *ptr : blocks) {
      EXPECT_TRUE(IsFilled(ptr, 1 << 20, 1 << 20, 1));
      heap_free(ptr);
    }
    heap_free(low);
    heap_trim(0);
    EXPECT_STREQ(heap_check(), nullptr);
    EXPECT_EQ(fake.break_moves, old_moves);
    EXPECT_EQ(sbrk(0), old_break);
  });
}

TEST(HeapSourceTest, BreakIsNotLoweredUnderOthersMemory) {
  RunInChild([] {
    void *ptr = heap_alloc(3 << 20);
    memset(ptr, 1, 3 << 20);
    const StrangersMemory memory = TakeFromBreak(1000);
    const void *old_break = sbrk(0);
    heap_free(ptr);
    heap_trim(0);
    EXPECT_EQ(sbrk(0), old_break);
    EXPECT_TRUE(IsFilled(memory.ptr, memory.size_bytes, memory.size_bytes,
                         memory.size_bytes));
    RunHeapModel(1, 20);
  });
}

}  // namespace
