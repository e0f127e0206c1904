// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Threads that end, and what they had: late destructors, tags of others.

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <string>
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

// The key of a copy of slab that was unloaded is free again.
TEST(SlabExitTest, UnloadingGivesTheKeyBack) {
  for (int i = 0; i < PTHREAD_KEYS_MAX + 10; ++i) {
    void *plugin = dlopen("slab/libslab_cpp_plugin.so", RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(plugin, nullptr) << dlerror();
    ASSERT_EQ(dlclose(plugin), 0);
  }
  pthread_key_t key;
  ASSERT_EQ(pthread_key_create(&key, nullptr), 0);
  pthread_key_delete(key);
}

TEST(SlabExitTest, SharedCacheThatIsThereNeedsNoMemory) {
  slab_cache_t *cache = slab_shared_cache(40, 8);
  ASSERT_NE(cache, nullptr);
  static slab_kernel_t without_memory;
  without_memory = slab_kernel_default;
  without_memory.map = [](size_t) -> void * {
    return nullptr;
  };
  slab_kernel = &without_memory;
  EXPECT_EQ(slab_shared_cache(40, 8), cache);
  slab_kernel = &slab_kernel_default;
}

// What a report says is said although the thread is to be cancelled.
TEST(SlabExitTest, ReportsAreNoCancellationPoints) {
  const slab_options_t options = Options();
  slab_cache_t *cache = slab_cache_create(&options);
  void *object = slab_alloc(cache);
  int status = 0;
  testing::internal::CaptureStderr();
  std::thread([&] {
    pthread_cancel(pthread_self());
    status = slab_cache_destroy(cache, 0);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, nullptr);
  }).join();
  EXPECT_EQ(status, -EBUSY);
  EXPECT_NE(testing::internal::GetCapturedStderr().find("1 live object"),
            std::string::npos);
  slab_free(cache, object);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

}  // namespace
