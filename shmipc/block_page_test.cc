// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Pages of a region's heap: full ones, empty ones, and those of the dead; who
// gets them, and when.
//
// SHMIPC_TEST_SEED for other random numbers.

#include "shmipc/block.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/block_class.h"
#include "shmipc/block_testing.h"

namespace {

using shmipc_testing::BackendName;
using shmipc_testing::Backends;
using shmipc_testing::Count;
using shmipc_testing::kPage;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;
using shmipc_testing::Shared;

class BlockPageTest : public shmipc_testing::HeapTest {};

INSTANTIATE_TEST_SUITE_P(All, BlockPageTest, testing::ValuesIn(Backends()),
                         BackendName);

TEST_P(BlockPageTest, FilledToTheLastByteAgainAndAgain) {
  for (size_t size : {16, 48, 64, 1000, 4096, 7000, 16384, 32768, 65536}) {
    uint32_t index = shmipc_class_of(size);
    size_t expected =
        64 * (index < SHMIPC_CLASSES ? shmipc_classes[index].count : 1);
    std::vector<void *> blocks;
    for (int round = 0; round < 3; round++) {
      while (void *block = shmipc_block_alloc(region_, size)) {
        memset(block, round, size);
        blocks.push_back(block);
      }
      EXPECT_EQ(errno, ENOMEM);
      ASSERT_EQ(blocks.size(), expected) << size;
      ASSERT_EQ(std::set<void *>(blocks.begin(), blocks.end()).size(),
                expected);
      std::shuffle(blocks.begin(), blocks.end(), std::mt19937_64(Seed()));
      for (void *block : blocks) {
        ASSERT_EQ(shmipc_block_free(region_, block), 0);
      }
      blocks.clear();
    }
    // Without a trim: the next size gets the pages, too.
  }
  ExpectUnused();
}

// One size after another: each takes the pages of the one before, to the last.
TEST_P(BlockPageTest, FilledAThousandTimes) {
  const uint64_t num_fills = Count("SHMIPC_FILLS", 1000);
  std::mt19937_64 random(Seed());
  std::vector<void *> blocks;
  for (uint64_t i = 0; i < num_fills; i++) {
    size_t size = 1 + random() % (i % 3 == 0 ? 3 * kPage : 4096);
    if (size > kPage) {
      // Runs around pages that only then go back might leave single ones.
      ASSERT_GE(shmipc_heap_trim(region_), 0);
    }
    while (void *block = shmipc_block_alloc(region_, size)) {
      blocks.push_back(block);
    }
    uint32_t index = shmipc_class_of(size);
    ASSERT_EQ(blocks.size(), index < SHMIPC_CLASSES
                                 ? 64 * shmipc_classes[index].count
                                 : 64 / ((size + kPage - 1) / kPage))
        << size << ", fill " << i;
    std::shuffle(blocks.begin(), blocks.end(), random);
    for (void *block : blocks) {
      ASSERT_EQ(shmipc_block_free(region_, block), 0);
    }
    blocks.clear();
  }
  ExpectUnused();
}

TEST_P(BlockPageTest, FullHeapsGiveALargerBlockThatIsThere) {
  void *page = shmipc_block_alloc(region_, 48);
  ASSERT_NE(page, nullptr);
  void *large = shmipc_block_alloc(region_, 61 * kPage);
  ASSERT_NE(large, nullptr);
  void *first = shmipc_block_alloc(region_, 1000);
  void *second = shmipc_block_alloc(region_, 2000);
  ASSERT_NE(second, nullptr);
  void *small = shmipc_block_alloc(region_, 16);
  ASSERT_NE(small, nullptr);
  EXPECT_EQ(shmipc_block_usable_size(region_, small), 48u);
  // Not the one of 48 bytes, of which every other is not aligned.
  void *aligned = shmipc_block_alloc_aligned(region_, 32, 20);
  ASSERT_NE(aligned, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(aligned) % 32, 0u);
  for (void *block : {page, large, first, second, small, aligned}) {
    EXPECT_EQ(shmipc_block_free(region_, block), 0);
  }
  ExpectUnused();
}

TEST_P(BlockPageTest, WhatTheDeadOwnedIsReclaimedOnRequest) {
  Shared<shmipc_ref_t[5]> refs;
  Process dies([&] {
    shmipc_region_t *region = own_.AttachInChild();
    for (size_t i = 0; i < 5; i++) {
      size_t size = i % 2 == 0 ? 100 : 200000;
      void *block = shmipc_block_alloc(region, size);
      (*refs)[i] = shmipc_ref_of(region, block);
      if (i >= 3) {
        shmipc_block_give(region, block);
      } else if (i == 2) {
        shmipc_block_share(region, block);
      }
    }
    return 0;
  });
  ASSERT_EQ(dies.Wait(), 0);
  EXPECT_EQ(Stats().num_live, 5u);
  EXPECT_EQ(Stats().num_dead, 4u);
  EXPECT_EQ(Problems(region_), "");
  EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 2);
  EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 0);
  EXPECT_EQ(Stats().num_live, 3u);
  // Also when its slot was freed, and taken by another.
  EXPECT_EQ(shmipc_region_recover(region_), 1);
  shmipc_region_t *other = own_.Attach();
  EXPECT_EQ(Stats().num_dead, 2u);
  void *found = shmipc_block_get(region_, (*refs)[3], 200000);
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(shmipc_block_take(region_, found), 0);
  EXPECT_EQ(shmipc_heap_reclaim(region_, SHMIPC_RECLAIM_IN_FLIGHT), 1);
  EXPECT_EQ(shmipc_block_free(region_, found), 0);
  EXPECT_EQ(Stats().num_live, 1u);
  EXPECT_EQ(
      shmipc_block_free(region_, shmipc_block_get(region_, (*refs)[2], 100)),
      0);
  shmipc_region_close(other);
  ExpectUnused();
}

TEST_P(BlockPageTest, PagesOfTheDeadAreFoundWhenMemoryIsShort) {
  Process dies([&] {
    shmipc_region_t *region = own_.AttachInChild();
    for (int i = 0; i < 64; i++) {
      void *block = shmipc_block_alloc(region, 1024);
      for (int j = 1; j < 63; j++) {
        (void)!shmipc_block_alloc(region, 1024);
      }
      // The first of each page is somebody's.
      shmipc_block_share(region, block);
    }
    return shmipc_block_alloc(region, 16) == nullptr ? 0 : 1;
  });
  ASSERT_EQ(dies.Wait(), 0);
  EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 64 * 62);
  // All other blocks of its pages are ours to have, asking the kernel.
  size_t count = 0;
  while (shmipc_block_alloc(region_, 1024) != nullptr) {
    count++;
  }
  EXPECT_EQ(count, 64u * 62);
  EXPECT_EQ(Stats().num_shared, 64u);
  EXPECT_EQ(Problems(region_), "");
}

TEST_P(BlockPageTest, PagesOfAThreadThatEndedAreTaken) {
  std::vector<void *> blocks;
  std::thread([&] {
    while (void *block = shmipc_block_alloc(region_, 64)) {
      blocks.push_back(block);
    }
  }).join();
  ASSERT_EQ(blocks.size(), 64u * 963);
  EXPECT_EQ(shmipc_block_alloc(region_, 64), nullptr);
  for (void *block : blocks) {
    ASSERT_EQ(shmipc_block_free(region_, block), 0);
  }
  void *all = shmipc_block_alloc(region_, 64 * kPage);
  EXPECT_NE(all, nullptr);
  EXPECT_EQ(shmipc_block_free(region_, all), 0);
  ExpectUnused();
}

TEST_P(BlockPageTest, WhatAnotherProcessFreesIsUsedAgain) {
  // Twenty heaps full of blocks go through one heap.
  Shared<shmipc_ref_t[4096]> refs;
  for (int round = 0; round < 20; round++) {
    size_t count = 0;
    for (; count < 2000; count++) {
      void *block = shmipc_block_alloc(region_, 1500);
      ASSERT_NE(block, nullptr) << round;
      ASSERT_EQ(shmipc_block_give(region_, block), 0);
      (*refs)[count] = shmipc_ref_of(region_, block);
    }
    Process frees([&] {
      shmipc_region_t *region = own_.AttachInChild();
      for (size_t i = 0; i < count; i++) {
        void *block = shmipc_block_get(region, (*refs)[i], 1500);
        if (block == nullptr || shmipc_block_take(region, block) != 0 ||
            shmipc_block_free(region, block) != 0) {
          return 1;
        }
      }
      return 0;
    });
    ASSERT_EQ(frees.Wait(), 0);
    EXPECT_EQ(Stats().num_live, 0u);
  }
  ExpectUnused();
}

TEST_P(BlockPageTest, EmptyPagesGoBackWithoutATrim) {
  std::vector<void *> blocks;
  while (void *block = shmipc_block_alloc(region_, 256)) {
    blocks.push_back(block);
  }
  for (void *block : blocks) {
    ASSERT_EQ(shmipc_block_free(region_, block), 0);
  }
  // All but a few, which the next free would have looked at.
  EXPECT_GE(Stats().free_page_bytes, 55 * kPage);
  ExpectUnused();
}

TEST_P(BlockPageTest, NoPageChangesItsKindWhileSomebodyReclaims) {
  std::vector<void *> blocks;
  for (int i = 0; i < 100; i++) {
    blocks.push_back(shmipc_block_alloc(region_, 4000));
  }
  for (void *block : blocks) {
    ASSERT_EQ(shmipc_block_free(region_, block), 0);
  }
  ASSERT_LT(Stats().free_page_bytes, Stats().heap_bytes);
  // As if another thread were at it, then one of a dead process.
  uint64_t *reclaimer = &shmipc_heap_head_of(region_)->reclaimer;
  std::atomic<uint64_t> id{0};
  std::atomic<bool> is_over{false};
  std::thread lives([&] {
    shmipc_self_t *self;
    ASSERT_EQ(shmipc_roots_lock(region_), 0);
    ASSERT_EQ(shmipc_self_of(region_, &self), 0);
    id = self->page_id;
    while (!is_over) {
      std::this_thread::yield();
    }
  });
  while (id == 0) {
    std::this_thread::yield();
  }
  *reclaimer = id;
  EXPECT_EQ(shmipc_heap_trim(region_), 0);
  EXPECT_LT(Stats().free_page_bytes, Stats().heap_bytes);
  EXPECT_EQ(Problems(region_), "");
  void *block = shmipc_block_alloc(region_, 4000);
  EXPECT_EQ(shmipc_block_free(region_, block), 0);
  is_over = true;
  lives.join();
  EXPECT_GT(shmipc_heap_trim(region_), 0);
  *reclaimer = 0;
  ExpectUnused();
}

// One that allocates for another, which frees.
TEST_P(BlockPageTest, AProducerGivesBackWhatTheConsumerFreed) {
  std::vector<void *> blocks;
  for (int i = 0; i < 60 * 63; i++) {
    blocks.push_back(shmipc_block_alloc(region_, 1024));
    ASSERT_NE(blocks.back(), nullptr);
  }
  shmipc_region_t *consumer = own_.Attach();
  auto consume = [&](void *block) {
    ASSERT_EQ(shmipc_block_give(region_, block), 0);
    block = shmipc_block_get(consumer, shmipc_ref_of(region_, block), 1);
    ASSERT_EQ(shmipc_block_take(consumer, block), 0);
    ASSERT_EQ(shmipc_block_free(consumer, block), 0);
  };
  // Blocks of another size are all that is allocated after that.
  std::for_each(blocks.begin(), blocks.end(), consume);
  ASSERT_LT(Stats().free_page_bytes, 10 * kPage);
  for (int i = 0; i < 64 * 32 * 8; i++) {
    consume(shmipc_block_alloc(region_, 64));
  }
  EXPECT_GE(Stats().free_page_bytes, 58 * kPage);
  shmipc_region_close(consumer);
  ExpectUnused();
}

TEST_P(BlockPageTest, AProducerGivesBackAtOnceWhenMemoryIsShort) {
  std::vector<void *> blocks;
  for (int i = 0; i < 60 * 63; i++) {
    blocks.push_back(shmipc_block_alloc(region_, 1024));
  }
  // What frees is another thread, which has no pages.
  std::thread([&] {
    for (void *block : blocks) {
      EXPECT_EQ(shmipc_block_free(region_, block), 0);
    }
    EXPECT_EQ(shmipc_block_alloc(region_, 10 * kPage), nullptr);
  }).join();
  // Uses what it knows of, and looks for more once.
  for (int i = 0; i < 64; i++) {
    EXPECT_EQ(shmipc_block_free(region_, shmipc_block_alloc(region_, 16)), 0);
    (void)!shmipc_block_alloc(region_, 1024);
  }
  std::thread([&] {
    void *block = shmipc_block_alloc(region_, 10 * kPage);
    EXPECT_NE(block, nullptr);
    EXPECT_EQ(shmipc_block_free(region_, block), 0);
  }).join();
}

TEST_P(BlockPageTest, TrimCountsPagesOfARunThatADeadThreadClaimed) {
  std::thread([&] {
    shmipc_self_t *self;
    ASSERT_EQ(shmipc_cache_of(region_, &self), 0);
    ASSERT_NE(shmipc_run_claim(region_, self, 5), SHMIPC_NO_PAGE);
  }).join();
  EXPECT_EQ(shmipc_heap_trim(region_), 5);
  ExpectUnused();
}

TEST_P(BlockPageTest, AReclaimerWithoutTheMutexStopsNobody) {
  shmipc_self_t *self;
  ASSERT_EQ(shmipc_cache_of(region_, &self), 0);
  ASSERT_EQ(shmipc_block_free(region_, shmipc_block_alloc(region_, 1000)), 0);
  uint64_t *reclaimer = &shmipc_heap_head_of(region_)->reclaimer;
  *reclaimer = self->page_id;
  EXPECT_NE(Problems(region_).find("does not have the mutex"),
            std::string::npos);
  EXPECT_EQ(shmipc_heap_trim(region_), 1);
  EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 0);
  EXPECT_EQ(*reclaimer, 0u);
  ExpectUnused();
}

TEST_P(BlockPageTest, NoRunIsTakenOverWhileSomebodyReclaims) {
  std::thread([&] {
    shmipc_self_t *self;
    ASSERT_EQ(shmipc_cache_of(region_, &self), 0);
    ASSERT_NE(shmipc_run_claim(region_, self, 5), SHMIPC_NO_PAGE);
  }).join();
  shmipc_self_t *self;
  ASSERT_EQ(shmipc_roots_lock(region_), 0);
  ASSERT_EQ(shmipc_cache_of(region_, &self), 0);
  shmipc_heap_head_of(region_)->reclaimer = self->page_id;
  EXPECT_EQ(shmipc_heap_trim(region_), 0);
  shmipc_heap_head_of(region_)->reclaimer = 0;
  shmipc_roots_unlock(region_);
  EXPECT_EQ(shmipc_heap_trim(region_), 5);
  ExpectUnused();
}

TEST_P(BlockPageTest, PagesOfTheDeadMakeRoomForALargeBlock) {
  Process dies([&] {
    shmipc_region_t *region = own_.AttachInChild();
    for (int i = 0; i < 60 * 63; i++) {
      void *block = shmipc_block_alloc(region, 1024);
      if (block == nullptr) {
        return 1;
      }
    }
    return 0;
  });
  ASSERT_EQ(dies.Wait(), 0);
  ASSERT_EQ(shmipc_heap_reclaim(region_, 0), 60 * 63);
  shmipc_heap_stats_t stats = Stats();
  EXPECT_EQ(stats.free_bytes, 60u * 63 * 1024);
  void *block = shmipc_block_alloc(region_, 64 * kPage);
  EXPECT_NE(block, nullptr);
  EXPECT_EQ(shmipc_block_free(region_, block), 0);
  ExpectUnused();
}

TEST_P(BlockPageTest, TheSearchBeginsAnywhere) {
  for (uint32_t start : {64u, 65u, 1u << 20, UINT32_MAX}) {
    shmipc_heap_head_of(region_)->first_free = start;
    std::thread([&] {
      EXPECT_NE(shmipc_block_alloc(region_, 1000), nullptr);
    }).join();
  }
  EXPECT_EQ(Problems(region_), "");
}

}  // namespace
