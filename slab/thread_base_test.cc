// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Threads' regions, which hold their magazines. The first thread that uses a
// cache has the static one, so no test in here does so from the main thread,
// which would keep it.

#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "slab/slab.h"
#include "slab/slab_internal.h"
#include "slab/slab_testing.h"

namespace {

using slab_testing::Options;
using slab_testing::Stats;

constexpr size_t kRegionBytes = SLAB_MAGAZINE_IDS * sizeof(slab_magazine_t);

std::atomic<int> num_mapped;  // Regions, so far.
std::atomic<int> num_unmapped;

void *CountingMap(size_t size_bytes) {
  num_mapped += size_bytes >= kRegionBytes ? 1 : 0;
  return slab_kernel_default.map(size_bytes);
}

void CountingUnmap(void *ptr, size_t size_bytes) {
  // A cache's range is longer.
  const bool is_region =
      size_bytes >= kRegionBytes && size_bytes < 2 * kRegionBytes;
  num_unmapped += is_region ? 1 : 0;
  slab_kernel_default.unmap(ptr, size_bytes);
}

class SlabThreadBaseTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_FALSE(slab_thread_exists());
    num_mapped = 0;
    num_unmapped = 0;
    kernel_ = slab_kernel_default;
    kernel_.map = CountingMap;
    kernel_.unmap = CountingUnmap;
    slab_kernel = &kernel_;
    const slab_options_t options = Options();
    cache_ = slab_cache_create(&options);
    ASSERT_NE(cache_, nullptr);
  }
  void TearDown() override {
    EXPECT_STREQ(slab_check(cache_), nullptr);
    EXPECT_EQ(slab_cache_destroy(cache_, 0), 0);
    slab_kernel = &slab_kernel_default;
  }

  slab_kernel_t kernel_;
  slab_cache_t *cache_ = nullptr;
};

TEST_F(SlabThreadBaseTest, ThreadsInTurnMapNothing) {
  for (int i = 0; i < 5; ++i) {
    std::thread([&] { slab_free(cache_, slab_alloc(cache_)); }).join();
  }
  EXPECT_EQ(num_mapped, 0);
  EXPECT_EQ(num_unmapped, 0);
  EXPECT_EQ(Stats(cache_).num_allocs, 5u);
}

TEST_F(SlabThreadBaseTest, RegionsOfThreadsThatExitedAreUnmapped) {
  constexpr int kThreads = 4;
  for (int round = 1; round <= 3; ++round) {
    std::atomic<int> num_ready{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&] {
        slab_free(cache_, slab_alloc(cache_));
        ++num_ready;
        while (num_ready != kThreads) {
          std::this_thread::yield();
        }
      });
    }
    for (std::thread &thread : threads) {
      thread.join();
    }
    // One of them had the static one.
    EXPECT_EQ(num_mapped, round * (kThreads - 1));
    EXPECT_EQ(num_unmapped, num_mapped);
  }
}

}  // namespace
