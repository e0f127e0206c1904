// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What happens between two steps of a call, forced: the linker puts functions
// of this file before some that the library calls there (--wrap), and a place
// that was looked up before is used after.

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <functional>

#include "gtest/gtest.h"
#include "shmipc/block_testing.h"
#include "shmipc/root.h"

namespace {

// Called once: when reclaiming found that a block's owner is dead, before it
// frees the block, before a heap grows, and before a mutex is unlocked.
std::function<void()> *g_when_dead;
std::function<void()> *g_before_free;
std::function<void()> *g_before_growth;
std::function<void()> *g_before_unlock;

void CallOnce(std::function<void()> **hook) {
  std::function<void()> *once = *hook;
  *hook = nullptr;
  if (once != nullptr) {
    (*once)();
  }
}

}  // namespace

extern "C" {
bool __real_shmipc_block_is_alive(const shmipc_region_t *region,
                                  shmipc_census_t *census, uint32_t word);
bool __wrap_shmipc_block_is_alive(const shmipc_region_t *region,
                                  shmipc_census_t *census, uint32_t word);
int __real_shmipc_place_free(shmipc_region_t *region, const shmipc_self_t *self,
                             const shmipc_place_t *place, uint32_t seen);
int __wrap_shmipc_place_free(shmipc_region_t *region, const shmipc_self_t *self,
                             const shmipc_place_t *place, uint32_t seen);

int __real_shmipc_region_grow(shmipc_region_t *region, size_t size_bytes);
int __wrap_shmipc_region_grow(shmipc_region_t *region, size_t size_bytes);

int __real_shmipc_mutex_unlock(shmipc_region_t *region, shmipc_mutex_t *mutex);
int __wrap_shmipc_mutex_unlock(shmipc_region_t *region, shmipc_mutex_t *mutex);

int __wrap_shmipc_mutex_unlock(shmipc_region_t *region, shmipc_mutex_t *mutex) {
  CallOnce(&g_before_unlock);
  return __real_shmipc_mutex_unlock(region, mutex);
}

int __wrap_shmipc_region_grow(shmipc_region_t *region, size_t size_bytes) {
  CallOnce(&g_before_growth);
  return __real_shmipc_region_grow(region, size_bytes);
}

bool __wrap_shmipc_block_is_alive(const shmipc_region_t *region,
                                  shmipc_census_t *census, uint32_t word) {
  bool is_alive = __real_shmipc_block_is_alive(region, census, word);
  if (!is_alive) {
    CallOnce(&g_when_dead);
  }
  return is_alive;
}

int __wrap_shmipc_place_free(shmipc_region_t *region, const shmipc_self_t *self,
                             const shmipc_place_t *place, uint32_t seen) {
  CallOnce(&g_before_free);
  return __real_shmipc_place_free(region, self, place, seen);
}
}

namespace {

using shmipc_testing::BackendName;
using shmipc_testing::Backends;
using shmipc_testing::kPage;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Shared;
using shmipc_testing::TestRegion;

class BlockRaceTest : public shmipc_testing::HeapTest {
 protected:
  ~BlockRaceTest() override {
    g_when_dead = nullptr;
    g_before_free = nullptr;
    g_before_growth = nullptr;
    g_before_unlock = nullptr;
  }

  // A large block of a process that is dead, in flight or owned.
  shmipc_ref_t LargeOfTheDead(bool in_flight) {
    Shared<shmipc_ref_t> ref;
    Process dies([&] {
      shmipc_region_t *region = own_.AttachInChild();
      void *block = shmipc_block_alloc(region, 2 * kPage);
      *ref = shmipc_ref_of(region, block);
      return in_flight ? -shmipc_block_give(region, block) : 0;
    });
    EXPECT_EQ(dies.Wait(), 0);
    return *ref;
  }
};

INSTANTIATE_TEST_SUITE_P(All, BlockRaceTest, testing::ValuesIn(Backends()),
                         BackendName);

TEST_P(BlockRaceTest, AFreeThatComesLateDoesNotFreeTheNextBlock) {
  shmipc_self_t *self;
  for (size_t size : {size_t{100}, 2 * kPage}) {
    void *block = shmipc_block_alloc(region_, size);
    ASSERT_EQ(shmipc_cache_of(region_, &self), 0);
    shmipc_place_t place;
    ASSERT_EQ(shmipc_place_find(region_, block, &place), 0);
    uint32_t seen = shmipc_word_load(place.word);
    ASSERT_EQ(shmipc_block_give(region_, block), 0);
    ASSERT_EQ(shmipc_block_free(region_, block), 0);
    // Nobody's, so that whoever takes it late does not get it.
    EXPECT_EQ(shmipc_word_load(place.word), SHMIPC_BLOCK_FREE);
    ASSERT_EQ(shmipc_block_alloc(region_, size), block);
    if (size > kPage) {
      EXPECT_EQ(shmipc_place_free(region_, self, &place, seen), -EALREADY);
    }
    EXPECT_GE(shmipc_block_usable_size(region_, block), size);
    EXPECT_EQ(shmipc_block_free(region_, block), 0);
  }
  ExpectUnused();
}

TEST_P(BlockRaceTest, ReclaimingDoesNotFreeWhatCameAfterTheDeads) {
  // The other frees the dead one's block at each of two moments, and has one of
  // its own there at the second at the latest.
  for (bool allocates_at_once : {false, true}) {
    shmipc_ref_t ref = LargeOfTheDead(false);
    shmipc_region_t *other = own_.Attach();
    void *block = nullptr;
    auto allocate = [&] {
      block = shmipc_block_alloc(other, 2 * kPage);
      memset(block, 7, 2 * kPage);
    };
    std::function<void()> before_free = [&] {
      if (block == nullptr) {
        allocate();
      }
    };
    std::function<void()> when_dead = [&] {
      EXPECT_EQ(shmipc_block_free(other, shmipc_block_get(other, ref, 1)), 0);
      if (allocates_at_once) {
        allocate();
      }
      g_before_free = &before_free;
    };
    g_when_dead = &when_dead;
    EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 0);
    g_before_free = nullptr;
    EXPECT_EQ(g_when_dead, nullptr);
    before_free();
    EXPECT_EQ(shmipc_block_usable_size(other, block), 2 * kPage);
    EXPECT_EQ(shmipc_ref_of(other, block).offset, ref.offset);
    EXPECT_EQ(shmipc_block_give(other, block), 0);
    EXPECT_EQ(shmipc_block_free(other, block), 0);
    shmipc_region_close(other);
    EXPECT_EQ(Problems(region_), "");
  }
  ExpectUnused();
}

TEST_P(BlockRaceTest, WhatIsTakenWhileItIsReclaimedIsTheTakers) {
  shmipc_ref_t ref = LargeOfTheDead(true);
  shmipc_region_t *other = own_.Attach();
  void *block = shmipc_block_get(other, ref, 1);
  std::function<void()> when_dead = [&] {
    EXPECT_EQ(shmipc_block_take(other, block), 0);
  };
  g_when_dead = &when_dead;
  EXPECT_EQ(shmipc_heap_reclaim(region_, SHMIPC_RECLAIM_IN_FLIGHT), 0);
  EXPECT_EQ(shmipc_block_usable_size(other, block), 2 * kPage);
  EXPECT_EQ(shmipc_block_free(other, block), 0);
  shmipc_region_close(other);
  ExpectUnused();
}

TEST_P(BlockRaceTest, WhoReclaimsSaysSo) {
  (void)LargeOfTheDead(false);
  bool is_reclaiming = false;
  std::function<void()> when_dead = [&] {
    is_reclaiming = shmipc_is_reclaiming(region_);
    EXPECT_EQ(Problems(region_), "");
  };
  g_when_dead = &when_dead;
  EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 1);
  EXPECT_TRUE(is_reclaiming);
  EXPECT_FALSE(shmipc_is_reclaiming(region_));
  ExpectUnused();
}

TEST_P(BlockRaceTest, GrowthThatOthersTookIsTriedAgain) {
  if (GetParam() == SHMIPC_SYSV) {
    GTEST_SKIP() << "does not grow";
  }
  for (size_t size : {size_t{100}, 2 * kPage}) {
    TestRegion own(GetParam(), 4096, [](auto *o) {
      o->heap_bytes = kPage;
      o->heap_capacity_bytes = 100 * kPage;
    });
    shmipc_region_t *other = own.Attach();
    void *first = shmipc_block_alloc(own.region(), kPage);
    ASSERT_NE(first, nullptr);
    int times = 0;
    std::function<void()> take_all = [&] {
      // Grows, and takes all that was added.
      shmipc_heap_stats_t stats;
      do {
        ASSERT_NE(shmipc_block_alloc(other, kPage), nullptr);
        ASSERT_EQ(shmipc_heap_stats_get(other, &stats), 0);
      } while (stats.free_page_bytes != 0);
      g_before_growth = ++times < 3 ? &take_all : nullptr;
    };
    g_before_growth = &take_all;
    EXPECT_NE(shmipc_block_alloc(own.region(), size), nullptr) << size;
    EXPECT_EQ(times, 3);
    shmipc_region_close(other);
  }
}

// Two that take pages from each other could both find nothing.
TEST_P(BlockRaceTest, WhoClaimsARunKeepsOthersFromIt) {
  shmipc_region_t *other = own_.Attach();
  shmipc_mutex_t *theirs = &shmipc_heap_head_of(other)->runs_mutex;
  int status = 0;
  std::function<void()> before_unlock = [&] {
    EXPECT_EQ(shmipc_kind_of(shmipc_head_load(region_, 0)),
              SHMIPC_PAGE_PREPARING);
    status = shmipc_mutex_lock(other, theirs, 0);
  };
  g_before_unlock = &before_unlock;
  void *block = shmipc_block_alloc(region_, 2 * kPage);
  EXPECT_EQ(g_before_unlock, nullptr);
  EXPECT_EQ(status, -ETIMEDOUT);
  EXPECT_EQ(shmipc_mutex_lock(other, theirs, 0), 0);
  EXPECT_EQ(shmipc_mutex_unlock(other, theirs), 0);
  EXPECT_EQ(shmipc_block_free(region_, block), 0);
  shmipc_region_close(other);
  ExpectUnused();
}

TEST_P(BlockRaceTest, ARunOfAnotherHeadIsNotTakenOver) {
  shmipc_self_t *self;
  void *block = shmipc_block_alloc(region_, 2 * kPage);
  ASSERT_EQ(shmipc_cache_of(region_, &self), 0);
  shmipc_place_t place;
  ASSERT_EQ(shmipc_place_find(region_, block, &place), 0);
  EXPECT_EQ(
      shmipc_run_take_over(region_, self, place.page,
                           SHMIPC_PAGE_FREEING | (uint64_t{9} << 32) | 0x100),
      0u);
  EXPECT_EQ(shmipc_block_usable_size(region_, block), 2 * kPage);
  // Nor is one lengthened in part.
  void *behind = shmipc_block_alloc(region_, kPage);
  EXPECT_EQ(shmipc_block_free(region_, behind), 0);
  behind = static_cast<char *>(block) + 4 * kPage;
  *shmipc_head_of(region_, place.page + 4) = SHMIPC_PAGE_RUN(0);
  EXPECT_FALSE(shmipc_run_extend(region_, place.page, 2, 4));
  for (uint32_t i = 2; i < 4; i++) {
    EXPECT_EQ(shmipc_head_load(region_, place.page + i), SHMIPC_PAGE_FREE);
  }
  *shmipc_head_of(region_, place.page + 4) = SHMIPC_PAGE_FREE;
  EXPECT_EQ(shmipc_block_free(region_, block), 0);
  ExpectUnused();
}

}  // namespace
