// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What a thread has of a cache when something about it is unusual: no value
// for its exit, slots in a buffer.

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <iterator>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.h"
#include "slab/slab_internal.h"

namespace {

thread_local bool is_failing = false;
std::atomic<int> num_failures{0};

}  // namespace

// In place of the C library's, for the whole program.
extern "C" int pthread_setspecific(pthread_key_t key,
                                   const void *value) noexcept {
  if (is_failing) {
    ++num_failures;
    return ENOMEM;
  }
  using Function = int (*)(pthread_key_t, const void *);
  static const auto real =
      reinterpret_cast<Function>(dlsym(RTLD_NEXT, "pthread_setspecific"));
  return real(key, value);
}

namespace {

TEST(MagazineTest, ThreadWhoseExitWouldGoUnnoticedCachesNothing) {
  slab_options_t options = {};
  options.object_bytes = 64;
  slab_cache_t *cache = slab_cache_create(&options);
  bool has_magazines = true;
  size_t num_allocated = 0;
  std::thread([&] {
    // No assertion in here: googletest has values of its own.
    is_failing = true;
    std::vector<void *> objects(100);
    for (void *&object : objects) {
      object = slab_alloc(cache);
      num_allocated += object != nullptr;
    }
    for (void *object : objects) {
      slab_free(cache, object);
    }
    has_magazines = slab_thread_exists();
    is_failing = false;
  }).join();
  EXPECT_GT(num_failures, 0);
  EXPECT_EQ(num_allocated, 100u);
  EXPECT_FALSE(has_magazines);
  slab_stats_t stats;
  slab_stats(cache, &stats);
  EXPECT_EQ(stats.num_live, 0u);
  EXPECT_EQ(stats.num_cached, 0u);
  EXPECT_STREQ(slab_check(cache), nullptr);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

TEST(MagazineTest, SlotsOfABufferGoBackWithoutATouchOfWhatIsBefore) {
  constexpr unsigned char kFill = 0x5a;
  alignas(64) static unsigned char buffer[65536];
  std::fill(std::begin(buffer), std::end(buffer), kFill);
  slab_options_t options = {};
  options.object_bytes = 64;
  options.buffer = buffer;
  options.buffer_bytes = sizeof(buffer);
  slab_cache_t *cache = slab_cache_create(&options);
  ASSERT_NE(cache, nullptr);
  slab_free(cache, slab_alloc(cache));
  ASSERT_TRUE(cache->buffer_slots_taken);
  const auto *slots =
      reinterpret_cast<const unsigned char *>(cache->buffer_slots);
  const std::vector<unsigned char> before(slots - 64, slots);
  slab_reap(cache);
  EXPECT_FALSE(cache->buffer_slots_taken);
  EXPECT_TRUE(std::equal(before.begin(), before.end(), slots - 64));
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

}  // namespace
