// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// One thread and one cache: making it, every call in normal use and at its
// limits, and the model test.

#include "slab/slab.h"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab_inline.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::AllocMany;
using slab_testing::CacheModel;
using slab_testing::FakeSource;
using slab_testing::Options;
using slab_testing::Seed;
using slab_testing::Stats;

constexpr size_t kObjectBytes = 64;

class SlabTest : public testing::Test {
 protected:
  void TearDown() override {
    if (cache_ != nullptr) {
      EXPECT_STREQ(slab_check(cache_), nullptr);
      EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
    }
  }

  void Create(const slab_options_t &options) {
    cache_ = slab_cache_create(&options);
    ASSERT_NE(cache_, nullptr);
  }

  FakeSource source_;
  slab_cache_t *cache_ = nullptr;
};

// ---- lifecycle, bad arguments ----

TEST_F(SlabTest, DestroyOfNullIsANoOp) {
  EXPECT_EQ(slab_cache_destroy(nullptr, 0), 0);
}

TEST_F(SlabTest, CreateRefusesBadOptions) {
  std::vector<slab_options_t> bad(10, Options());
  bad[0].object_bytes = 0;
  bad[1].object_bytes = SLAB_OBJECT_BYTES_MAX + 1;
  bad[2].align_bytes = 48;
  bad[3].align_bytes = 2 * SLAB_ALIGN_BYTES_MAX;
  bad[4].flags = 1u << 20;
  bad[5].source.alloc = [](void *, size_t, size_t) -> void * {
    return nullptr;
  };
  char small[512];
  bad[6].buffer = small;
  bad[6].buffer_bytes = sizeof(small);
  bad[7].object_bytes = SIZE_MAX;
  // A buffer that goes beyond the end of the address space.
  bad[8].buffer = small;
  bad[8].buffer_bytes = SIZE_MAX;
  bad[9].buffer = small;
  for (const slab_options_t &options : bad) {
    errno = 0;
    EXPECT_EQ(slab_cache_create(&options), nullptr);
    EXPECT_EQ(errno, EINVAL);
  }
}

TEST_F(SlabTest, NamesAreCut) {
  slab_options_t options = Options();
  const std::string name(100, 'x');
  options.name = name.c_str();
  Create(options);
  void *object = slab_alloc(cache_);
  testing::internal::CaptureStderr();
  EXPECT_EQ(slab_cache_destroy(cache_, 0), -EBUSY);
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_NE(text.find("\"" + std::string(SLAB_NAME_BYTES_MAX, 'x') + "\""),
            std::string::npos)
      << text;
  slab_free(cache_, object);
}

std::string Hex(const void *address) {
  std::ostringstream text;
  text << "0x" << std::hex << reinterpret_cast<uintptr_t>(address);
  return text.str();
}

TEST_F(SlabTest, DestroyNamesLiveObjectsAndRefuses) {
  Create(Options());
  std::vector<void *> objects = AllocMany(cache_, 10);
  testing::internal::CaptureStderr();
  EXPECT_EQ(slab_cache_destroy(cache_, 0), -EBUSY);
  std::string expected =
      "slab: slab_cache_destroy: 10 live objects of 64 bytes in cache "
      "\"test\": ";
  std::sort(objects.begin(), objects.end());
  for (size_t i = 0; i < 8; ++i) {
    expected += Hex(objects[i]) + ", ";
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), expected + "...\n");
  // It is as before.
  void *object = slab_alloc(cache_);
  EXPECT_NE(object, nullptr);
  slab_free(cache_, object);
  for (void *ptr : objects) {
    slab_free(cache_, ptr);
  }
}

// Two objects that are not next to each other, neither the first nor the last.
TEST_F(SlabTest, DestroyNamesNoOtherObjects) {
  Create(Options());
  std::vector<void *> objects = AllocMany(cache_, 100);
  std::vector<void *> live = {objects[20], objects[70]};
  std::sort(live.begin(), live.end());
  for (void *object : objects) {
    if (object != live[0] && object != live[1]) {
      slab_free(cache_, object);
    }
  }
  testing::internal::CaptureStderr();
  EXPECT_EQ(slab_cache_destroy(cache_, 0), -EBUSY);
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "slab: slab_cache_destroy: 2 live objects of 64 bytes in cache "
            "\"test\": " +
                Hex(live[0]) + ", " + Hex(live[1]) + "\n");
  slab_free_bulk(cache_, live.size(), live.data());
}

TEST_F(SlabTest, DestroyTakesLiveObjectsIfAsked) {
  slab_options_t options = Options();
  static int num_constructed;
  static int num_destructed;
  num_constructed = 0;
  num_destructed = 0;
  options.construct = [](void *, void *) {
    ++num_constructed;
  };
  options.destruct = [](void *, void *) {
    ++num_destructed;
  };
  slab_cache_t *cache = slab_cache_create(&options);
  AllocMany(cache, 3);
  slab_free(cache, slab_alloc(cache));
  testing::internal::CaptureStderr();
  EXPECT_EQ(slab_cache_destroy(cache, SLAB_DESTROY_LIVE | SLAB_DESTROY_QUIET),
            0);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  // Those cached or in the slab that were never handed out as well.
  EXPECT_GE(num_constructed, 4);
  EXPECT_EQ(num_destructed, num_constructed);
}

// ---- normal use ----

TEST_F(SlabTest, ObjectsAreApartAndAligned) {
  for (size_t align : {1, 2, 8, 64, 4096, 65536, 1 << 20}) {
    for (size_t size : {1, 2, 3, 7, 8, 24, 64, 100, 4096, 5000, 100000}) {
      CacheModel model(Options(size, align));
      for (int i = 0; i < 40; ++i) {
        ASSERT_TRUE(model.Alloc());
      }
      model.Check();
    }
  }
}

TEST_F(SlabTest, DefaultAlignmentFitsAnyTypeOfTheSize) {
  for (size_t size : {1, 2, 4, 6, 8, 12, 16, 24, 48, 64, 80}) {
    Create(Options(size));
    size_t align = size & -size;
    align = align > 16 ? 16 : align;
    for (void *object : AllocMany(cache_, 20)) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(object) % align, 0u);
      slab_free(cache_, object);
    }
    EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
    cache_ = nullptr;
  }
}

TEST_F(SlabTest, LargestObjects) {
  CacheModel model(Options(SLAB_OBJECT_BYTES_MAX));
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(model.Alloc());
  }
  model.Check();
  model.Free(3);
  ASSERT_TRUE(model.AllocZeroed());
}

TEST_F(SlabTest, FreeOfNullIsANoOp) {
  Create(Options());
  slab_free(cache_, nullptr);
  slab_free_inline(cache_, nullptr);
  slab_free_bulk(cache_, 0, nullptr);
}

TEST_F(SlabTest, ObjectFreedLastIsAllocatedFirst) {
  Create(Options());
  std::vector<void *> objects = AllocMany(cache_, 3);
  slab_free(cache_, objects[1]);
  EXPECT_EQ(slab_alloc(cache_), objects[1]);
  for (void *object : objects) {
    slab_free(cache_, object);
  }
}

TEST_F(SlabTest, InlineAndCalledFunctionsMix) {
  Create(Options());
  std::set<void *> objects;
  for (int i = 0; i < 1000; ++i) {
    objects.insert(i % 2 == 0 ? slab_alloc(cache_) : slab_alloc_inline(cache_));
  }
  EXPECT_EQ(objects.size(), 1000u);
  int i = 0;
  for (void *object : objects) {
    if (i++ % 3 == 0) {
      slab_free(cache_, object);
    } else {
      slab_free_inline(cache_, object);
    }
  }
  EXPECT_EQ(Stats(cache_).num_live, 0u);
}

TEST_F(SlabTest, ZeroedIsZero) {
  CacheModel model(Options(100));
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 100; ++i) {
      ASSERT_TRUE(model.AllocZeroed());
    }
    model.FreeAll();
  }
}

TEST_F(SlabTest, ZeroedIsRefusedWithAConstructor) {
  slab_options_t options = Options();
  options.construct = [](void *, void *) {
  };
  Create(options);
  errno = 0;
  EXPECT_EQ(slab_alloc_zeroed(cache_), nullptr);
  EXPECT_EQ(errno, EINVAL);
}

// ---- constructor, destructor ----

struct Lives {
  std::set<void *> constructed;
};

slab_options_t CountingOptions(Lives *lives) {
  slab_options_t options = Options();
  options.context = lives;
  options.construct = [](void *object, void *context) {
    EXPECT_TRUE(
        static_cast<Lives *>(context)->constructed.insert(object).second);
    memset(object, 0x11, kObjectBytes);
  };
  options.destruct = [](void *object, void *context) {
    EXPECT_EQ(static_cast<Lives *>(context)->constructed.erase(object), 1u);
    EXPECT_EQ(*static_cast<unsigned char *>(object), 0x22);
  };
  return options;
}

TEST_F(SlabTest, ObjectsAreConstructedOnceAndStaySo) {
  static Lives lives;
  Create(CountingOptions(&lives));
  std::set<void *> seen;
  for (int round = 0; round < 5; ++round) {
    std::vector<void *> objects = AllocMany(cache_, 3000);
    for (void *object : objects) {
      const bool is_new = seen.insert(object).second;
      EXPECT_EQ(*static_cast<unsigned char *>(object), is_new ? 0x11 : 0x22);
      EXPECT_EQ(lives.constructed.count(object), 1u);
      memset(object, 0x22, kObjectBytes);
    }
    for (void *object : objects) {
      slab_free(cache_, object);
    }
  }
  // Some are cached that were never handed out; they were never used either.
  for (void *object : lives.constructed) {
    memset(object, 0x22, kObjectBytes);
  }
  slab_reap(cache_);
  EXPECT_TRUE(lives.constructed.empty());
}

// ---- bulk ----

TEST_F(SlabTest, BulkGivesAndTakesAny) {
  CacheModel model(Options());
  for (size_t count : {0, 1, 2, 63, 64, 65, 1000, 20000}) {
    ASSERT_TRUE(model.AllocBulk(count));
    model.Check();
    model.FreeBulk(1, count / 2);
    model.Check();
  }
}

TEST_F(SlabTest, BulkThatFailsAllocatesNone) {
  slab_options_t options = Options();
  options.max_objects = 100;
  CacheModel model(options);
  ASSERT_TRUE(model.AllocBulk(60));
  EXPECT_FALSE(model.AllocBulk(41));
  model.Check();
  EXPECT_EQ(model.num_live(), 60u);
  EXPECT_TRUE(model.AllocBulk(40));
}

// ---- looking at it ----

TEST_F(SlabTest, WalkStopsWhenAsked) {
  Create(Options());
  std::vector<void *> objects = AllocMany(cache_, 10);
  int num_seen = 0;
  EXPECT_FALSE(slab_walk(
      cache_,
      [](void *context, void *) { return ++*static_cast<int *>(context) < 4; },
      &num_seen));
  EXPECT_EQ(num_seen, 4);
  for (void *object : objects) {
    slab_free(cache_, object);
  }
}

TEST_F(SlabTest, StatsCount) {
  Create(Options(60));
  slab_stats_t stats = Stats(cache_);
  EXPECT_EQ(stats.object_bytes, 60u);
  EXPECT_EQ(stats.stride_bytes, 60u);
  EXPECT_EQ(stats.num_live + stats.num_cached + stats.num_free, 0u);
  EXPECT_EQ(stats.hit_rate, 1.0);
  for (int i = 0; i < 1000; ++i) {
    slab_free(cache_, slab_alloc(cache_));
  }
  void *object = slab_alloc(cache_);
  stats = Stats(cache_);
  EXPECT_EQ(stats.num_live, 1u);
  EXPECT_EQ(stats.num_allocs, 1001u);
  EXPECT_EQ(stats.num_refills, 1u);
  EXPECT_GT(stats.hit_rate, 0.99);
  EXPECT_EQ(stats.num_slabs, 1u);
  EXPECT_EQ(stats.capacity, stats.num_free + stats.num_cached + 1);
  EXPECT_EQ(stats.waste_bytes + stats.capacity * 60, stats.slab_bytes);
  EXPECT_GT(stats.metadata_bytes, 0u);
  slab_free(cache_, object);
}

TEST_F(SlabTest, MagazineGrowsToTheWorkingSet) {
  Create(Options());
  for (int round = 0; round < 20; ++round) {
    for (void *object : AllocMany(cache_, 5000)) {
      slab_free(cache_, object);
    }
  }
  const uint64_t refills = Stats(cache_).num_refills;
  for (void *object : AllocMany(cache_, 5000)) {
    slab_free(cache_, object);
  }
  EXPECT_EQ(Stats(cache_).num_refills, refills);
}

// Lines of 64 bytes, the first ones of objects of a page each: not all of them
// go to the same sets of a processor's cache.
TEST_F(SlabTest, FirstLinesOfLargeObjectsHaveDifferentColors) {
  for (const bool has_source : {false, true}) {
    slab_options_t options = Options(has_source ? 1024 : 4096);
    if (has_source) {
      options.source = source_.Get();
    }
    Create(options);
    std::set<uintptr_t> colors;
    for (void *object : AllocMany(cache_, 2000)) {
      colors.insert(reinterpret_cast<uintptr_t>(object) % options.object_bytes);
      slab_free(cache_, object);
    }
    EXPECT_GE(colors.size(), has_source ? 4u : 60u);
    EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
    cache_ = nullptr;
  }
}

TEST_F(SlabTest, ManyCachesHaveTheirOwnMagazinesOrNone) {
  const slab_options_t options = Options();
  std::vector<slab_cache_t *> caches;
  std::vector<void *> objects;
  for (int i = 0; i < 4200; ++i) {
    caches.push_back(slab_cache_create(&options));
    ASSERT_NE(caches.back(), nullptr);
    objects.push_back(slab_alloc(caches.back()));
    ASSERT_NE(objects.back(), nullptr);
  }
  for (size_t i = 0; i < caches.size(); ++i) {
    slab_free(caches[i], objects[i]);
    EXPECT_STREQ(slab_check(caches[i]), nullptr);
    EXPECT_EQ(slab_cache_destroy(caches[i], 0), 0);
  }
}

// ---- model ----

void RunModel(const slab_options_t &options, uint64_t seed, int num_steps,
              size_t max_live) {
  CacheModel model(options);
  std::mt19937_64 random(seed);
  for (int i = 0; i < num_steps; ++i) {
    const uint64_t dice = random() % 100;
    const bool grows = i / 700 % 2 == 0;
    if (dice < (grows ? 60 : 30)) {
      if (model.num_live() < max_live) {
        model.Alloc();
      }
    } else if (dice < 90) {
      model.Free(random());
    } else if (dice < 93 && model.num_live() < max_live) {
      model.AllocBulk(random() % 200);
    } else if (dice < 97) {
      model.FreeBulk(random(), random() % 200);
    } else if (dice < 98 && options.construct == nullptr) {
      model.AllocZeroed();
    } else if (dice < 99 && i % 7 == 0) {
      model.Reap();
    }
    if (i % 97 == 0) {
      model.Check();
    }
  }
}

TEST_F(SlabTest, ModelOfEverySize) {
  const uint64_t seed = Seed();
  for (size_t size :
       {1, 2, 3, 8, 16, 24, 33, 64, 100, 128, 1000, 4096, 70000}) {
    for (unsigned flags :
         {0u, unsigned{SLAB_NO_MAGAZINES}, unsigned{SLAB_DEBUG}}) {
      slab_options_t options = Options(size);
      options.flags = flags;
      RunModel(options, seed + size, 3000, size > 10000 ? 100 : 3000);
    }
  }
}

TEST_F(SlabTest, ModelOnASource) {
  const uint64_t seed = Seed();
  for (size_t size : {8, 48, 500}) {
    slab_options_t options = Options(size);
    options.source = source_.Get();
    RunModel(options, seed + size, 20000, 20000);
    EXPECT_EQ(source_.live_bytes(), 0u);
  }
}

TEST_F(SlabTest, ModelInABuffer) {
  const uint64_t seed = Seed();
  std::vector<char> buffer(300000);
  for (size_t size : {8, 48, 500}) {
    for (unsigned flags : {0u, unsigned{SLAB_DEBUG}}) {
      slab_options_t options = Options(size);
      options.flags = flags;
      options.buffer = buffer.data();
      options.buffer_bytes = buffer.size();
      RunModel(options, seed + size, 5000, 20000);
    }
  }
}

}  // namespace
