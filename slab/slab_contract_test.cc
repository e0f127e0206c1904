// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What slab.h says of results, errno, limits and counts, to the letter.

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::AllocMany;
using slab_testing::Options;
using slab_testing::Stats;

const unsigned kVariants[] = {0u, unsigned{SLAB_NO_MAGAZINES},
                              unsigned{SLAB_DEBUG}};

TEST(SlabContractTest, BulkThatFailsReturnsENOMEM) {
  for (const unsigned flags : kVariants) {
    for (const size_t limit : {10, 1000}) {
      slab_options_t options = Options();
      options.flags = flags;
      options.max_objects = limit;
      slab_cache_t *cache = slab_cache_create(&options);
      std::vector<void *> objects(limit + 1);
      EXPECT_EQ(slab_alloc_bulk(cache, limit + 1, objects.data()), -ENOMEM);
      EXPECT_EQ(Stats(cache).num_live, 0u);
      EXPECT_EQ(slab_alloc_bulk(cache, limit, objects.data()), 0);
      slab_free_bulk(cache, limit, objects.data());
      EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
    }
  }
}

// Each of these does something on the way that may fail without harm.
TEST(SlabContractTest, ErrnoIsPreserved) {
  for (const unsigned flags : kVariants) {
    slab_options_t options = Options();
    options.flags = flags;
    slab_cache_t *cache = slab_cache_create(&options);
    std::vector<void *> objects = AllocMany(cache, 10000);
    errno = EDOM;
    EXPECT_EQ(slab_cache_destroy(cache, SLAB_DESTROY_QUIET), -EBUSY);
    EXPECT_EQ(errno, EDOM);
    slab_free_bulk(cache, 5000, objects.data());
    EXPECT_EQ(errno, EDOM);
    for (size_t i = 5000; i < objects.size(); ++i) {
      slab_free(cache, objects[i]);
    }
    EXPECT_EQ(errno, EDOM);
    EXPECT_GT(slab_reap(cache), 0u);
    EXPECT_EQ(errno, EDOM);
    slab_free(cache, slab_alloc(cache));
    EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
    EXPECT_EQ(errno, EDOM);
    EXPECT_EQ(slab_cache_destroy(nullptr, 0), 0);
    EXPECT_EQ(errno, EDOM);
  }
}

// 1/64 of the limit, not less.
TEST(SlabContractTest, ThreadCachesItsWholeShareOfALimit) {
  for (const size_t limit : {128, 640, 6400, 12800}) {
    slab_options_t options = Options();
    options.max_objects = limit;
    slab_cache_t *cache = slab_cache_create(&options);
    std::vector<void *> objects = AllocMany(cache, limit);
    size_t most = 0;
    for (size_t i = 0; i < objects.size(); ++i) {
      slab_free(cache, objects[objects.size() - 1 - i]);
      // Once it was full, nothing is new.
      if (i <= limit / 32) {
        most = std::max(most, Stats(cache).num_cached);
      }
    }
    EXPECT_EQ(most, limit / 64) << limit;
    EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
  }
}

TEST(SlabContractTest, CountsOfThreadsThatExitedStay) {
  const slab_options_t options = Options();
  slab_cache_t *cache = slab_cache_create(&options);
  std::vector<void *> objects = AllocMany(cache, 3000);
  slab_stats_t running;
  std::thread([&] {
    slab_free_bulk(cache, objects.size(), objects.data());
    slab_free(cache, slab_alloc(cache));
    running = Stats(cache);
  }).join();
  EXPECT_GT(running.num_flushes, 0u);
  EXPECT_GT(running.num_refills, 0u);
  const slab_stats_t exited = Stats(cache);
  EXPECT_EQ(exited.num_allocs, 3001u);
  EXPECT_EQ(exited.num_allocs, running.num_allocs);
  EXPECT_EQ(exited.num_refills, running.num_refills);
  EXPECT_EQ(exited.num_flushes, running.num_flushes);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

}  // namespace
