// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What others can use again: numbers, addresses and mappings of caches and
// threads that are gone, and the memory that a cache itself has too much of.

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
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

constexpr size_t kPageBytes = 4096;
constexpr size_t kMiB = size_t{1} << 20;

// ---- a kernel whose mappings lie where they are told to ----

constexpr size_t kAlignBytes = SLAB_GRANULE_BYTES;
// The next mappings, in turn, lie so far behind a multiple of kAlignBytes.
std::array<size_t, 2> shifts;
size_t num_maps;
size_t mapped_bytes;

void *ShiftedMap(size_t size_bytes) {
  const size_t whole_bytes =
      (size_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  auto *all = static_cast<unsigned char *>(
      slab_kernel_default.map(whole_bytes + 2 * kAlignBytes));
  if (all == nullptr) {
    return nullptr;
  }
  const size_t head_bytes =
      -reinterpret_cast<uintptr_t>(all) % kAlignBytes + shifts[num_maps++ % 2];
  if (head_bytes != 0) {
    slab_kernel_default.unmap(all, head_bytes);
  }
  slab_kernel_default.unmap(all + head_bytes + whole_bytes,
                            2 * kAlignBytes - head_bytes);
  mapped_bytes += size_bytes;
  return all + head_bytes;
}

void CountingUnmap(void *ptr, size_t size_bytes) {
  mapped_bytes -= size_bytes;
  slab_kernel_default.unmap(ptr, size_bytes);
}

// So that all objects are outside of a range.
void *RefuseToReserve(size_t) {
  return nullptr;
}

slab_kernel_t ShiftingKernel() {
  slab_kernel_t kernel = slab_kernel_default;
  kernel.map = ShiftedMap;
  kernel.unmap = CountingUnmap;
  kernel.reserve = RefuseToReserve;
  return kernel;
}

// Where threads wait for each other.
class Stages {
 public:
  void Reach(int stage) {
    stage_ = stage;
  }
  void Await(int stage) const {
    while (stage_ < stage) {
      std::this_thread::yield();
    }
  }

 private:
  std::atomic<int> stage_{0};
};

class SlabGivingBackTest : public testing::Test {
 protected:
  void TearDown() override {
    if (cache_ != nullptr) {
      Destroy();
    }
    slab_kernel = &slab_kernel_default;
  }

  void Create(const slab_options_t &options) {
    cache_ = slab_cache_create(&options);
    ASSERT_NE(cache_, nullptr);
  }
  void Destroy() {
    EXPECT_STREQ(slab_check(cache_), nullptr);
    EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
    cache_ = nullptr;
  }
  void FreeAll(const std::vector<void *> &objects) {
    slab_free_bulk(cache_, objects.size(), objects.data());
  }
  // The calling thread's.
  slab_magazine_t *Magazine() const {
    return slab_magazine_of(&cache_->fast);
  }
  void HeedAtStage2(Stages *stages, bool overflows);
  void LeaveExcessAfterAReap();

  slab_cache_t *cache_ = nullptr;
};

// ---- of threads and caches that are gone ----

TEST_F(SlabGivingBackTest, TagsOfThreadsThatExitedServeOthers) {
  Create(Options());
  size_t num_sharers = 0;
  for (int i = 0; i < 2 * SLAB_TAG_MAX; ++i) {
    std::thread([&] {
      slab_free(cache_, slab_alloc(cache_));
      num_sharers += Magazine()->traits.is_shared ? 1u : 0u;
    }).join();
  }
  EXPECT_EQ(num_sharers, 0u);
}

TEST_F(SlabGivingBackTest, NumbersOfCachesThatAreGoneServeOthers) {
  slab_options_t options = Options();
  options.max_objects = 1000;  // A short range is made quickly.
  size_t num_without = 0;
  for (int i = 0; i < SLAB_MAGAZINE_IDS + 100; ++i) {
    Create(options);
    num_without += cache_->magazine_id == 0 ? 1u : 0u;
    Destroy();
  }
  EXPECT_EQ(num_without, 0u);
}

TEST_F(SlabGivingBackTest, AddressesOfCachesThatAreGoneServeOthers) {
  Create(Options());
  const size_t length_bytes = cache_->range.length_bytes;
  ASSERT_GT(length_bytes, 0u);
  for (int round = 0; round < 8; ++round) {
    Destroy();
    Create(Options());
    EXPECT_EQ(cache_->range.length_bytes, length_bytes);
  }
}

// ---- mappings ----

TEST_F(SlabGivingBackTest, EndsOfMappingsThatAreNotAlignedGoBack) {
  const slab_kernel_t kernel = ShiftingKernel();
  auto use = [&] {
    num_maps = 0;
    mapped_bytes = 0;
    Create(Options(1000));
    slab_kernel = &kernel;
    std::vector<void *> objects = AllocMany(cache_, 1000);
    EXPECT_GE(cache_->num_outside, 15u);
    FreeAll(objects);
    Destroy();
    slab_kernel = &slab_kernel_default;
  };
  // What lasts longer than a cache, such as this thread's region, is there.
  shifts = {kPageBytes, kPageBytes};
  slab_kernel = &kernel;
  use();
  // Alone, behind each other, and at a multiple when it does not matter any
  // more.
  for (const std::array<size_t, 2> &each :
       {std::array<size_t, 2>{kPageBytes, kPageBytes},
        std::array<size_t, 2>{kAlignBytes - kPageBytes, kPageBytes},
        std::array<size_t, 2>{kPageBytes, 0}}) {
    shifts = each;
    slab_kernel = &kernel;
    use();
    EXPECT_GT(num_maps, 15u);
    EXPECT_EQ(mapped_bytes, 0u) << shifts[0] << " " << shifts[1];
  }
}

// Of the directory (range.c), 8 bytes for 64 KiB.
TEST_F(SlabGivingBackTest, ReapGivesPagesOfTheDirectoryBack) {
  Create(Options(kMiB));
  FreeAll(AllocMany(cache_, 64));
  const slab_range_t &range = cache_->range;
  ASSERT_GT(range.directory_bytes, kPageBytes);
  std::vector<unsigned char> is_resident(range.directory_bytes / kPageBytes);
  auto count_resident = [&] {
    EXPECT_EQ(
        mincore(range.directory, range.directory_bytes, is_resident.data()), 0);
    return std::count_if(is_resident.begin(), is_resident.end(),
                         [](unsigned char flags) { return flags % 2 != 0; });
  };
  EXPECT_GT(count_resident(), 0);
  slab_reap(cache_);
  EXPECT_EQ(count_resident(), 0);
}

// ---- slabs ----

TEST_F(SlabGivingBackTest, SlabsGoBackByThemselvesWithoutMagazines) {
  slab_options_t options = Options(4000);
  options.flags = SLAB_NO_MAGAZINES;
  Create(options);
  std::vector<void *> objects = AllocMany(cache_, 5000);
  EXPECT_GE(Stats(cache_).slab_bytes, 19 * kMiB);
  for (void *object : objects) {
    slab_free(cache_, object);
  }
  // 4 MiB may stay.
  EXPECT_LE(Stats(cache_).slab_bytes, 5 * kMiB);
}

// What a thread does that has something cached: after stage 2 it runs out or
// overflows, which is over at stage 3.
void SlabGivingBackTest::HeedAtStage2(Stages *stages, bool overflows) {
  std::vector<void *> objects = AllocMany(cache_, overflows ? 80 : 1);
  auto free_last = [&] {
    slab_free(cache_, objects.back());
    objects.pop_back();
  };
  while (overflows && slab_top_load(Magazine()) != Magazine()->end) {
    free_last();
  }
  stages->Reach(1);
  stages->Await(2);
  EXPECT_FALSE(objects.empty());
  if (overflows) {
    free_last();
  } else {
    EXPECT_EQ(slab_top_load(Magazine()), Magazine()->bottom);
    objects.push_back(slab_alloc(cache_));
  }
  stages->Reach(3);
  stages->Await(4);
  FreeAll(objects);
}

// Threads have a MiB each cached when there is a reap, and exit after it. Then
// there are more empty slabs than a cache keeps.
void SlabGivingBackTest::LeaveExcessAfterAReap() {
  constexpr int kThreads = 8;
  std::atomic<int> num_ready{0};
  std::atomic<bool> is_reaped{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      FreeAll(AllocMany(cache_, 60));
      ++num_ready;
      while (!is_reaped) {
        std::this_thread::yield();
      }
    });
  }
  while (num_ready != kThreads) {
    std::this_thread::yield();
  }
  slab_reap(cache_);
  is_reaped = true;
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_GT(Stats(cache_).slab_bytes, 6 * kMiB);
}

TEST_F(SlabGivingBackTest, ThreadThatHeedsAReapGivesExcessSlabsBack) {
  for (const bool overflows : {false, true}) {
    Create(Options(16 << 10));
    Stages stages;
    std::thread other([&] { HeedAtStage2(&stages, overflows); });
    stages.Await(1);
    LeaveExcessAfterAReap();
    stages.Reach(2);
    stages.Await(3);
    EXPECT_LT(Stats(cache_).slab_bytes, 5 * kMiB) << overflows;
    stages.Reach(4);
    other.join();
    Destroy();
  }
}

// When it overflows later, it gives up no more than any other one does.
TEST_F(SlabGivingBackTest, ThreadThatRunsOutHasHeededTheReap) {
  Create(Options());
  Stages stages;
  std::thread other([&] {
    std::vector<void *> objects = AllocMany(cache_, 3000);
    stages.Reach(1);
    stages.Await(2);
    slab_magazine_t *magazine = Magazine();
    const auto num_refills = magazine->num_refills;
    while (slab_top_load(magazine) != magazine->bottom) {
      objects.push_back(slab_alloc(cache_));
    }
    objects.push_back(slab_alloc(cache_));
    EXPECT_EQ(magazine->num_refills, num_refills + 1);
    while (slab_top_load(magazine) != magazine->end) {
      slab_free(cache_, objects.back());
      objects.pop_back();
    }
    const auto num_cached = slab_top_load(magazine) - magazine->bottom;
    slab_free(cache_, objects.back());
    objects.pop_back();
    EXPECT_GE(slab_top_load(magazine) - magazine->bottom, num_cached / 2);
    FreeAll(objects);
  });
  stages.Await(1);
  slab_reap(cache_);
  stages.Reach(2);
  other.join();
}

}  // namespace
