// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The table of slabs outside of a range, with slabs that are made up: only
// their addresses matter.

#include "slab/slab_internal.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

#include "slab/slab_testing.h"

namespace {

class TableTest : public testing::Test {
 protected:
  void SetUp() override {
    slab_options_t options = slab_testing::Options();
    options.flags = SLAB_NO_MAGAZINES;
    cache_ = slab_cache_create(&options);
    ASSERT_NE(cache_, nullptr);
  }
  void TearDown() override {
    EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
  }

  // Numbers that are equal modulo any table that is made here, but for `low`,
  // want the same slots.
  slab_t Slab(uintptr_t high, uintptr_t low) const {
    slab_t slab = {};
    slab.base = reinterpret_cast<unsigned char *>((high << 12 | low)
                                                  << cache_->outside_shift);
    return slab;
  }

  slab_t *Find(const slab_t &slab) {
    return slab_table_find(cache_,
                           reinterpret_cast<uintptr_t>(slab.base) + 100);
  }

  void Insert(slab_t *slab) {
    bool is_in = false;
    while (!is_in) {
      ASSERT_TRUE(slab_table_make_room(cache_));
      pthread_mutex_lock(&cache_->lock);
      is_in = slab_table_insert(cache_, slab);
      pthread_mutex_unlock(&cache_->lock);
    }
  }

  void Remove(const slab_t *slab) {
    pthread_mutex_lock(&cache_->lock);
    slab_table_remove(cache_, slab);
    pthread_mutex_unlock(&cache_->lock);
  }

  slab_cache_t *cache_ = nullptr;
};

TEST_F(TableTest, EmptyTableHasNothing) {
  EXPECT_EQ(slab_table_find(cache_, 0), nullptr);
  EXPECT_EQ(slab_table_find(cache_, UINTPTR_MAX), nullptr);
}

TEST_F(TableTest, RandomSlabsAreFoundAndOthersAreNot) {
  std::mt19937_64 random(slab_testing::Seed());
  std::vector<slab_t> slabs;
  for (uintptr_t high = 1; high <= 20; ++high) {
    for (uintptr_t low = 0; low < 5; ++low) {
      slabs.push_back(Slab(high, low));
    }
  }
  std::vector<bool> is_in(slabs.size());
  for (int step = 0; step < 5000; ++step) {
    const size_t i = random() % slabs.size();
    if (is_in[i]) {
      Remove(&slabs[i]);
    } else {
      Insert(&slabs[i]);
    }
    is_in[i] = !is_in[i];
    for (size_t j = 0; j < slabs.size(); ++j) {
      ASSERT_EQ(Find(slabs[j]), is_in[j] ? &slabs[j] : nullptr) << step;
    }
    ASSERT_EQ(slab_table_find(cache_, 100), nullptr);
  }
  for (size_t i = 0; i < slabs.size(); ++i) {
    if (is_in[i]) {
      Remove(&slabs[i]);
    }
  }
  EXPECT_EQ(cache_->num_outside, 0u);
}

// Every removal moves the slabs behind it, and among them the one that is
// looked for. In turn each of them is that one, and the last in the cluster.
TEST_F(TableTest, SlabThatStaysIsAlwaysFoundWhileOthersGo) {
#ifdef __SANITIZE_THREAD__
  constexpr size_t kTurns = 20000;  // It does not need the race to happen.
#else
  constexpr size_t kTurns = 400000;
#endif
  constexpr size_t kCount = 9;
  std::vector<slab_t> slabs;
  for (uintptr_t high = 1; high <= kCount; ++high) {
    slabs.push_back(Slab(high, 0));
  }
  for (slab_t &slab : slabs) {
    Insert(&slab);
  }
  // Slab `turn` % kCount stays during this turn.
  std::atomic<size_t> turn{kCount - 1};
  std::atomic<size_t> num_looks{0};
  std::atomic<size_t> num_lost{0};
  std::atomic<bool> end{false};
  std::thread reader([&] {
    while (!end) {
      const size_t now = turn;
      slab_t *slab = &slabs[now % kCount];
      if (Find(*slab) != slab && turn == now) {
        ++num_lost;
      }
      ++num_looks;
    }
  });
  for (size_t i = 0; i < kTurns || num_looks < kTurns; ++i) {
    const size_t last = turn;
    for (size_t other = 1; other < kCount; ++other) {
      Remove(&slabs[(last + other) % kCount]);
    }
    for (size_t other = 1; other < kCount; ++other) {
      Insert(&slabs[(last + other) % kCount]);
    }
    // The one inserted last; and the first one of all moves behind it.
    turn = last + kCount - 1;
    Remove(&slabs[last % kCount]);
    Insert(&slabs[last % kCount]);
    turn = last + kCount;
  }
  end = true;
  reader.join();
  EXPECT_EQ(num_lost, 0u);
  for (slab_t &slab : slabs) {
    Remove(&slab);
  }
}

}  // namespace
