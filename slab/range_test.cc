// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The range in which a cache's objects lie: where they are in it, what goes
// back, and how long it is.

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "gtest/gtest.h"
#include "slab/range_testing.h"
#include "slab/slab.h"
#include "slab/slab_internal.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::Address;
using slab_testing::Options;
using slab_testing::Stats;

using SlabRangeTest = slab_testing::RangeTest;

TEST_F(SlabRangeTest, ObjectsAreAStrideApart) {
  for (size_t size : {1, 3, 24, 64, 1000, 70000, 1 << 20}) {
    Create(Options(size));
    const size_t stride = Stats(cache_).stride_bytes;
    std::vector<void *> objects = AllocMany(size > 10000 ? 50 : 20000);
    for (void *object : objects) {
      ASSERT_TRUE(IsInRange(object));
      ASSERT_EQ((Address(object) - cache_->fast.base) % stride, 0u);
    }
    FreeAll(objects);
    EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
    cache_ = nullptr;
  }
}

TEST_F(SlabRangeTest, LargeStridesAreALineLonger) {
  for (size_t size : {2048, 4096, 8192, 1 << 20}) {
    Create(Options(size));
    EXPECT_EQ(Stats(cache_).stride_bytes, size + 64);
    EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
  }
  // Not if that is too much, the alignment forbids it, or nobody asked for it.
  slab_options_t aligned = Options(4096);
  aligned.align_bytes = 4096;
  for (const slab_options_t &options :
       {Options(1024), Options(2056), Options(4097), aligned}) {
    Create(options);
    EXPECT_EQ(Stats(cache_).stride_bytes, options.object_bytes);
    EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
  }
  cache_ = nullptr;
}

TEST_F(SlabRangeTest, CachesStartAtDifferentLines) {
  std::vector<uintptr_t> caches;
  std::vector<uintptr_t> objects;
  std::vector<uintptr_t> states;
  for (int i = 0; i < 8; ++i) {
    Create(Options(64));
    caches.push_back(Address(cache_) % 4096);
    objects.push_back(cache_->fast.base % 4096);
    states.push_back(Address(cache_->fast.states) % 4096);
    EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
  }
  cache_ = nullptr;
  for (std::vector<uintptr_t> *lines : {&caches, &objects, &states}) {
    std::sort(lines->begin(), lines->end());
    EXPECT_EQ(std::unique(lines->begin(), lines->end()), lines->end());
  }
}

// Only the large slabs of a large cache are worth it.
TEST_F(SlabRangeTest, LargeCachesAskForHugePages) {
  static constexpr size_t kHugeBytes = size_t{2} << 20;
  static size_t num_huge;
  num_huge = 0;
  slab_kernel_t kernel = slab_kernel_default;
  kernel.advise_huge = [](void *ptr, size_t size_bytes) {
    EXPECT_EQ(Address(ptr) % kHugeBytes, 0u);
    EXPECT_EQ(size_bytes, kHugeBytes);
    ++num_huge;
  };
  slab_kernel = &kernel;
  Create(Options(1000));
  std::vector<void *> objects = AllocMany(6000);
  EXPECT_EQ(num_huge, 0u);
  std::vector<void *> more = AllocMany(10000);
  EXPECT_GE(num_huge, 2u);
  FreeAll(objects);
  FreeAll(more);
  TearDown();
  cache_ = nullptr;
}

TEST_F(SlabRangeTest, AddressesOfSlabsThatWentBackAreUsedAgainLowestFirst) {
  Create(Options(1000));
  std::vector<void *> objects = AllocMany(10000);
  const size_t next_bytes = cache_->range.next_bytes;
  void *lowest = *std::min_element(objects.begin(), objects.end());
  for (int round = 0; round < 3; ++round) {
    FreeAll(objects);
    slab_reap(cache_);
    EXPECT_EQ(Stats(cache_).slab_bytes, 0u);
    EXPECT_EQ(cache_->range.next_bytes, 0u);
    EXPECT_STREQ(slab_check(cache_), nullptr);
    objects = AllocMany(10000);
    EXPECT_STREQ(slab_check(cache_), nullptr);
    EXPECT_EQ(cache_->range.next_bytes, next_bytes);
    EXPECT_EQ(*std::min_element(objects.begin(), objects.end()), lowest);
  }
  FreeAll(objects);
}

TEST_F(SlabRangeTest, HolesAreFilledBeforeTheRangeIsUsedFurther) {
  Create(Options(1000));
  std::vector<void *> objects = AllocMany(10000);
  std::sort(objects.begin(), objects.end());
  const size_t next_bytes = cache_->range.next_bytes;
  // All but the first and the last one.
  const std::vector<void *> inner(objects.begin() + 1, objects.end() - 1);
  FreeAll(inner);
  EXPECT_GT(slab_reap(cache_), 0u);
  EXPECT_EQ(cache_->range.next_bytes, next_bytes);
  EXPECT_GT(cache_->range.num_retired, 2u);
  EXPECT_STREQ(slab_check(cache_), nullptr);
  const std::vector<void *> again = AllocMany(inner.size());
  EXPECT_EQ(cache_->range.next_bytes, next_bytes);
  EXPECT_LE(cache_->range.num_retired, 1u);
  FreeAll(again);
  FreeAll({objects.front(), objects.back()});
}

TEST_F(SlabRangeTest, StatesOfSlabsThatWentBackAreOfNoObject) {
  // Odd, so that slabs share words and pages of states.
  Create(Options(3));
  std::vector<void *> objects = AllocMany(500000);
  std::sort(objects.begin(), objects.end());
  // Every other slab goes.
  std::vector<void *> kept;
  std::vector<void *> gone;
  for (void *object : objects) {
    const slab_t *slab = slab_range_find(cache_, Address(object));
    const bool is_kept = slab->memory_bytes == 65536 &&
                         (Address(slab_memory_of(slab)) >> 16) % 2 == 0;
    (is_kept ? kept : gone).push_back(object);
  }
  ASSERT_FALSE(kept.empty());
  ASSERT_FALSE(gone.empty());
  FreeAll(gone);
  EXPECT_GT(slab_reap(cache_), 0u);
  EXPECT_STREQ(slab_check(cache_), nullptr);
  for (void *object : kept) {
    ASSERT_EQ(*slab_state_at(cache_, Address(object)), SLAB_STATE_LIVE);
  }
  for (void *object : gone) {
    const slab_t *slab = slab_range_find(cache_, Address(object));
    if (slab == nullptr || slab->list == SLAB_LIST_RETIRED) {
      ASSERT_EQ(*slab_state_at(cache_, Address(object)), SLAB_STATE_UNUSED);
    }
  }
  FreeAll(kept);
}

TEST_F(SlabRangeTest, StatesArePagesThatGoBack) {
  Create(Options(2));
  std::vector<void *> objects = AllocMany(3000000);
  const uint8_t *states = cache_->fast.states;
  FreeAll(objects);
  slab_reap(cache_);
  // Whatever page of states is resident would be counted here.
  FILE *file = std::fopen("/proc/self/smaps", "r");
  ASSERT_NE(file, nullptr);
  char line[512];
  size_t resident_kib = SIZE_MAX;
  bool is_there = false;
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    unsigned long from = 0;
    unsigned long to = 0;
    if (std::sscanf(line, "%lx-%lx ", &from, &to) == 2) {
      is_there = from <= Address(states) && Address(states) < to;
    }
    unsigned long kib = 0;
    if (is_there && std::sscanf(line, "Private_Dirty: %lu kB", &kib) == 1) {
      resident_kib = kib;
    }
  }
  std::fclose(file);
  EXPECT_LE(resident_kib, 8u);
}

// ---- how much of the address space ----

TEST_F(SlabRangeTest, RefusedRangeIsAPartOfWhatIsGranted) {
  Limit(100 << 20);
  Create(Options(64));
  EXPECT_GT(num_refused_, 0u);
  EXPECT_LT(refused_bytes_least_, size_t{210} << 20);
  EXPECT_GT(cache_->range.length_bytes, size_t{2} << 20);
  EXPECT_LT(cache_->range.length_bytes, size_t{8} << 20);
}

// Limits are of the process: each of these is a child.
void InChild(const std::function<int()> &body) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    _exit(body());
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

size_t AddressSpaceBytes() {
  unsigned long pages = 0;
  FILE *file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr || std::fscanf(file, "%lu", &pages) != 1) {
    std::abort();
  }
  std::fclose(file);
  return pages * 4096;
}

// As with `ulimit -v`: caches work, and leave most of it to others.
TEST_F(SlabRangeTest, LimitOfTheAddressSpaceIsShared) {
  if (AddressSpaceBytes() > size_t{1} << 40) {
    GTEST_SKIP() << "A sanitizer has most of it.";
  }
  InChild([] {
    const size_t before = AddressSpaceBytes();
    const size_t limit = size_t{256} << 20;
    const rlimit limits = {before + limit, before + limit};
    if (setrlimit(RLIMIT_AS, &limits) != 0) {
      return 1;
    }
    std::vector<slab_cache_t *> caches;
    for (int i = 0; i < 100; ++i) {
      const slab_options_t options = Options(64);
      caches.push_back(slab_cache_create(&options));
      if (caches.back() == nullptr || slab_alloc(caches.back()) == nullptr) {
        return 2;
      }
    }
    if (AddressSpaceBytes() - before > limit * 3 / 4) {
      return 3;
    }
    // More than the range of the first has room for.
    for (int i = 0; i < 1000000; ++i) {
      if (slab_alloc(caches[0]) == nullptr) {
        return 4;
      }
    }
    for (slab_cache_t *cache : caches) {
      if (slab_check(cache) != nullptr ||
          slab_cache_destroy(cache, SLAB_DESTROY_LIVE | SLAB_DESTROY_QUIET) !=
              0) {
        return 5;
      }
    }
    return 0;
  });
}

TEST_F(SlabRangeTest, AllOfTheAddressSpaceIsNoCrash) {
  InChild([] {
    const size_t limit = AddressSpaceBytes() + (size_t{64} << 20);
    const rlimit limits = {limit, limit};
    if (setrlimit(RLIMIT_AS, &limits) != 0) {
      return 1;
    }
    const slab_options_t options = Options(1000);
    slab_cache_t *cache = slab_cache_create(&options);
    size_t count = 0;
    while (cache != nullptr && slab_alloc(cache) != nullptr) {
      ++count;
    }
    if (count < 16 << 10 || slab_check(cache) != nullptr) {
      return 2;
    }
    return slab_cache_destroy(cache, SLAB_DESTROY_LIVE | SLAB_DESTROY_QUIET);
  });
}

// What may be written is limited, not addresses.
TEST_F(SlabRangeTest, LimitOfDataIsNoMemory) {
  if (AddressSpaceBytes() > size_t{1} << 40) {
    GTEST_SKIP() << "A sanitizer has most of it.";
  }
  InChild([] {
    const rlimit limits = {size_t{64} << 20, size_t{64} << 20};
    if (setrlimit(RLIMIT_DATA, &limits) != 0) {
      return 1;
    }
    const slab_options_t options = Options(1000);
    slab_cache_t *cache = slab_cache_create(&options);
    for (int round = 0; round < 2; ++round) {
      static void *objects[1 << 17];
      size_t count = 0;
      while ((objects[count] = slab_alloc(cache)) != nullptr) {
        ++count;
      }
      if (errno != ENOMEM || count < 8 << 10 || count > 64 << 10) {
        return 2;
      }
      slab_free_bulk(cache, count, objects);
      slab_reap(cache);
      if (slab_check(cache) != nullptr) {
        return 3;
      }
    }
    return slab_cache_destroy(cache, 0);
  });
}

TEST_F(SlabRangeTest, ThousandsOfCachesShareTheAddresses) {
  if (AddressSpaceBytes() > size_t{1} << 40) {
    GTEST_SKIP() << "A sanitizer has most of it.";
  }
  const size_t before = AddressSpaceBytes();
  std::vector<slab_cache_t *> caches;
  for (int i = 0; i < 4000; ++i) {
    const slab_options_t options = Options(64);
    caches.push_back(slab_cache_create(&options));
    ASSERT_NE(caches.back(), nullptr);
  }
  EXPECT_GT(caches[0]->range.length_bytes, size_t{60} << 30);
  EXPECT_GT(caches[999]->range.length_bytes, size_t{8} << 30);
  EXPECT_GT(caches[3999]->range.length_bytes, size_t{16} << 20);
  EXPECT_LT(AddressSpaceBytes() - before, size_t{33} << 40);
  for (slab_cache_t *cache : caches) {
    EXPECT_EQ(slab_cache_destroy(cache, 0), 0);
  }
  EXPECT_LT(AddressSpaceBytes(), before + (size_t{1} << 30));
}

}  // namespace
