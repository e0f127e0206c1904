// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Free blocks in pages that a thread has: they are found again, wherever they
// come from, before another page is taken; and what somebody has written over
// the words or heads of pages gives no block to two.

#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/block.h"
#include "shmipc/block_class.h"
#include "shmipc/block_testing.h"

namespace {

using shmipc_testing::BackendName;
using shmipc_testing::Backends;
using shmipc_testing::kPage;
using shmipc_testing::Problems;
using shmipc_testing::TestRegion;

constexpr size_t kBytes = 1024;

class BlockReuseTest : public shmipc_testing::HeapTest {
 protected:
  // Blocks of kBytes in a page.
  static size_t PerPage() {
    return shmipc_classes[shmipc_class_of(kBytes)].count;
  }
  std::vector<void *> Alloc(size_t count, size_t size = kBytes) {
    std::vector<void *> blocks;
    for (size_t i = 0; i < count; i++) {
      blocks.push_back(shmipc_block_alloc(region_, size));
      EXPECT_NE(blocks.back(), nullptr);
    }
    return blocks;
  }
  void Free(const std::vector<void *> &blocks) {
    for (void *block : blocks) {
      EXPECT_EQ(shmipc_block_free(region_, block), 0);
    }
  }
  size_t PagesUsed() {
    shmipc_heap_stats_t stats = Stats();
    return (stats.heap_bytes - stats.free_page_bytes) / kPage;
  }
  shmipc_place_t PlaceOf(const void *block) {
    shmipc_place_t place = {};
    EXPECT_EQ(shmipc_place_find(region_, block, &place), 0);
    return place;
  }
};

INSTANTIATE_TEST_SUITE_P(All, BlockReuseTest, testing::ValuesIn(Backends()),
                         BackendName);

// -- Found again.

TEST_P(BlockReuseTest, WhatOthersFreedIsUsedBeforeANewPage) {
  std::vector<void *> blocks = Alloc(4 * PerPage());
  ASSERT_EQ(PagesUsed(), 4u);
  // One of each page stays, so that none goes back.
  std::thread([&] {
    for (size_t i = 0; i < blocks.size(); i++) {
      if (i % PerPage() != 5) {
        EXPECT_EQ(shmipc_block_free(region_, blocks[i]), 0);
      }
    }
  }).join();
  Alloc(4 * (PerPage() - 1));
  EXPECT_EQ(PagesUsed(), 4u);
  EXPECT_EQ(Problems(region_), "");
}

TEST_P(BlockReuseTest, WhatADeadThreadHasNotUsedIsUsedBeforeANewPage) {
  std::thread([&] { Alloc(10); }).join();
  ASSERT_EQ(PagesUsed(), 1u);
  // Its page is ours by this; nobody has looked at its words.
  EXPECT_EQ(shmipc_heap_trim(region_), 0);
  Alloc(PerPage() - 10);
  EXPECT_EQ(PagesUsed(), 1u);
}

TEST_P(BlockReuseTest, APageGoesBackWhileTheNextOneIsBeingUsed) {
  std::vector<void *> first = Alloc(PerPage());
  std::vector<void *> second = Alloc(1);
  ASSERT_EQ(PagesUsed(), 2u);
  Free(first);
  EXPECT_EQ(shmipc_heap_trim(region_), 1);
  // The rest of the second, of which not all was known.
  Alloc(PerPage() - 1);
  EXPECT_EQ(PagesUsed(), 1u);
}

TEST_P(BlockReuseTest, AFreeWhoseProcessDiedBeforeTheNoteIsFound) {
  std::vector<void *> blocks = Alloc(64 * PerPage());
  ASSERT_EQ(shmipc_block_alloc(region_, kBytes), nullptr);
  // It has freed the block, and said so to nobody.
  shmipc_place_t place = PlaceOf(blocks[1000]);
  ASSERT_EQ(shmipc_note_of(region_, place.page)->freed, 0u);
  __atomic_store_n(place.word, SHMIPC_BLOCK_FREE, __ATOMIC_SEQ_CST);
  EXPECT_EQ(shmipc_block_alloc(region_, kBytes), blocks[1000]);
  EXPECT_EQ(shmipc_block_alloc(region_, kBytes), nullptr);
  Free(blocks);
  ExpectUnused();
}

// -- Seen by others.

TEST_P(BlockReuseTest, AWalkSeesWhatCameAfterItsProcessAttached) {
  if (GetParam() == SHMIPC_SYSV) {
    GTEST_SKIP() << "does not grow";
  }
  TestRegion grows(GetParam(), 4096, [](auto *o) {
    o->heap_bytes = kPage;
    o->heap_capacity_bytes = 40 * kPage;
  });
  shmipc_region_t *early = grows.Attach();
  for (int i = 0; i < 30; i++) {
    ASSERT_NE(shmipc_block_alloc(grows.region(), kPage), nullptr);
  }
  ASSERT_EQ(shmipc_pages_mapped(early), 1u);
  shmipc_heap_stats_t stats;
  ASSERT_EQ(shmipc_heap_stats_get(early, &stats), 0);
  EXPECT_EQ(stats.num_live, 30u);
  EXPECT_EQ(stats.live_bytes, 30 * kPage);
  shmipc_region_close(early);
}

// The visitor frees what it is shown, and the page becomes another kind's, with
// other bytes where the words were.
TEST_P(BlockReuseTest, AWalkDoesNotReadAnotherKindsBytesAsWords) {
  struct Visit {
    std::function<void()> once;
    size_t count;
  } visit = {};
  std::vector<void *> blocks = Alloc(PerPage());
  char *large = nullptr;
  visit.once = [&] {
    Free(blocks);
    ASSERT_EQ(shmipc_heap_trim(region_), 1);
    large = static_cast<char *>(shmipc_block_alloc(region_, kPage));
    ASSERT_EQ(large, blocks[0]);
    memset(large, 0x11, kPage);
  };
  EXPECT_EQ(shmipc_heap_walk(
                region_,
                [](void *context, const shmipc_block_info_t *) {
                  auto *one = static_cast<Visit *>(context);
                  if (one->count++ == 0) {
                    one->once();
                  }
                  return 0;
                },
                &visit),
            0);
  EXPECT_EQ(visit.count, 1u);
  Free({large});
  ExpectUnused();
}

// -- Written over.

// A block that a thread believes to be free, and whose word says that it is
// somebody's.
TEST_P(BlockReuseTest, ABlockWhoseWordSaysOtherwiseIsNotGivenOut) {
  for (bool aligned : {false, true}) {
    std::vector<void *> blocks = Alloc(2);
    Free(blocks);
    uint32_t *word = PlaceOf(blocks[1]).word;
    *word = SHMIPC_BLOCK_REGION;
    void *other = aligned ? shmipc_block_alloc_aligned(region_, 16, kBytes)
                          : shmipc_block_alloc(region_, kBytes);
    EXPECT_NE(other, nullptr);
    EXPECT_NE(other, blocks[1]);
    EXPECT_EQ(*word, SHMIPC_BLOCK_REGION);
    *word = SHMIPC_BLOCK_FREE;
    Free({other});
  }
  ExpectUnused();
}

TEST_P(BlockReuseTest, APageWhoseHeadSaysOtherwiseIsNotUsedOrGivenBack) {
  // One page of which blocks are known and used up, one that is empty.
  std::vector<void *> blocks = Alloc(SHMIPC_HINTS);
  std::vector<void *> others = Alloc(1, 4000);
  Free(others);
  for (void *block : {blocks[0], others[0]}) {
    *shmipc_head_of(region_, PlaceOf(block).page) = SHMIPC_PAGE_RUN(77);
  }
  uint32_t used = PlaceOf(blocks[0]).page;
  uint32_t empty = PlaceOf(others[0]).page;
  // Its next block would be in the page that is not ours any more.
  void *next = shmipc_block_alloc(region_, kBytes);
  ASSERT_NE(next, nullptr);
  EXPECT_NE(PlaceOf(next).page, used);
  EXPECT_EQ(shmipc_heap_trim(region_), 0);
  for (uint32_t page : {used, empty}) {
    EXPECT_EQ(shmipc_head_load(region_, page), SHMIPC_PAGE_RUN(77));
  }
}

}  // namespace
