// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Objects outside of a range: when that is full, was refused, or the memory is
// the caller's.

#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/range_testing.h"
#include "slab/slab.h"
#include "slab/slab_internal.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::Address;
using slab_testing::CacheModel;
using slab_testing::FakeSource;
using slab_testing::Options;
using slab_testing::Stats;

using SlabOutsideTest = slab_testing::RangeTest;

// Of so much, a range gets some MiB.
constexpr size_t kScarce = 80 << 20;

TEST_F(SlabOutsideTest, ObjectsThatTheRangeHasNoRoomForAreOutside) {
  Limit(kScarce);
  Create(Options(1000));
  std::vector<void *> objects = AllocMany(20000);
  const auto num_in_range =
      std::count_if(objects.begin(), objects.end(),
                    [&](void *object) { return IsInRange(object); });
  EXPECT_GT(num_in_range, 1000);
  EXPECT_LT(num_in_range, 10000);
  EXPECT_STREQ(slab_check(cache_), nullptr);
  std::shuffle(objects.begin(), objects.end(), std::mt19937(1));
  for (void *object : objects) {
    slab_free(cache_, object);
  }
  EXPECT_STREQ(slab_check(cache_), nullptr);
  slab_reap(cache_);
  EXPECT_EQ(Stats(cache_).num_slabs, 0u);
}

TEST_F(SlabOutsideTest, ModelInAndOutsideOfTheRange) {
  const uint64_t seed = slab_testing::Seed();
  for (size_t range_bytes : {size_t{0}, kScarce}) {
    Limit(range_bytes);
    for (size_t size : {40, 3000}) {
      CacheModel model(Options(size));
      std::mt19937_64 random(seed);
      for (int i = 0; i < 4000; ++i) {
        const bool grows = i / 1000 % 2 == 0;
        if (random() % 100 < (grows ? 80u : 20u)) {
          model.AllocBulk(random() % 10);
        } else {
          model.FreeBulk(random(), random() % 10);
        }
        model.Free(random());
        model.Alloc();
        if (i % 400 == 0) {
          model.Reap();
          model.Check();
        }
      }
    }
  }
}

TEST_F(SlabOutsideTest, MisuseOutsideOfTheRangeDies) {
  Limit(0);
  Create(Options(48));
  EXPECT_EQ(cache_->fast.limit_bytes, 0u);
  auto *object = static_cast<char *>(slab_alloc(cache_));
  auto free_twice = [&](ptrdiff_t offset) {
    slab_free(cache_, object);
    slab_free(cache_, object + offset);
  };
  EXPECT_EXIT(free_twice(0), testing::KilledBySignal(SIGABRT),
              "^slab: slab_free: double free");
  EXPECT_EXIT(free_twice(1), testing::KilledBySignal(SIGABRT),
              "not the start of its object");
  EXPECT_EXIT(free_twice(4800), testing::KilledBySignal(SIGABRT),
              "never allocated");
  EXPECT_EXIT(free_twice(1 << 24), testing::KilledBySignal(SIGABRT),
              "no object of any cache");
  slab_free(cache_, object);
}

// ---- a source of the caller's ----

TEST_F(SlabOutsideTest, MemoryThatTheSourceReturnsAgainIsANewSlab) {
  static void *block;
  block = nullptr;
  slab_options_t options = Options(64);
  options.source.alloc = [](void *, size_t size_bytes, size_t align_bytes) {
    void *ptr = nullptr;
    if (size_bytes == 65536 && block != nullptr) {
      std::swap(ptr, block);
      return ptr;
    }
    return posix_memalign(&ptr, align_bytes, size_bytes) == 0 ? ptr : nullptr;
  };
  options.source.free = [](void *, void *ptr, size_t size_bytes) {
    if (size_bytes == 65536) {
      std::swap(ptr, block);
    }
    std::free(ptr);
  };
  Create(options);
  void *object = slab_alloc(cache_);
  for (int round = 0; round < 3; ++round) {
    slab_free(cache_, object);
    EXPECT_EQ(slab_reap(cache_), 65536u);
    EXPECT_EQ(slab_state_at(cache_, Address(object)), nullptr);
    ASSERT_EQ(slab_alloc(cache_), object);
    EXPECT_EQ(*slab_state_at(cache_, Address(object)), SLAB_STATE_LIVE);
    EXPECT_STREQ(slab_check(cache_), nullptr);
  }
  slab_free(cache_, object);
  slab_reap(cache_);
  EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
  cache_ = nullptr;
  std::free(block);
}

TEST_F(SlabOutsideTest, SourceWhoseMemoryIsNotAlignedDies) {
  slab_options_t options = Options(64);
  static FakeSource source;
  options.source = source.Get();
  static slab_source_t real;
  real = options.source;
  options.source.alloc = [](void *context, size_t size_bytes,
                            size_t align_bytes) -> void * {
    if (size_bytes < 65536) {
      return real.alloc(context, size_bytes, align_bytes);
    }
    return static_cast<char *>(
               real.alloc(context, size_bytes + align_bytes, align_bytes)) +
           64;
  };
  Create(options);
  EXPECT_EXIT(slab_free(cache_, slab_alloc(cache_)),
              testing::KilledBySignal(SIGABRT),
              "^slab: slab_alloc: the source's memory is not aligned as asked");
}

TEST_F(SlabOutsideTest, SourceThatReturnsMemoryInUseDies) {
  static void *block;
  block = nullptr;
  slab_options_t options = Options(64);
  options.source.alloc = [](void *, size_t size_bytes, size_t align_bytes) {
    void *ptr = nullptr;
    if (size_bytes == 65536 && block != nullptr) {
      return block;
    }
    ptr = posix_memalign(&ptr, align_bytes, size_bytes) == 0 ? ptr : nullptr;
    block = size_bytes == 65536 ? ptr : block;
    return ptr;
  };
  options.source.free = [](void *, void *ptr, size_t) {
    std::free(ptr);
  };
  Create(options);
  EXPECT_EXIT(
      for (int i = 0; i < 2000; ++i) {
        static_cast<void>(*static_cast<volatile char *>(slab_alloc(cache_)));
      },
      testing::KilledBySignal(SIGABRT),
      "^slab: slab_alloc: the source returned memory that is in use");
}

// One thread frees and allocates objects that it has had from the beginning
// while another one makes the table grow: never a report, never a fault.
TEST_F(SlabOutsideTest, FreesGoOnWhileTheTableIsReplaced) {
  for (int round = 0; round < 10; ++round) {
    Limit(0);
    Create(Options(1 << 14));
    std::vector<void *> mine = AllocMany(64);
    std::atomic<bool> end{false};
    std::thread other([&] {
      while (!end) {
        for (void *&object : mine) {
          slab_free(cache_, object);
          object = slab_alloc(cache_);
        }
        std::this_thread::yield();
      }
      FreeAll(mine);
    });
    std::vector<void *> objects;
    while (cache_->num_outside < 200) {
      objects.push_back(slab_alloc(cache_));
    }
    end = true;
    other.join();
    FreeAll(objects);
    TearDown();
    cache_ = nullptr;
  }
}

}  // namespace
