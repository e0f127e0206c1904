// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A heap that grows, and blocks that do.

#include "shmipc/block.h"

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/block_testing.h"

namespace {

using shmipc_testing::BackendName;
using shmipc_testing::Backends;
using shmipc_testing::kPage;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::TestRegion;

class BlockGrowthTest : public shmipc_testing::HeapTest {};

INSTANTIATE_TEST_SUITE_P(All, BlockGrowthTest, testing::ValuesIn(Backends()),
                         BackendName);

TEST_P(BlockGrowthTest, GrowsToItsCapacityAndNoFurther) {
  if (GetParam() == SHMIPC_SYSV) {
    GTEST_SKIP() << "does not grow";
  }
  TestRegion grows(GetParam(), 4096, [](auto *o) {
    o->heap_bytes = kPage;
    o->heap_capacity_bytes = 100 * kPage;
  });
  shmipc_region_t *region = grows.region();
  shmipc_region_t *second = grows.Attach();
  shmipc_heap_stats_t stats;
  ASSERT_EQ(shmipc_heap_stats_get(region, &stats), 0);
  EXPECT_EQ(stats.heap_bytes, kPage);
  EXPECT_EQ(stats.capacity_bytes, 100 * kPage);
  std::vector<shmipc_ref_t> refs;
  while (void *block = shmipc_block_alloc(region, 1024)) {
    memset(block, 1, 1024);
    refs.push_back(shmipc_ref_of(region, block));
  }
  EXPECT_EQ(refs.size(), 100u * 63);
  // The other one had mapped the first page only.
  for (shmipc_ref_t ref : refs) {
    void *block = shmipc_block_get(second, ref, 1024);
    ASSERT_NE(block, nullptr);
    ASSERT_EQ(shmipc_block_free(second, block), 0);
  }
  EXPECT_EQ(shmipc_heap_trim(region), 100);
  // Nobody has them: a run of all.
  void *all = shmipc_block_alloc(second, 100 * kPage);
  EXPECT_NE(all, nullptr);
  EXPECT_EQ(shmipc_block_free(second, all), 0);
  EXPECT_EQ(Problems(region), "");
  EXPECT_EQ(Problems(second), "");
  shmipc_region_close(second);
}

TEST_P(BlockGrowthTest, GrowsForOneLargeBlockJoiningWhatIsFreeAtTheEnd) {
  if (GetParam() == SHMIPC_SYSV) {
    GTEST_SKIP() << "does not grow";
  }
  TestRegion grows(GetParam(), 4096, [](auto *o) {
    o->heap_bytes = 4 * kPage;
    o->heap_capacity_bytes = 100 * kPage;
  });
  shmipc_region_t *second = grows.Attach();
  void *most = shmipc_block_alloc(grows.region(), 90 * kPage);
  ASSERT_NE(most, nullptr);
  // The other one had mapped its first pages only; now it has all of it.
  auto *theirs = static_cast<char *>(
      shmipc_block_get(second, shmipc_ref_of(grows.region(), most), 1));
  ASSERT_NE(theirs, nullptr);
  EXPECT_EQ(shmipc_block_usable_size(second, theirs), 90 * kPage);
  theirs[90 * kPage - 1] = 1;
  shmipc_region_close(second);
  EXPECT_EQ(shmipc_block_alloc(grows.region(), 20 * kPage), nullptr);
  EXPECT_NE(shmipc_block_alloc(grows.region(), 6 * kPage), nullptr);
}

TEST_P(BlockGrowthTest, ReallocKeepsTheBytes) {
  char *block = static_cast<char *>(shmipc_block_realloc(region_, nullptr, 1));
  ASSERT_NE(block, nullptr);
  size_t filled = 0;
  for (size_t size : {10, 100, 90, 60, 3000, 32768, 32769, 100000, 700000,
                      90000, 40000, 20000, 5, 0}) {
    block = static_cast<char *>(shmipc_block_realloc(region_, block, size));
    ASSERT_NE(block, nullptr);
    EXPECT_GE(shmipc_block_usable_size(region_, block), size_t(size));
    for (size_t i = 0; i < std::min<size_t>(filled, size); i++) {
      ASSERT_EQ(block[i], static_cast<char>(i * 7)) << size;
    }
    filled = size;
    for (size_t i = 0; i < filled; i++) {
      block[i] = static_cast<char>(i * 7);
    }
  }
  EXPECT_EQ(shmipc_block_free(region_, block), 0);
  ExpectUnused();
}

TEST_P(BlockGrowthTest, LargeBlocksGrowAndShrinkInPlace) {
  char *block = static_cast<char *>(shmipc_block_alloc(region_, 2 * kPage));
  EXPECT_EQ(shmipc_block_realloc(region_, block, 60 * kPage), block);
  EXPECT_EQ(shmipc_block_usable_size(region_, block), 60 * kPage);
  EXPECT_EQ(shmipc_block_alloc(region_, 5 * kPage), nullptr);
  errno = 0;
  EXPECT_EQ(shmipc_block_realloc(region_, block, 65 * kPage), nullptr);
  EXPECT_EQ(errno, ENOMEM);
  EXPECT_EQ(shmipc_block_usable_size(region_, block), 60 * kPage);
  EXPECT_EQ(shmipc_block_realloc(region_, block, kPage), block);
  void *behind = shmipc_block_alloc(region_, 63 * kPage);
  EXPECT_EQ(behind, block + kPage);
  EXPECT_EQ(shmipc_block_free(region_, behind), 0);
  EXPECT_EQ(shmipc_block_free(region_, block), 0);
  ExpectUnused();
}

TEST_P(BlockGrowthTest, ReallocToMoreThanThereCanBeChangesNothing) {
  auto *small = static_cast<char *>(shmipc_block_alloc(region_, 100));
  auto *large = static_cast<char *>(shmipc_block_alloc(region_, 2 * kPage));
  memset(small, 1, 100);
  memset(large, 2, 2 * kPage);
  // Sizes whose number of pages does not fit in 64 or in 32 bits, and others.
  for (size_t size :
       {SIZE_MAX, SIZE_MAX - 1, SIZE_MAX - 65534, SIZE_MAX - 65535,
        SIZE_MAX - 65536, (size_t{1} << 48) + 1, (size_t{1} << 48) + 2 * kPage,
        (size_t{1} << 48) + 3 * kPage, 64 * kPage + 1}) {
    for (char *block : {small, large}) {
      errno = 0;
      EXPECT_EQ(shmipc_block_realloc(region_, block, size), nullptr) << size;
      EXPECT_EQ(errno, ENOMEM);
    }
    EXPECT_EQ(shmipc_block_usable_size(region_, large), 2 * kPage);
  }
  EXPECT_EQ(std::count(small, small + 100, 1), 100);
  EXPECT_EQ(std::count(large, large + 2 * kPage, 2), long{2 * kPage});
  EXPECT_EQ(shmipc_block_free(region_, small), 0);
  EXPECT_EQ(shmipc_block_free(region_, large), 0);
  ExpectUnused();
}

TEST_P(BlockGrowthTest, MakingABlockSmallerDoesNotFail) {
  auto *large = static_cast<char *>(shmipc_block_alloc(region_, 3 * kPage));
  memset(large, 3, 20000);
  void *rest = shmipc_block_alloc(region_, 60 * kPage);
  ASSERT_NE(rest, nullptr);
  auto *small = static_cast<char *>(shmipc_block_alloc(region_, 32768));
  void *other = shmipc_block_alloc(region_, 32768);
  ASSERT_NE(other, nullptr);
  ASSERT_EQ(shmipc_block_alloc(region_, 1), nullptr);
  // There is no page for a smaller one.
  memset(small, 4, 100);
  errno = 0;
  EXPECT_EQ(shmipc_block_realloc(region_, small, 100), small);
  EXPECT_EQ(errno, 0);
  EXPECT_EQ(std::count(small, small + 100, 4), 100);
  EXPECT_EQ(shmipc_block_realloc(region_, large, 20000), large);
  EXPECT_EQ(shmipc_block_usable_size(region_, large), kPage);
  EXPECT_EQ(std::count(large, large + 20000, 3), 20000);
  // Of nothing, too; and what was cut off can be had.
  void *cut = shmipc_block_alloc(region_, 2 * kPage);
  EXPECT_EQ(cut, large + kPage);
  EXPECT_EQ(shmipc_block_realloc(region_, large, 0), large);
  for (void *block : {static_cast<void *>(large), rest,
                      static_cast<void *>(small), other, cut}) {
    EXPECT_EQ(shmipc_block_free(region_, block), 0);
  }
  ExpectUnused();
}

TEST_P(BlockGrowthTest, ABlockDoesNotGrowIntoPagesThatDoNotExist) {
  if (GetParam() == SHMIPC_SYSV) {
    GTEST_SKIP() << "has all of them";
  }
  TestRegion grows(GetParam(), 4096, [](auto *o) {
    o->heap_bytes = 8 * kPage;
    o->heap_capacity_bytes = 12 * kPage;
  });
  shmipc_region_t *region = grows.region();
  void *before = shmipc_block_alloc(region, 6 * kPage);
  auto *last = static_cast<char *>(shmipc_block_alloc(region, 2 * kPage));
  // As if the run went on behind the end of the file.
  *shmipc_head_of(region, 8) = SHMIPC_PAGE_MORE;
  EXPECT_NE(Problems(region).find("beyond the end"), std::string::npos);
  void *moved = shmipc_block_realloc(region, last, 3 * kPage);
  // Wherever it is, it can be written.
  auto *block = static_cast<char *>(moved != nullptr ? moved : last);
  size_t usable = shmipc_block_usable_size(region, block);
  EXPECT_EQ(usable, moved != nullptr ? 3 * kPage : 2 * kPage);
  memset(block, 1, usable);
  EXPECT_EQ(shmipc_block_free(region, block), 0);
  EXPECT_EQ(shmipc_block_free(region, before), 0);
}

class BlockCapacityTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  static void From1To100(shmipc_region_options_t *options) {
    options->heap_bytes = kPage;
    options->heap_capacity_bytes = 100 * kPage;
  }
};

INSTANTIATE_TEST_SUITE_P(Growing, BlockCapacityTest,
                         testing::Values(SHMIPC_POSIX, SHMIPC_MEMFD),
                         BackendName);

TEST_P(BlockCapacityTest, PagesThatOthersAddedAndFilledAreNotTheEnd) {
  for (size_t size : {size_t{100}, 2 * kPage}) {
    TestRegion own(GetParam(), 4096, From1To100);
    shmipc_region_t *other = own.Attach();
    // The other one knows of one page; there are more, all full.
    ASSERT_NE(shmipc_block_alloc(own.region(), kPage), nullptr);
    while (shmipc_pages_mapped(own.region()) < 17) {
      ASSERT_NE(shmipc_block_alloc(own.region(), kPage), nullptr);
    }
    shmipc_heap_stats_t stats;
    do {
      ASSERT_NE(shmipc_block_alloc(own.region(), kPage), nullptr);
      ASSERT_EQ(shmipc_heap_stats_get(own.region(), &stats), 0);
    } while (stats.free_page_bytes != 0);
    ASSERT_EQ(shmipc_pages_mapped(other), 1u);
    EXPECT_NE(shmipc_block_alloc(other, size), nullptr) << size;
    shmipc_region_close(other);
  }
}

TEST_P(BlockCapacityTest, PagesOfTheDeadThatWeHaveNotMappedAreFound) {
  TestRegion own(GetParam(), 4096, From1To100);
  Process dies([&] {
    shmipc_region_t *region = own.AttachInChild();
    while (shmipc_block_alloc(region, 1024) != nullptr) {
    }
    return 0;
  });
  ASSERT_EQ(dies.Wait(), 0);
  shmipc_region_t *other = own.Attach();
  ASSERT_EQ(shmipc_heap_reclaim(other, 0), 100 * 63);
  ASSERT_EQ(shmipc_pages_mapped(own.region()), 1u);
  EXPECT_EQ(shmipc_heap_trim(own.region()), 100);
  void *half = shmipc_block_alloc(own.region(), 50 * kPage);
  EXPECT_NE(half, nullptr);
  EXPECT_EQ(shmipc_block_free(own.region(), half), 0);
  shmipc_region_close(other);
}

TEST_P(BlockCapacityTest, OneBlockCanHaveAllOfTheCapacity) {
  for (size_t count = 96; count <= 100; count++) {
    TestRegion own(GetParam(), 4096, [](auto *o) {
      o->heap_bytes = 4 * kPage;
      o->heap_capacity_bytes = 100 * kPage;
    });
    void *block = shmipc_block_alloc(own.region(), count * kPage);
    ASSERT_NE(block, nullptr) << count;
    EXPECT_EQ(shmipc_block_alloc(own.region(), (101 - count) * kPage), nullptr);
  }
}

TEST_P(BlockCapacityTest, GrowsByLessWhereALimitIsNear) {
  TestRegion own(GetParam(), 4096, From1To100);
  Process limited([&] {
    shmipc_region_t *region = own.AttachInChild();
    struct rlimit limit = {region->pages_offset + 9 * kPage, RLIM_INFINITY};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) {
      return 100;
    }
    int count = 0;
    while (shmipc_block_alloc(region, 32768) != nullptr) {
      count++;
    }
    return count;
  });
  EXPECT_EQ(limited.Wait(), 18);
}

}  // namespace
