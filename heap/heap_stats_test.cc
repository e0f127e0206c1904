// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the heap has from the kernel and where it puts blocks. Each test has a
// child process of its own, since it needs a heap that nobody used before.

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <functional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "heap/heap.h"
#include "heap/heap_testing.h"
#include "heap/mapped.h"
#include "heap/page_table.h"
#include "heap/span.h"

namespace {

using heap_testing::Fill;
using heap_testing::IsFilled;
using heap_testing::IsZero;

// The kernel counts some pages late.
constexpr size_t kResidentSlackBytes = 1 << 20;

size_t ResidentBytes() {
  size_t total_pages = 0;
  size_t resident_pages = 0;
  std::ifstream("/proc/self/statm") >> total_pages >> resident_pages;
  return resident_pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
}

heap_stats_t Stats() {
  heap_stats_t stats;
  heap_stats_get(&stats);
  return stats;
}

class HeapStatsTest : public testing::Test {
 protected:
  // Runs `body` with a new heap, which must be sound at its end.
  static void RunInChild(const std::function<void()> &body) {
    heap_testing::RunInChild([&] {
      body();
      EXPECT_STREQ(heap_check(), nullptr);
    });
  }
};

TEST_F(HeapStatsTest, StatsOfAnUnusedHeapAreZero) {
  RunInChild([] {
    heap_stats_t stats;
    memset(&stats, 0xFF, sizeof(stats));
    heap_stats_get(&stats);
    EXPECT_EQ(stats.mapped_bytes, 0u);
    EXPECT_EQ(stats.free_run_bytes, 0u);
    EXPECT_EQ(stats.metadata_bytes, 0u);
    EXPECT_EQ(stats.huge_bytes, 0u);
    EXPECT_EQ(stats.num_spans, 0u);
    EXPECT_EQ(stats.num_kernel_calls, 0u);
  });
}

TEST_F(HeapStatsTest, StatsFollowEachKindOfBlock) {
  RunInChild([] {
    heap_stats_t stats;
    void *small = heap_alloc(100);
    heap_stats_get(&stats);
    EXPECT_EQ(stats.num_spans, 1u);
    EXPECT_EQ(stats.mapped_bytes - stats.free_run_bytes,
              size_t{HEAP_PAGE_BYTES});
    EXPECT_GT(stats.metadata_bytes, 0u);
    EXPECT_GT(stats.num_kernel_calls, 0u);

    void *medium = heap_alloc(100 << 10);
    heap_stats_get(&stats);
    EXPECT_EQ(stats.mapped_bytes - stats.free_run_bytes,
              size_t{HEAP_PAGE_BYTES} + (100 << 10));
    EXPECT_EQ(stats.huge_bytes, 0u);

    void *mapped = heap_alloc(40 << 20);
    heap_stats_get(&stats);
    EXPECT_EQ(stats.huge_bytes, size_t{40} << 20);
    EXPECT_EQ(stats.mapped_bytes - stats.free_run_bytes,
              size_t{HEAP_PAGE_BYTES} + (100 << 10) + (40 << 20));
    mapped = heap_realloc(mapped, 64 << 20);
    heap_stats_get(&stats);
    EXPECT_EQ(stats.huge_bytes, size_t{64} << 20);

    heap_free(mapped);
    heap_free(medium);
    heap_free(small);
    heap_stats_get(&stats);
    EXPECT_EQ(stats.huge_bytes, 0u);
    EXPECT_LE(stats.mapped_bytes - stats.free_run_bytes,
              size_t{HEAP_PAGE_BYTES});
  });
}

TEST_F(HeapStatsTest, EmptySpansGoBack) {
  RunInChild([] {
    std::vector<void *> blocks;
    for (int i = 0; i < 100000; ++i) {
      blocks.push_back(heap_alloc(i % 3 == 0 ? 100 : 300));
    }
    heap_stats_t stats;
    heap_stats_get(&stats);
    EXPECT_GT(stats.num_spans, 300u);
    for (void *ptr : blocks) {
      heap_free(ptr);
    }
    heap_stats_get(&stats);
    // What the bins hold back, and a current span of each class.
    EXPECT_LE(stats.num_spans, 6u);
    EXPECT_EQ(stats.mapped_bytes - stats.free_run_bytes,
              stats.num_spans * HEAP_PAGE_BYTES);
  });
}

// Allocates until the heap has got more memory at once than it needed, and
// returns the last block.
void *AllocUntilMuchIsFree() {
  heap_stats_t stats;
  void *last;
  do {
    last = heap_alloc(1 << 20);
    memset(last, 1, 1 << 20);
    heap_stats_get(&stats);
  } while (stats.free_run_bytes < 4 << 20);
  return last;
}

TEST_F(HeapStatsTest, TrimGivesAllIdleMemoryBack) {
  RunInChild([] {
    std::vector<void *> blocks;
    for (int i = 0; i < 10000; ++i) {
      blocks.push_back(heap_alloc(1000));
      memset(blocks.back(), 1, 1000);
    }
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (i % 1000 != 0) {
        heap_free(blocks[i]);
      }
    }
    heap_stats_t before;
    heap_stats_get(&before);
    const size_t released_bytes = heap_trim(0);
    heap_stats_t after;
    heap_stats_get(&after);
    // And what was never used above them, as the break goes down, and spans in
    // which blocks were only cached.
    EXPECT_GE(released_bytes, before.idle_bytes);
    EXPECT_LE(released_bytes, before.idle_bytes + before.span_free_bytes +
                                  before.mapped_bytes - after.mapped_bytes);
    EXPECT_EQ(after.idle_bytes, 0u);
    EXPECT_EQ(heap_trim(0), 0u);
  });
}

// Cached blocks keep no memory from a program that asks for all of it.
TEST_F(HeapStatsTest, TrimEmptiesTheCallersBins) {
  RunInChild([] {
    void *kept = heap_alloc(100);
    for (size_t size = 1; size <= 32768; size += 40) {
      heap_free(heap_alloc(size));
    }
    heap_stats_t stats;
    heap_stats_get(&stats);
    EXPECT_GT(stats.num_spans, 50u);
    heap_trim(0);
    EXPECT_STREQ(heap_check(), nullptr);
    heap_stats_get(&stats);
    EXPECT_EQ(stats.num_spans, 1u);
    EXPECT_EQ(stats.dirty_bytes, 65536u);
    EXPECT_EQ(stats.live_bytes, heap_usable_size(kept));
    heap_free(kept);
  });
}

// Pages of 4 KiB that only free blocks lie in go, and what comes in their place
// is known to be zero where a block lies in it with all its bytes.
TEST_F(HeapStatsTest, TrimGivesBackPagesAmongSmallBlocks) {
  for (size_t size : {size_t{16}, size_t{48}, size_t{1000}, size_t{2048},
                      size_t{2304}, size_t{9000}, size_t{32768}}) {
    RunInChild([=] {
      constexpr size_t kTotalBytes = 8 << 20;
      std::vector<unsigned char *> blocks;
      for (size_t i = 0; i < kTotalBytes / size; ++i) {
        blocks.push_back(static_cast<unsigned char *>(heap_alloc(size)));
        Fill(blocks.back(), size, i);
      }
      // One block in about 64 KiB stays, at each place of a span: with it, two
      // pages, or what it lies in.
      const size_t step = 65536 / size + 1;
      const auto is_kept = [=](size_t i) {
        return i % step == step / 2;
      };
      for (size_t i = 0; i < blocks.size(); ++i) {
        if (!is_kept(i)) {
          heap_free(blocks[i]);
        }
      }
      const size_t resident_before = ResidentBytes();
      const size_t released = heap_trim(0);
      EXPECT_STREQ(heap_check(), nullptr);
      const size_t left_bytes = blocks.size() / step * (size + 2 * 4096);
      if (left_bytes < kTotalBytes / 2) {
        EXPECT_GE(released, kTotalBytes - left_bytes);
        EXPECT_LE(ResidentBytes(), resident_before + left_bytes +
                                       kResidentSlackBytes - kTotalBytes);
      }
      EXPECT_EQ(heap_trim(0), 0u) << "of " << size;
      for (size_t i = 0; i < blocks.size(); ++i) {
        if (is_kept(i)) {
          EXPECT_TRUE(IsFilled(blocks[i], size, size, i));
        } else {
          blocks[i] = static_cast<unsigned char *>(heap_calloc(1, size));
          EXPECT_TRUE(IsZero(blocks[i], size));
          Fill(blocks[i], size, i);
        }
      }
      for (size_t i = 0; i < blocks.size(); ++i) {
        EXPECT_TRUE(IsFilled(blocks[i], size, size, i));
        heap_free(blocks[i]);
      }
      EXPECT_STREQ(heap_check(), nullptr);
    });
  }
}

// Exited threads' spans are no different.
TEST_F(HeapStatsTest, TrimGivesBackPagesThatExitedThreadsLeft) {
  RunInChild([] {
    std::vector<void *> blocks;
    std::thread([&] {
      for (int i = 0; i < 100000; ++i) {
        blocks.push_back(heap_alloc(200));
        memset(blocks.back(), 1, 200);
      }
    }).join();
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (i % 300 != 150) {
        heap_free(blocks[i]);
      }
    }
    EXPECT_GE(heap_trim(0), 15u << 20);
  });
}

// What trim frees of spans on its way is counted, and kept where it is to.
TEST_F(HeapStatsTest, TrimCountsAndKeepsWhatWasCached) {
  for (size_t keep_bytes : {size_t{0}, size_t{256} << 20}) {
    RunInChild([=] {
      for (size_t size = 16; size <= 32768; size += 16) {
        heap_free(heap_alloc(size));
      }
      const heap_stats_t before = Stats();
      const size_t released = heap_trim(keep_bytes);
      const heap_stats_t after = Stats();
      if (keep_bytes == 0) {
        EXPECT_EQ(released, before.mapped_bytes);
        EXPECT_EQ(after.dirty_bytes, 0u);
      } else {
        EXPECT_EQ(released, 0u);
        EXPECT_EQ(after.mapped_bytes, before.mapped_bytes);
        EXPECT_EQ(after.dirty_bytes, before.dirty_bytes);
      }
    });
  }
}

// A block that shrinks makes memory idle as one that is freed.
TEST_F(HeapStatsTest, ShrinkingGivesMemoryBackByItself) {
  RunInChild([] {
    std::vector<void *> blocks;
    for (int i = 0; i < 10; ++i) {
      blocks.push_back(heap_alloc(20 << 20));
      memset(blocks.back(), 1, 20 << 20);
    }
    for (void *&ptr : blocks) {
      ptr = heap_realloc(ptr, 100000);
    }
    EXPECT_LE(Stats().idle_bytes, 1u << 20);
    EXPECT_LE(Stats().dirty_bytes, 4u << 20);
  });
}

// What other threads freed of its spans, of any class, a thread gives back
// before it takes new memory.
TEST_F(HeapStatsTest, SpansThatOthersEmptiedGoBack) {
  RunInChild([] {
    constexpr size_t kBytes = 32 << 20;
    std::vector<void *> blocks;
    for (size_t i = 0; i < kBytes / 112; ++i) {
      blocks.push_back(heap_alloc(112));
    }
    std::thread([&] {
      for (size_t i = 0; i < blocks.size(); ++i) {
        if (i % 20 != 7) {
          heap_free(blocks[i]);
        }
      }
    }).join();
    // The owner's frees find that its spans are empty now.
    for (size_t i = 7; i < blocks.size() / 2; i += 20) {
      heap_free(blocks[i]);
    }
    EXPECT_LE(Stats().span_free_bytes, kBytes * 6 / 10);
    std::thread([&] {
      for (size_t i = 7; i < blocks.size(); i += 20) {
        if (i >= blocks.size() / 2) {
          heap_free(blocks[i]);
        }
      }
    }).join();
    // Those that others emptied are found when memory is needed.
    for (size_t i = 0; i < kBytes / 2 / 304; ++i) {
      blocks.push_back(heap_alloc(304));
    }
    EXPECT_LE(Stats().span_free_bytes, kBytes / 20);
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

// The span that a thread takes its blocks from goes like any other.
TEST_F(HeapStatsTest, CurrentSpanThatEmptiesGoesBack) {
  RunInChild([] {
    std::vector<void *> first;
    std::vector<void *> second;
    for (int i = 0; i < 1024; ++i) {
      first.push_back(heap_alloc(64));
    }
    // Whole groups, of which the bin holds nothing back.
    for (int i = 0; i < 2 * HEAP_GROUP_BLOCKS; ++i) {
      second.push_back(heap_alloc(64));
    }
    ASSERT_EQ(Stats().num_spans, 2u);
    for (size_t i = 0; i < 200; ++i) {
      heap_free(first[i]);  // They fill the bin's stack.
    }
    for (void *ptr : second) {
      heap_free(ptr);
    }
    EXPECT_EQ(Stats().num_spans, 1u);
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

TEST_F(HeapStatsTest, TrimLeavesWhatItIsToldTo) {
  for (size_t keep_bytes :
       {size_t{0}, size_t{1}, size_t{4} << 20, size_t{1} << 40, SIZE_MAX / 2,
        SIZE_MAX - (3 << 20), SIZE_MAX - (1 << 20), SIZE_MAX - 1, SIZE_MAX}) {
    RunInChild([=] {
      const void *last = AllocUntilMuchIsFree();
      heap_stats_t before;
      heap_stats_get(&before);
      const size_t released_bytes = heap_trim(keep_bytes);
      heap_stats_t after;
      heap_stats_get(&after);
      EXPECT_EQ(after.mapped_bytes, before.mapped_bytes - released_bytes);
      EXPECT_GE(after.free_run_bytes,
                std::min(keep_bytes, before.free_run_bytes))
          << "keep " << keep_bytes;
      EXPECT_EQ(static_cast<const char *>(last)[(1 << 20) - 1], 1);
      EXPECT_NE(heap_alloc(8 << 20), nullptr);
    });
  }
}

// Memory of which most is free goes back without being asked for.
TEST_F(HeapStatsTest, FreedMemoryGoesBackByItself) {
  RunInChild([] {
    std::vector<void *> blocks;
    for (int i = 0; i < 100000; ++i) {
      blocks.push_back(heap_alloc(500));
      memset(blocks.back(), 1, 500);
    }
    // One block in a hundred pages stays, in the middle of the break.
    for (size_t i = 0; i < blocks.size(); ++i) {
      if (i % 10000 != 0) {
        heap_free(blocks[i]);
      }
    }
    heap_stats_t stats;
    heap_stats_get(&stats);
    EXPECT_LT(stats.idle_bytes, stats.mapped_bytes / 16);
  });
}

TEST_F(HeapStatsTest, FreeRunsAndRefillsAreCounted) {
  RunInChild([] {
    void *blocks[5];
    for (void *&ptr : blocks) {
      ptr = heap_alloc(100 << 10);
    }
    heap_free(blocks[1]);
    heap_free(blocks[3]);
    const heap_stats_t scattered = Stats();
    EXPECT_GE(scattered.free_run_bytes,
              scattered.largest_free_run_bytes + (200 << 10));
    heap_free(blocks[4]);  // Joins the two behind.
    EXPECT_GE(Stats().largest_free_run_bytes,
              scattered.largest_free_run_bytes + (200 << 10));

    const heap_stats_t before = Stats();
    const size_t refills = before.num_refills;
    std::vector<void *> small;
    for (int i = 0; i < 1000; ++i) {
      small.push_back(heap_alloc(50));
    }
    // 64 blocks each.
    EXPECT_EQ(Stats().num_refills, refills + (1000 + 63) / 64);
    EXPECT_EQ(Stats().sampled_request_bytes,
              before.sampled_request_bytes + (1000 + 63) / 64 * 50);
    EXPECT_EQ(Stats().sampled_block_bytes,
              before.sampled_block_bytes + (1000 + 63) / 64 * 64);
    heap_free(small[0]);
    heap_free(heap_alloc(64));
    EXPECT_EQ(Stats().num_refills, refills + (1000 + 63) / 64);
  });
}

// A run of that size grows in place while there is room, otherwise into a
// mapping, which the kernel moves.
TEST_F(HeapStatsTest, GrowingBlockIsMappedSoonerThanANewOne) {
  RunInChild([] {
    void *ptr = heap_alloc(HEAP_MAPPED_MIN_BYTES - 1);
    EXPECT_EQ(Stats().huge_bytes, 0u);
    heap_free(ptr);
    ptr = heap_alloc(HEAP_MAPPED_MIN_BYTES);
    EXPECT_EQ(Stats().huge_bytes, size_t{HEAP_MAPPED_MIN_BYTES});
    heap_free(ptr);
    ptr = heap_alloc(7 << 20);
    EXPECT_EQ(heap_realloc(ptr, 6 << 20), ptr);
    EXPECT_EQ(Stats().huge_bytes, 0u);
    // In place, where there is room; and what was a small run never is one of
    // 4 MiB.
    EXPECT_EQ(heap_realloc(ptr, 7 << 20), ptr);
    EXPECT_EQ(Stats().huge_bytes, 0u);
    void *wall = heap_alloc(100 << 10);
    ptr = heap_realloc(ptr, 9 << 20);
    EXPECT_EQ(Stats().huge_bytes, size_t{9} << 20);
    heap_free(wall);
    ptr = heap_realloc(ptr, HEAP_MAPPED_GROWN_BYTES / 2);
    EXPECT_EQ(Stats().huge_bytes, size_t{HEAP_MAPPED_GROWN_BYTES} / 2);
    ptr = heap_realloc(ptr, HEAP_MAPPED_GROWN_BYTES / 2 - 1);
    EXPECT_EQ(Stats().huge_bytes, 0u);
    ptr = heap_realloc(ptr, HEAP_MAPPED_GROWN_BYTES - HEAP_PAGE_BYTES);
    EXPECT_EQ(Stats().huge_bytes, 0u);
    ptr = heap_realloc(ptr, HEAP_MAPPED_GROWN_BYTES);
    EXPECT_EQ(Stats().huge_bytes, size_t{HEAP_MAPPED_GROWN_BYTES});
    heap_free(ptr);
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

TEST_F(HeapStatsTest, MediumBlockGrowsIntoFreeMemoryBehindIt) {
  RunInChild([] {
    void *ptr = heap_alloc(100 << 10);
    void *behind = heap_alloc(100 << 10);
    // As numbers: the compiler may take two blocks' addresses for unrelated.
    ASSERT_EQ(reinterpret_cast<uintptr_t>(behind),
              reinterpret_cast<uintptr_t>(ptr) + (100 << 10));
    void *wall = heap_alloc(100 << 10);
    heap_free(behind);
    EXPECT_EQ(heap_realloc(ptr, 200 << 10), ptr);
    EXPECT_NE(ptr = heap_realloc(ptr, 201 << 10), nullptr);
    heap_free(ptr);
    heap_free(wall);
  });
}

}  // namespace
