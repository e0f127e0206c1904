// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Tables that were replaced: whoever loaded one before goes on with it, however
// late.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.h"
#include "slab/slab_internal.h"

namespace {

// Tables from here on have pages of their own.
constexpr size_t kPageBytes = 4096;

class SlabTableTest : public testing::Test {
 protected:
  void SetUp() override {
    slab_options_t options = {};
    options.object_bytes = 1 << 14;
    cache_ = slab_cache_create(&options);
    ASSERT_NE(cache_, nullptr);
  }
  void TearDown() override {
    EXPECT_STREQ(slab_check(cache_), nullptr);
    EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
  }

  slab_table_t *Table() {
    return slab_table_of(&cache_->fast);
  }
  // Allocates until the cache's table is one of at least `table_bytes` that
  // was none before.
  slab_table_t *GrowTable(size_t table_bytes) {
    slab_table_t *old = Table();
    while (Table() == old ||
           slab_table_bytes(slab_table_log2(Table())) < table_bytes) {
      objects_.push_back(slab_alloc(cache_));
      EXPECT_NE(objects_.back(), nullptr);
    }
    return Table();
  }
  // What a free does that loaded `table` some time ago.
  uint8_t *Find(slab_table_t *table, void *object) {
    const auto address = reinterpret_cast<uintptr_t>(object);
    slab_entry_t *entry = slab_table_find(table, address);
    uint8_t *state = nullptr;
    if (entry != nullptr) {
      slab_find_state(&cache_->fast, entry, address, &state);
    }
    return state;
  }
  void FreeAll() {
    slab_free_bulk(cache_, objects_.size(), objects_.data());
    objects_.clear();
  }

  slab_cache_t *cache_ = nullptr;
  std::vector<void *> objects_;
};

TEST_F(SlabTableTest, ReplacedTableStillKnowsLiveObjects) {
  slab_table_t *old = GrowTable(kPageBytes);
  const std::vector<void *> known = objects_;
  for (int i = 0; i < 2; ++i) {
    ASSERT_NE(GrowTable(kPageBytes), old);
    for (void *object : known) {
      uint8_t *state = Find(old, object);
      ASSERT_NE(state, nullptr);
      ASSERT_EQ(slab_state_load(state), SLAB_STATE_LIVE);
      ASSERT_EQ(state, Find(Table(), object));
    }
  }
  FreeAll();
}

TEST_F(SlabTableTest, ReapLeavesReplacedTablesAsLongAsAnObjectLives) {
  void *kept = slab_alloc(cache_);
  slab_table_t *old = GrowTable(kPageBytes);
  GrowTable(kPageBytes);
  FreeAll();
  slab_reap(cache_);
  EXPECT_NE(Find(old, kept), nullptr);
  slab_free(cache_, kept);
}

TEST_F(SlabTableTest, ReplacedTablesPagesGoBackWithTheLastSlab) {
  slab_table_t *old = GrowTable(kPageBytes);
  void *object = objects_.front();
  GrowTable(kPageBytes);
  FreeAll();
  slab_reap(cache_);
  EXPECT_EQ(old->mask_bytes, 0u);
  EXPECT_EQ(slab_table_find(old, reinterpret_cast<uintptr_t>(object)), nullptr);
  // And the cache works on.
  GrowTable(2 * kPageBytes);
  FreeAll();
}

// One thread frees and allocates objects that it has had from the beginning
// while another one makes the table grow: never a report, never a fault.
TEST_F(SlabTableTest, FreesGoOnWhileTheTableIsReplaced) {
  for (int round = 0; round < 10; ++round) {
    std::vector<void *> mine(64);
    ASSERT_EQ(slab_alloc_bulk(cache_, mine.size(), mine.data()), 0);
    std::atomic<bool> end{false};
    std::thread other([&] {
      while (!end) {
        for (void *&object : mine) {
          slab_free(cache_, object);
          object = slab_alloc(cache_);
        }
        std::this_thread::yield();
      }
      slab_free_bulk(cache_, mine.size(), mine.data());
    });
    GrowTable(2 * kPageBytes);
    end = true;
    other.join();
    FreeAll();
    TearDown();
    SetUp();
  }
}

}  // namespace
