// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the heap keeps of a program that frees and asks for nothing: no span
// for what bins hold back, no tags of memory that is free. And what it keeps
// of one that frees less. Each test has a child process of its own.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "gtest/gtest.h"
#include "heap/arena_internal.h"
#include "heap/heap.h"
#include "heap/heap_testing.h"
#include "heap/page_table.h"
#include "heap/size_class.h"

namespace {

using Blocks = std::vector<void *>;

constexpr size_t kSizes[] = {48, 64, 240, 640, 1024, 2048, 8192, 30000};
// Less than half as many as tell that the program is shrinking.
constexpr size_t kFewSpans = 30;
// Divides a page of the kernel, and a span.
constexpr size_t kBlockBytes = 1024;

heap_stats_t Stats() {
  heap_stats_t stats;
  heap_stats_get(&stats);
  return stats;
}

size_t BlocksInSpan(size_t size_bytes) {
  return heap_class_info[heap_class_of_size(size_bytes)].block_count;
}

// Returns blocks of all of kSizes in turn, until each has filled so many spans.
Blocks FillSpans(size_t spans_each) {
  Blocks blocks;
  size_t most = 0;
  for (size_t size : kSizes) {
    most = std::max(most, BlocksInSpan(size));
  }
  for (size_t i = 0; i < most; ++i) {
    for (size_t size : kSizes) {
      // As evenly as the spans of the smallest blocks fill.
      const size_t count = BlocksInSpan(size) * spans_each;
      for (size_t j = count * i / most; j < count * (i + 1) / most; ++j) {
        blocks.push_back(heap_alloc(size));
      }
    }
  }
  return blocks;
}

Blocks Allocate(size_t size_bytes, size_t count) {
  Blocks blocks(count);
  for (void *&ptr : blocks) {
    ptr = heap_alloc(size_bytes);
  }
  return blocks;
}

void Free(const Blocks &blocks) {
  for (void *ptr : blocks) {
    heap_free(ptr);
  }
}

// Returns how many of some allocations found nothing cached, nor a group.
size_t RefillsOf(size_t size_bytes, size_t count) {
  const size_t before = Stats().num_refills;
  Free(Allocate(size_bytes, count));
  return Stats().num_refills - before;
}

class HeapShrinkTest : public testing::Test {
 protected:
  // Runs `body` with a new heap, which must be sound at its end.
  static void RunInChild(const std::function<void()> &body) {
    heap_testing::RunInChild([&] {
      body();
      EXPECT_STREQ(heap_check(), nullptr);
    });
  }
};

TEST_F(HeapShrinkTest, NothingIsHeldBackOfBlocksFreedOldestFirst) {
  RunInChild([] {
    const Blocks blocks = FillSpans(12);
    Free(blocks);
    EXPECT_EQ(Stats().num_spans, 0u);
  });
}

TEST_F(HeapShrinkTest, NothingIsHeldBackOfBlocksFreedYoungestFirst) {
  RunInChild([] {
    Blocks blocks = FillSpans(12);
    std::reverse(blocks.begin(), blocks.end());
    Free(blocks);
    EXPECT_EQ(Stats().num_spans, 0u);
  });
}

// Each class has a span that blocks are being taken from.
TEST_F(HeapShrinkTest, NothingIsHeldBackOfGroupsInUse) {
  RunInChild([] {
    Blocks blocks = FillSpans(12);
    for (size_t size : kSizes) {
      blocks.push_back(heap_alloc(size));
    }
    Free(blocks);
    EXPECT_EQ(Stats().num_spans, 0u);
  });
}

TEST_F(HeapShrinkTest, SpansWithALiveBlockStay) {
  RunInChild([] {
    Blocks blocks = FillSpans(12);
    void *first = blocks.front();
    void *last = blocks.back();
    Free(Blocks(blocks.begin() + 1, blocks.end() - 1));
    EXPECT_EQ(Stats().num_spans, 2u);
    EXPECT_EQ(Stats().num_live, 2u);
    EXPECT_STREQ(heap_check(), nullptr);
    Free({first, last});
    EXPECT_EQ(Stats().num_spans, 0u);
  });
}

TEST_F(HeapShrinkTest, BlocksAreCachedAgainOnceSomeAreWanted) {
  RunInChild([] {
    Free(FillSpans(12));
    for (size_t size : kSizes) {
      void *ptr = heap_alloc(size);
      const size_t refills = Stats().num_refills;
      heap_free(ptr);
      EXPECT_EQ(heap_alloc(size), ptr) << size;
      EXPECT_EQ(Stats().num_refills, refills) << size;
      heap_free(ptr);
    }
  });
}

TEST_F(HeapShrinkTest, ManyTimesUpAndDownIsSound) {
  RunInChild([] {
    for (int i = 0; i < 5; ++i) {
      const Blocks blocks = FillSpans(12);
      EXPECT_EQ(Stats().num_live, blocks.size());
      Free(blocks);
      EXPECT_EQ(Stats().num_spans, 0u);
      EXPECT_STREQ(heap_check(), nullptr);
    }
  });
}

TEST_F(HeapShrinkTest, FewSpansFreedLeaveTheirLastBlocksCached) {
  RunInChild([] {
    Free(Allocate(1024, kFewSpans * BlocksInSpan(1024)));
    EXPECT_GT(Stats().num_spans, 0u);
    EXPECT_EQ(RefillsOf(1024, 32), 0u);
  });
}

TEST_F(HeapShrinkTest, SpansFreedBeforeBlocksWereWantedDoNotCount) {
  RunInChild([] {
    for (int i = 0; i < 5; ++i) {
      Free(Allocate(1024, kFewSpans * BlocksInSpan(1024)));
      EXPECT_EQ(RefillsOf(1024, 32), 0u);
    }
  });
}

// Returns how much of a table of the heap's is in memory.
size_t ResidentBytes(const void *table, size_t size_bytes) {
  const size_t page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages((size_bytes + page_bytes - 1) / page_bytes);
  EXPECT_EQ(mincore(const_cast<void *>(table), size_bytes, pages.data()), 0);
  return page_bytes * static_cast<size_t>(std::count_if(
                          pages.begin(), pages.end(),
                          [](unsigned char page) { return (page & 1) != 0; }));
}

// Of a span that has been partial while many others went, not all pages are
// live; no call comes that would tell that the others are not wanted.
TEST_F(HeapShrinkTest, PagesOfAPartialSpanGoBack) {
  RunInChild([] {
    const size_t in_span = BlocksInSpan(kBlockBytes);
    const size_t kept = in_span / 4;
    Blocks blocks = Allocate(kBlockBytes, in_span * 140);
    for (void *ptr : blocks) {
      memset(ptr, 1, kBlockBytes);
    }
    ASSERT_EQ(ResidentBytes(blocks[0], HEAP_PAGE_BYTES),
              size_t{HEAP_PAGE_BYTES});
    Free(Blocks(blocks.begin() + static_cast<ptrdiff_t>(kept), blocks.end()));
    EXPECT_LE(ResidentBytes(blocks[0], HEAP_PAGE_BYTES),
              size_t{HEAP_PAGE_BYTES} / 4);
    for (size_t i = 0; i < kept; ++i) {
      EXPECT_EQ(*static_cast<unsigned char *>(blocks[i]), 1);
    }
    Free(Blocks(blocks.begin(), blocks.begin() + static_cast<ptrdiff_t>(kept)));
  });
}

size_t ResidentTagBytes() {
  const heap_run_map_t &map = heap_arenas[HEAP_BREAK_ARENA].map;
  return ResidentBytes(map.tags, map.tag_capacity * sizeof(*map.tags));
}

// 96 MiB, whose tags are 384 KiB.
constexpr size_t kRunBytes = 48 << 10;
constexpr size_t kRunCount = 2048;
constexpr size_t kTagBytes =
    kRunBytes * kRunCount / HEAP_UNIT_BYTES * sizeof(uint32_t);

TEST_F(HeapShrinkTest, TagsOfALongFreeRunGoBack) {
  RunInChild([] {
    Blocks blocks = Allocate(kRunBytes, kRunCount);
    ASSERT_GE(ResidentTagBytes(), kTagBytes);
    void *last = blocks.back();
    blocks.pop_back();
    Free(blocks);
    EXPECT_LE(ResidentTagBytes(), kTagBytes / 4);
    EXPECT_STREQ(heap_check(), nullptr);
    // They are there again for what comes next.
    blocks = Allocate(kRunBytes, kRunCount);
    EXPECT_STREQ(heap_check(), nullptr);
    Free(blocks);
    EXPECT_LE(ResidentTagBytes(), kTagBytes / 4);
    heap_free(last);
  });
}

TEST_F(HeapShrinkTest, TagsBehindTheEndGoBack) {
  RunInChild([] {
    Blocks blocks = Allocate(kRunBytes, kRunCount);
    ASSERT_GE(ResidentTagBytes(), kTagBytes);
    std::reverse(blocks.begin(), blocks.end());
    Free(blocks);
    EXPECT_LE(ResidentTagBytes(), kTagBytes / 4);
    EXPECT_STREQ(heap_check(), nullptr);
    Free(Allocate(kRunBytes, kRunCount));
  });
}

}  // namespace
