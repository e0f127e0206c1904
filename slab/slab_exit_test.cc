// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Threads that end, and what they had: late destructors, tags of others.

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.h"
#include "slab/slab_internal.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::Options;
using slab_testing::Stats;

slab_cache_t *late_cache;
pthread_key_t late_key;

// Runs in each round of destructors that there is.
void UseLate(void *value) {
  slab_free(late_cache, slab_alloc(late_cache));
  pthread_setspecific(late_key, value);
}

TEST(SlabExitTest, DestructorsOfAllRoundsMayUseACache) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "its runtime does not live as long";
#endif
  const slab_options_t options = Options();
  late_cache = slab_cache_create(&options);
  // After slab's key, whose destructor so comes first in each round.
  ASSERT_EQ(pthread_key_create(&late_key, UseLate), 0);
  for (int i = 0; i < 10; ++i) {
    std::thread([] {
      slab_free(late_cache, slab_alloc(late_cache));
      pthread_setspecific(late_key, &late_key);
    }).join();
    EXPECT_EQ(Stats(late_cache).num_cached, 0u);
  }
  EXPECT_STREQ(slab_check(late_cache), nullptr);
  EXPECT_EQ(slab_cache_destroy(late_cache, 0), 0);
  pthread_key_delete(late_key);
}

// The thread that came when all tags were taken gets one once there are some,
// and is as quick as others then: its allocations are not refills.
TEST(SlabExitTest, TagsOfThreadsThatExitedAreForThoseWithout) {
  const slab_options_t options = Options();
  slab_cache_t *cache = slab_cache_create(&options);
  std::atomic<int> num_ready{0};
  std::atomic<bool> end{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < SLAB_TAG_MAX; ++i) {
    threads.emplace_back([&] {
      slab_free(cache, slab_alloc(cache));
      ++num_ready;
      while (!end) {
        std::this_thread::yield();
      }
    });
  }
  while (num_ready != SLAB_TAG_MAX) {
    std::this_thread::yield();
  }
  slab_free(cache, slab_alloc(cache));
  const slab_magazine_t *magazine = slab_magazine_of(&cache->fast);
  EXPECT_TRUE(magazine->traits.is_shared);
  for (int i = 0; i < 5000; ++i) {
    slab_free(cache, slab_alloc(cache));
  }
  EXPECT_TRUE(magazine->traits.is_shared);
  end = true;
  for (std::thread &thread : threads) {
    thread.join();
  }
  void *kept = slab_alloc(cache);
  for (int i = 0; i < 5000; ++i) {
    slab_free(cache, slab_alloc(cache));
  }
  EXPECT_FALSE(magazine->traits.is_shared);
  EXPECT_STREQ(slab_check(cache), nullptr);
  slab_free(cache, kept);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

TEST(SlabExitTest, SourcesMetadataIsAligned) {
  slab_options_t options = Options();
  static char memory[1 << 20];
  options.source.alloc = [](void *, size_t, size_t) -> void * {
    return memory + 8;
  };
  options.source.free = [](void *, void *, size_t) {
  };
  EXPECT_DEATH(EXPECT_EQ(slab_cache_create(&options), nullptr),
               "the source's memory is not aligned as asked");
}

}  // namespace
