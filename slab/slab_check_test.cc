// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// slab_check finds what it promises to find, and the debug variant finds damage
// that nobody asks for again.

#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.h"
#include "slab/slab_internal.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::AllocMany;
using slab_testing::Options;
using slab_testing::Stats;

TEST(SlabCheckTest, ObjectInTwoSlotsIsFound) {
  const slab_options_t options = Options();
  slab_cache_t *cache = slab_cache_create(&options);
  const std::vector<void *> objects = AllocMany(cache, 600);
  slab_free_bulk(cache, objects.size(), objects.data());
  slab_magazine_t *magazine = slab_magazine_of(&cache->fast);
  ASSERT_STREQ(slab_check(cache), nullptr);
  void *saved = magazine->bottom[1];
  // Another object is in none: their number is right.
  magazine->bottom[1] = magazine->bottom[0];
  EXPECT_STREQ(slab_check(cache), "magazine: an object is in it twice");
  magazine->bottom[1] = saved;
  EXPECT_STREQ(slab_check(cache), nullptr);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

TEST(SlabCheckTest, WhatTheDepotHasIsLookedAt) {
  const slab_options_t options = Options();
  slab_cache_t *cache = slab_cache_create(&options);
  const std::vector<void *> objects = AllocMany(cache, 6000);
  std::thread([&] {
    for (void *object : objects) {
      slab_free(cache, object);
    }
  }).join();
  ASSERT_GT(cache->depot.count, 2u);
  ASSERT_STREQ(slab_check(cache), nullptr);
  void **slots = cache->depot.objects;
  void *const saved = slots[0];
  slots[0] = &slots;
  EXPECT_STREQ(slab_check(cache),
               "magazine: an object that is not in it by its state");
  slots[0] = slots[1];
  EXPECT_STREQ(slab_check(cache), "magazine: an object is in it twice");
  slots[0] = saved;
  EXPECT_STREQ(slab_check(cache), nullptr);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

// ---- the debug variant ----

slab_cache_t *DebugCache() {
  slab_options_t options = Options();
  options.name = "debug";
  options.flags = SLAB_DEBUG;
  return slab_cache_create(&options);
}

TEST(SlabDebugTest, WriteAfterFreeIsFoundBeforeTheSlabGoesBack) {
  slab_cache_t *cache = DebugCache();
  auto *object = static_cast<char *>(slab_alloc(cache));
  slab_free(cache, object);
  object[3] ^= 1;
  EXPECT_DEATH(slab_reap(cache), "slab_reap: written after free: .*\"debug\"");
  EXPECT_DEATH(slab_cache_destroy(cache, 0),
               "slab_cache_destroy: written after free: .*\"debug\"");
  object[3] ^= 1;
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

TEST(SlabDebugTest, OverrunOfALiveObjectIsFoundAtDestroy) {
  slab_cache_t *cache = DebugCache();
  auto *object = static_cast<char *>(slab_alloc(cache));
  object[64] ^= 1;
  EXPECT_DEATH(
      slab_cache_destroy(cache, SLAB_DESTROY_LIVE | SLAB_DESTROY_QUIET),
      "slab_cache_destroy: .*\"debug\".*allocated from 0x");
  object[64] ^= 1;
  slab_free(cache, object);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

TEST(SlabDebugTest, LeaksAreNamedWithTheirCallSite) {
  slab_cache_t *cache = DebugCache();
  void *object = slab_alloc(cache);
  testing::internal::CaptureStderr();
  EXPECT_EQ(slab_cache_destroy(cache, 0), -EBUSY);
  const std::string line = testing::internal::GetCapturedStderr();
  EXPECT_NE(line.find(" allocated from 0x"), std::string::npos) << line;
  slab_free(cache, object);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

TEST(SlabDebugTest, DestructorSeesWhatTheCallerLeft) {
  static int num_seen;
  num_seen = 0;
  slab_options_t options = Options();
  options.flags = SLAB_DEBUG;
  options.destruct = [](void *object, void *) {
    num_seen += *static_cast<int *>(object) == 17;
  };
  slab_cache_t *cache = slab_cache_create(&options);
  auto *object = static_cast<int *>(slab_alloc(cache));
  *object = 17;
  slab_free(cache, object);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
  EXPECT_EQ(num_seen, 1);
}

TEST(SlabDebugTest, EmptySlabsGoBackByThemselves) {
  slab_cache_t *cache = DebugCache();
  const std::vector<void *> objects = AllocMany(cache, 200000);
  const slab_stats_t full = Stats(cache);
  slab_free_bulk(cache, objects.size(), objects.data());
  EXPECT_LT(Stats(cache).slab_bytes, full.slab_bytes / 2);
  slab_reap(cache);
  EXPECT_EQ(Stats(cache).slab_bytes, 0u);
  EXPECT_LT(Stats(cache).metadata_bytes, full.metadata_bytes / 10);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
}

// A source that never gives an address twice: what is known of memory that went
// back goes as well.
TEST(SlabOutsideTest, EverNewAddressesCostNothing) {
  static std::vector<void *> kept;
  slab_options_t options = Options();
  options.source.alloc = [](void *, size_t size_bytes, size_t align_bytes) {
    void *ptr = nullptr;
    return posix_memalign(&ptr, align_bytes, size_bytes) == 0 ? ptr : nullptr;
  };
  options.source.free = [](void *, void *ptr, size_t size_bytes) {
    if (size_bytes == SLAB_GRANULE_BYTES) {
      kept.push_back(ptr);
    } else {
      free(ptr);
    }
  };
  slab_cache_t *cache = slab_cache_create(&options);
  size_t first_bytes = 0;
  for (int round = 0; round < 100; ++round) {
    const std::vector<void *> objects = AllocMany(cache, 2000);
    ASSERT_STREQ(slab_check(cache), nullptr);
    slab_free_bulk(cache, objects.size(), objects.data());
    slab_reap(cache);
    if (round == 0) {
      first_bytes = Stats(cache).metadata_bytes;
    }
  }
  EXPECT_EQ(Stats(cache).metadata_bytes, first_bytes);
  EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
  EXPECT_GE(kept.size(), 200u);
  for (void *ptr : kept) {
    free(ptr);
  }
}

}  // namespace
