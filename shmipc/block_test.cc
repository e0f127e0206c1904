// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Blocks of a region's heap, in one process and two: sizes, alignment, misuse,
// owners, a full heap, growth, and a model.
//
// SHMIPC_TEST_SEED for other random numbers.

#include "shmipc/block.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/block_class.h"
#include "shmipc/block_internal.h"
#include "shmipc/block_layout.h"
#include "shmipc/shared_heap.h"
#include "shmipc/shmipc_testing.h"

namespace {

using shmipc_testing::Backends;
using shmipc_testing::NameOf;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;
using shmipc_testing::Shared;
using shmipc_testing::TestRegion;
using shmipc_testing::Watchdog;

constexpr size_t kPage = SHMIPC_PAGE_BYTES;

class BlockTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  explicit BlockTest(size_t num_pages = 64)
      : own_(GetParam(), 4096,
             [&](auto *o) { o->heap_bytes = num_pages * kPage; }),
        region_(own_.region()) {
  }

  shmipc_heap_stats_t Stats() {
    shmipc_heap_stats_t stats = {};
    EXPECT_EQ(shmipc_heap_stats_get(region_, &stats), 0);
    return stats;
  }

  // Everything is as in a new heap, once threads gave back what they can.
  void ExpectUnused() {
    EXPECT_GE(shmipc_heap_trim(region_), 0);
    shmipc_heap_stats_t stats = Stats();
    EXPECT_EQ(stats.num_live, 0u);
    EXPECT_EQ(stats.free_page_bytes, stats.heap_bytes);
    EXPECT_EQ(Problems(region_), "");
  }

  Watchdog watchdog_{120};
  TestRegion own_;
  shmipc_region_t *region_;
};

INSTANTIATE_TEST_SUITE_P(All, BlockTest, testing::ValuesIn(Backends()),
                         [](const testing::TestParamInfo<shmipc_backend_t> &i) {
                           return std::string(NameOf(i.param));
                         });

TEST(BlockClassTest, EachSizeHasTheSmallestClassWithRoom) {
  for (size_t size = 0; size <= SHMIPC_CLASS_BYTES_MAX; size++) {
    uint32_t index = shmipc_class_of(size);
    ASSERT_LT(index, SHMIPC_CLASSES);
    ASSERT_GE(shmipc_classes[index].size_bytes, size);
    if (index > 0) {
      ASSERT_LT(shmipc_classes[index - 1].size_bytes,
                std::max<size_t>(size, 1));
    }
  }
  EXPECT_EQ(shmipc_class_of(SHMIPC_CLASS_BYTES_MAX + 1), SHMIPC_CLASSES);
}

TEST(BlockClassTest, BlocksAndWordsFitInAPageAndIndicesAreExact) {
  for (const shmipc_class_t &one : shmipc_classes) {
    size_t blocks = size_t{one.size_bytes} * one.count;
    if (one.words_offset == 0) {
      EXPECT_LE(one.count, SHMIPC_TABLE_WORDS);
      EXPECT_LE(blocks, kPage);
    } else {
      EXPECT_LE(blocks, one.words_offset);
      EXPECT_EQ(one.words_offset + one.count * sizeof(uint32_t), kPage);
    }
    EXPECT_EQ(one.size_bytes % 16, 0u);
    for (uint32_t position = 0; position < kPage; position++) {
      uint32_t index;
      bool starts = shmipc_class_index(&one, position, &index);
      ASSERT_EQ(starts, position % one.size_bytes == 0 && position < blocks);
      ASSERT_TRUE(!starts || index == position / one.size_bytes);
    }
  }
}

TEST(BlockClassTest, EveryAlignmentHasAClassUpToThePage) {
  for (size_t alignment = 1; alignment <= 4096; alignment *= 2) {
    for (size_t size : {size_t{1}, alignment, alignment + 1, size_t{5000}}) {
      uint32_t index = shmipc_class_aligned(alignment, size);
      ASSERT_LT(index, SHMIPC_CLASSES);
      EXPECT_EQ(shmipc_classes[index].size_bytes % alignment, 0u);
      EXPECT_GE(shmipc_classes[index].size_bytes, size);
    }
  }
}

TEST_P(BlockTest, OptionsOfAHeapAreChecked) {
  struct Case {
    size_t heap_bytes;
    size_t heap_capacity_bytes;
    size_t capacity_bytes;
    int status;
  };
  bool is_sysv = GetParam() == SHMIPC_SYSV;
  const Case cases[] = {
      {0, kPage, 0, -EINVAL},
      {2 * kPage, kPage, 0, -EINVAL},
      {kPage, 0, 1 << 20, is_sysv ? -EOPNOTSUPP : -EINVAL},
      {kPage, size_t{1} << 60, 0, is_sysv ? -EOPNOTSUPP : -EFBIG},
      {SIZE_MAX, SIZE_MAX, 0, -EFBIG},
  };
  std::string name = shmipc_testing::Name("options");
  for (const Case &one : cases) {
    shmipc_region_options_t options = {};
    options.backend = GetParam();
    options.size_bytes = 1;
    options.heap_bytes = one.heap_bytes;
    options.heap_capacity_bytes = one.heap_capacity_bytes;
    options.capacity_bytes = one.capacity_bytes;
    shmipc_region_t *region = nullptr;
    EXPECT_EQ(shmipc_region_create(
                  GetParam() == SHMIPC_MEMFD ? nullptr : name.c_str(), &options,
                  &region),
              one.status)
        << one.heap_bytes;
  }
}

TEST_P(BlockTest, InitializeGetsTheDataWithoutTheHeap) {
  static size_t seen;
  seen = 0;
  TestRegion other(GetParam(), 5000, [](auto *o) {
    o->heap_bytes = 1;
    o->initialize = [](void *, void *data, size_t size_bytes) {
      seen = size_bytes;
      memset(data, 0xff, size_bytes);
      return 0;
    };
  });
  EXPECT_EQ(seen, 8192u);
  EXPECT_EQ(Problems(other.region()), "");
  void *block = shmipc_block_alloc(other.region(), 32768);
  EXPECT_NE(block, nullptr);
  EXPECT_EQ(shmipc_block_free(other.region(), block), 0);
}

TEST_P(BlockTest, WithoutAHeapEveryCallSaysSo) {
  TestRegion none(GetParam(), 4096);
  shmipc_region_t *region = none.region();
  char *data = none.data<char>();
  errno = 0;
  EXPECT_EQ(shmipc_block_alloc(region, 1), nullptr);
  EXPECT_EQ(errno, EOPNOTSUPP);
  EXPECT_EQ(shmipc_block_free(region, data), -EOPNOTSUPP);
  EXPECT_EQ(shmipc_block_give(region, data), -EOPNOTSUPP);
  EXPECT_EQ(shmipc_block_usable_size(region, data), 0u);
  EXPECT_EQ(shmipc_heap_trim(region), -EOPNOTSUPP);
  EXPECT_EQ(shmipc_heap_reclaim(region, 0), -EOPNOTSUPP);
  shmipc_heap_stats_t stats;
  EXPECT_EQ(shmipc_heap_stats_get(region, &stats), -EOPNOTSUPP);
}

TEST_P(BlockTest, ReadOnlyAttachmentsSeeButDoNotChange) {
  char *block = static_cast<char *>(shmipc_block_alloc(region_, 100));
  memcpy(block, "hello", 6);
  own_.options().read_only = true;
  shmipc_region_t *reader = own_.Attach();
  ASSERT_NE(reader, nullptr);
  shmipc_ref_t ref = shmipc_ref_of(region_, block);
  char *theirs = static_cast<char *>(shmipc_block_get(reader, ref, 100));
  ASSERT_NE(theirs, nullptr);
  EXPECT_STREQ(theirs, "hello");
  EXPECT_EQ(shmipc_block_alloc(reader, 1), nullptr);
  EXPECT_EQ(errno, EROFS);
  EXPECT_EQ(shmipc_block_free(reader, theirs), -EROFS);
  EXPECT_EQ(shmipc_block_take(reader, theirs), -EROFS);
  EXPECT_EQ(shmipc_heap_reclaim(reader, 0), -EROFS);
  shmipc_heap_stats_t stats;
  EXPECT_EQ(shmipc_heap_stats_get(reader, &stats), 0);
  EXPECT_EQ(stats.num_live, 1u);
  EXPECT_EQ(Problems(reader), "");
  shmipc_region_close(reader);
}

TEST_P(BlockTest, AChildOfForkIsNotAttached) {
  void *block = shmipc_block_alloc(region_, 100);
  Process child([&] {
    errno = 0;
    bool ok = shmipc_block_alloc(region_, 100) == nullptr && errno == ECHILD &&
              shmipc_block_free(region_, block) == -ECHILD &&
              shmipc_block_take(region_, block) == -ECHILD &&
              shmipc_block_usable_size(region_, block) == 0 &&
              shmipc_heap_trim(region_) == -ECHILD;
    return ok ? 0 : 1;
  });
  EXPECT_EQ(child.Wait(), 0);
  EXPECT_EQ(shmipc_block_free(region_, block), 0);
}

TEST_P(BlockTest, RefsAreNullSafeAndChecked) {
  EXPECT_TRUE(shmipc_ref_is_null(shmipc_ref_of(region_, nullptr)));
  int local = 0;
  EXPECT_TRUE(shmipc_ref_is_null(shmipc_ref_of(region_, &local)));
  EXPECT_EQ(shmipc_ref_get(region_, shmipc_ref_t{0}, 0), nullptr);
  EXPECT_EQ(shmipc_ref_get(region_, shmipc_ref_t{64}, 1), nullptr);
  EXPECT_EQ(shmipc_ref_get(region_, shmipc_ref_t{UINT64_MAX}, 1), nullptr);
  char *data = own_.data<char>();
  shmipc_ref_t ref = shmipc_ref_of(region_, data);
  size_t size = shmipc_region_size(region_);
  EXPECT_EQ(shmipc_ref_get(region_, ref, size), data);
  EXPECT_EQ(shmipc_ref_get(region_, ref, size + 1), nullptr);
  EXPECT_EQ(shmipc_ref_get(region_, ref, SIZE_MAX), nullptr);
  char *block = static_cast<char *>(shmipc_block_alloc(region_, 40));
  ref = shmipc_ref_of(region_, block);
  EXPECT_EQ(shmipc_block_get(region_, ref, 48), block);
  EXPECT_EQ(shmipc_block_get(region_, ref, 49), nullptr);
  EXPECT_EQ(shmipc_block_get(region_, shmipc_ref_t{ref.offset + 16}, 1),
            nullptr);
  EXPECT_EQ(shmipc_block_free(region_, block), 0);
  EXPECT_EQ(shmipc_block_get(region_, ref, 1), nullptr);
}

TEST_P(BlockTest, EachSizeIsUsableAlignedAndItsOwn) {
  std::map<char *, size_t> blocks;
  for (size_t size :
       {0,     1,     15,    16,    17,    64,     65,     128,   129,
        1000,  1024,  1025,  4095,  4096,  4097,   8192,   16384, 32767,
        32768, 32769, 65535, 65536, 65537, 200000, 1000000}) {
    char *block = static_cast<char *>(shmipc_block_alloc(region_, size));
    ASSERT_NE(block, nullptr) << size;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % 16, 0u);
    size_t usable = shmipc_block_usable_size(region_, block);
    EXPECT_GE(usable, std::max<size_t>(size, 1));
    EXPECT_LE(usable, size <= 16      ? 16
                      : size <= 32768 ? size * 4 / 3 + 16
                                      : size + kPage);
    memset(block, static_cast<int>(size % 251), usable);
    blocks[block] = size;
  }
  for (const auto &[block, size] : blocks) {
    size_t usable = shmipc_block_usable_size(region_, block);
    EXPECT_EQ(std::count(block, block + usable, static_cast<char>(size % 251)),
              static_cast<long>(usable))
        << size;
    EXPECT_EQ(shmipc_block_free(region_, block), 0);
  }
  ExpectUnused();
}

TEST_P(BlockTest, AlignmentIsKeptUpToThePage) {
  std::vector<void *> blocks;
  for (size_t alignment = 1; alignment <= 4096; alignment *= 2) {
    for (size_t size : {1, 100, 1000, 5000, 40000, 100000}) {
      void *block = shmipc_block_alloc_aligned(region_, alignment, size);
      ASSERT_NE(block, nullptr);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % alignment, 0u);
      EXPECT_GE(shmipc_block_usable_size(region_, block), size_t(size));
      blocks.push_back(block);
      if (size >= 40000) {
        EXPECT_EQ(shmipc_block_free(region_, block), 0);
        blocks.pop_back();
      }
    }
  }
  for (size_t alignment : {size_t{0}, size_t{3}, size_t{8192}, SIZE_MAX}) {
    errno = 0;
    EXPECT_EQ(shmipc_block_alloc_aligned(region_, alignment, 1), nullptr);
    EXPECT_EQ(errno, EINVAL);
  }
  for (void *block : blocks) {
    EXPECT_EQ(shmipc_block_free(region_, block), 0);
  }
  ExpectUnused();
}

TEST_P(BlockTest, TooLargeIsNoMemoryAndChangesNothing) {
  for (size_t size :
       {64 * kPage + 1, size_t{1} << 40, SIZE_MAX - 70000, SIZE_MAX}) {
    errno = 0;
    EXPECT_EQ(shmipc_block_alloc(region_, size), nullptr);
    EXPECT_EQ(errno, ENOMEM);
  }
  void *all = shmipc_block_alloc(region_, 64 * kPage);
  EXPECT_NE(all, nullptr);
  EXPECT_EQ(shmipc_block_alloc(region_, 1), nullptr);
  EXPECT_EQ(shmipc_block_free(region_, all), 0);
  ExpectUnused();
}

TEST_P(BlockTest, FilledToTheLastByteAgainAndAgain) {
  for (size_t size : {16, 48, 64, 1000, 4096, 7000, 16384, 32768, 65536}) {
    uint32_t index = shmipc_class_of(size);
    size_t expected =
        64 * (index < SHMIPC_CLASSES ? shmipc_classes[index].count : 1);
    std::vector<void *> blocks;
    for (int round = 0; round < 3; round++) {
      while (void *block = shmipc_block_alloc(region_, size)) {
        memset(block, round, size);
        blocks.push_back(block);
      }
      EXPECT_EQ(errno, ENOMEM);
      ASSERT_EQ(blocks.size(), expected) << size;
      ASSERT_EQ(std::set<void *>(blocks.begin(), blocks.end()).size(),
                expected);
      std::shuffle(blocks.begin(), blocks.end(), std::mt19937_64(Seed()));
      for (void *block : blocks) {
        ASSERT_EQ(shmipc_block_free(region_, block), 0);
      }
      blocks.clear();
    }
    // Without a trim: the next size gets the pages, too.
  }
  ExpectUnused();
}

TEST_P(BlockTest, FullHeapsGiveALargerBlockThatIsThere) {
  void *page = shmipc_block_alloc(region_, 48);
  ASSERT_NE(page, nullptr);
  void *large = shmipc_block_alloc(region_, 61 * kPage);
  ASSERT_NE(large, nullptr);
  void *first = shmipc_block_alloc(region_, 1000);
  void *second = shmipc_block_alloc(region_, 2000);
  ASSERT_NE(second, nullptr);
  void *small = shmipc_block_alloc(region_, 16);
  ASSERT_NE(small, nullptr);
  EXPECT_EQ(shmipc_block_usable_size(region_, small), 48u);
  // Not the one of 48 bytes, of which every other is not aligned.
  void *aligned = shmipc_block_alloc_aligned(region_, 32, 20);
  ASSERT_NE(aligned, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(aligned) % 32, 0u);
  for (void *block : {page, large, first, second, small, aligned}) {
    EXPECT_EQ(shmipc_block_free(region_, block), 0);
  }
  ExpectUnused();
}

TEST_P(BlockTest, GrowsToItsCapacityAndNoFurther) {
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

TEST_P(BlockTest, GrowsForOneLargeBlockJoiningWhatIsFreeAtTheEnd) {
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

TEST_P(BlockTest, ReallocKeepsTheBytes) {
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

TEST_P(BlockTest, LargeBlocksGrowAndShrinkInPlace) {
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

TEST_P(BlockTest, EveryPointerThatIsNoLiveBlockIsTold) {
  char *small = static_cast<char *>(shmipc_block_alloc(region_, 100));
  char *large = static_cast<char *>(shmipc_block_alloc(region_, 3 * kPage));
  EXPECT_EQ(shmipc_block_free(region_, nullptr), 0);
  // Each byte but the first of them.
  for (int i = 1; i < 112; i++) {
    ASSERT_EQ(shmipc_block_free(region_, small + i), -EINVAL);
  }
  for (size_t i = 1; i < 3 * kPage; i += 997) {
    ASSERT_EQ(shmipc_block_free(region_, large + i), -EINVAL);
  }
  EXPECT_EQ(shmipc_block_free(region_, large + kPage), -EINVAL);
  EXPECT_EQ(shmipc_block_free(region_, small + 112), -EALREADY);
  // The words are no blocks.
  auto page = reinterpret_cast<uintptr_t>(large) & (kPage - 1);
  uintptr_t start =
      ((reinterpret_cast<uintptr_t>(small) - page) & ~(kPage - 1)) + page;
  EXPECT_EQ(
      shmipc_block_free(region_, reinterpret_cast<void *>(start + kPage - 4)),
      -EINVAL);
  // Elsewhere in the region, and outside of it.
  int local = 0;
  auto *base = own_.data<char>();
  EXPECT_EQ(shmipc_block_free(region_, base), -EINVAL);
  EXPECT_EQ(shmipc_block_free(region_, base - 4096), -EINVAL);
  EXPECT_EQ(shmipc_block_free(region_, &local), -EINVAL);
  EXPECT_EQ(shmipc_block_free(region_, reinterpret_cast<void *>(16)), -EINVAL);
  EXPECT_EQ(shmipc_block_free(region_, reinterpret_cast<void *>(UINTPTR_MAX)),
            -EINVAL);
  EXPECT_EQ(shmipc_block_free(region_, base + shmipc_region_size(region_)),
            -EINVAL);
  // Twice.
  EXPECT_EQ(shmipc_block_free(region_, small), 0);
  EXPECT_EQ(shmipc_block_free(region_, small), -EALREADY);
  EXPECT_EQ(shmipc_block_free(region_, large), 0);
  EXPECT_EQ(shmipc_block_free(region_, large), -EALREADY);
  EXPECT_EQ(shmipc_block_usable_size(region_, small), 0u);
  EXPECT_EQ(shmipc_block_realloc(region_, small, 10), nullptr);
  EXPECT_EQ(errno, EALREADY);
  EXPECT_EQ(shmipc_block_give(region_, large), -EALREADY);
  ExpectUnused();
}

TEST_P(BlockTest, OwnersChangeAsTheyMay) {
  shmipc_region_t *other = own_.Attach();
  void *block = shmipc_block_alloc(region_, 100);
  void *theirs = shmipc_block_get(other, shmipc_ref_of(region_, block), 100);
  ASSERT_NE(theirs, nullptr);
  EXPECT_EQ(shmipc_block_take(other, theirs), -EPERM);
  EXPECT_EQ(shmipc_block_take(region_, block), -EPERM);
  EXPECT_EQ(shmipc_block_give(other, theirs), -EPERM);
  EXPECT_EQ(shmipc_block_share(other, theirs), -EPERM);
  EXPECT_EQ(shmipc_block_give(region_, block), 0);
  EXPECT_EQ(Stats().num_in_flight, 1u);
  EXPECT_EQ(shmipc_block_give(region_, block), -EPERM);
  EXPECT_EQ(shmipc_block_realloc(region_, block, 10), nullptr);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(shmipc_block_take(other, theirs), 0);
  EXPECT_EQ(shmipc_block_take(region_, block), -EPERM);
  EXPECT_EQ(shmipc_block_share(other, theirs), 0);
  EXPECT_EQ(Stats().num_shared, 1u);
  EXPECT_EQ(shmipc_block_give(other, theirs), -EPERM);
  EXPECT_EQ(shmipc_block_take(region_, block), 0);
  EXPECT_EQ(shmipc_block_give(region_, block), 0);
  // Its giver may take it back, and anybody may free it.
  EXPECT_EQ(shmipc_block_take(region_, block), 0);
  EXPECT_EQ(shmipc_block_free(other, theirs), 0);
  EXPECT_EQ(shmipc_block_free(region_, block), -EALREADY);
  shmipc_region_close(other);
  ExpectUnused();
}

TEST_P(BlockTest, WhatTheDeadOwnedIsReclaimedOnRequest) {
  Shared<shmipc_ref_t[5]> refs;
  Process dies([&] {
    shmipc_region_t *region = own_.AttachInChild();
    for (size_t i = 0; i < 5; i++) {
      size_t size = i % 2 == 0 ? 100 : 200000;
      void *block = shmipc_block_alloc(region, size);
      (*refs)[i] = shmipc_ref_of(region, block);
      if (i >= 3) {
        shmipc_block_give(region, block);
      } else if (i == 2) {
        shmipc_block_share(region, block);
      }
    }
    return 0;
  });
  ASSERT_EQ(dies.Wait(), 0);
  EXPECT_EQ(Stats().num_live, 5u);
  EXPECT_EQ(Stats().num_dead, 4u);
  EXPECT_EQ(Problems(region_), "");
  EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 2);
  EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 0);
  EXPECT_EQ(Stats().num_live, 3u);
  // Also when its slot was freed, and taken by another.
  EXPECT_EQ(shmipc_region_recover(region_), 1);
  shmipc_region_t *other = own_.Attach();
  EXPECT_EQ(Stats().num_dead, 2u);
  void *found = shmipc_block_get(region_, (*refs)[3], 200000);
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(shmipc_block_take(region_, found), 0);
  EXPECT_EQ(shmipc_heap_reclaim(region_, SHMIPC_RECLAIM_IN_FLIGHT), 1);
  EXPECT_EQ(shmipc_block_free(region_, found), 0);
  EXPECT_EQ(Stats().num_live, 1u);
  EXPECT_EQ(
      shmipc_block_free(region_, shmipc_block_get(region_, (*refs)[2], 100)),
      0);
  shmipc_region_close(other);
  ExpectUnused();
}

TEST_P(BlockTest, PagesOfTheDeadAreFoundWhenMemoryIsShort) {
  Process dies([&] {
    shmipc_region_t *region = own_.AttachInChild();
    for (int i = 0; i < 64; i++) {
      void *block = shmipc_block_alloc(region, 1024);
      for (int j = 1; j < 63; j++) {
        (void)!shmipc_block_alloc(region, 1024);
      }
      // The first of each page is somebody's.
      shmipc_block_share(region, block);
    }
    return shmipc_block_alloc(region, 16) == nullptr ? 0 : 1;
  });
  ASSERT_EQ(dies.Wait(), 0);
  EXPECT_EQ(shmipc_heap_reclaim(region_, 0), 64 * 62);
  // All other blocks of its pages are ours to have, asking the kernel.
  size_t count = 0;
  while (shmipc_block_alloc(region_, 1024) != nullptr) {
    count++;
  }
  EXPECT_EQ(count, 64u * 62);
  EXPECT_EQ(Stats().num_shared, 64u);
  EXPECT_EQ(Problems(region_), "");
}

TEST_P(BlockTest, PagesOfAThreadThatEndedAreTaken) {
  std::vector<void *> blocks;
  std::thread([&] {
    while (void *block = shmipc_block_alloc(region_, 64)) {
      blocks.push_back(block);
    }
  }).join();
  ASSERT_EQ(blocks.size(), 64u * 963);
  EXPECT_EQ(shmipc_block_alloc(region_, 64), nullptr);
  for (void *block : blocks) {
    ASSERT_EQ(shmipc_block_free(region_, block), 0);
  }
  void *all = shmipc_block_alloc(region_, 64 * kPage);
  EXPECT_NE(all, nullptr);
  EXPECT_EQ(shmipc_block_free(region_, all), 0);
  ExpectUnused();
}

TEST_P(BlockTest, WhatAnotherProcessFreesIsUsedAgain) {
  // Twenty heaps full of blocks go through one heap.
  Shared<shmipc_ref_t[4096]> refs;
  for (int round = 0; round < 20; round++) {
    size_t count = 0;
    for (; count < 2000; count++) {
      void *block = shmipc_block_alloc(region_, 1500);
      ASSERT_NE(block, nullptr) << round;
      ASSERT_EQ(shmipc_block_give(region_, block), 0);
      (*refs)[count] = shmipc_ref_of(region_, block);
    }
    Process frees([&] {
      shmipc_region_t *region = own_.AttachInChild();
      for (size_t i = 0; i < count; i++) {
        void *block = shmipc_block_get(region, (*refs)[i], 1500);
        if (block == nullptr || shmipc_block_take(region, block) != 0 ||
            shmipc_block_free(region, block) != 0) {
          return 1;
        }
      }
      return 0;
    });
    ASSERT_EQ(frees.Wait(), 0);
    EXPECT_EQ(Stats().num_live, 0u);
  }
  ExpectUnused();
}

TEST_P(BlockTest, EmptyPagesGoBackWithoutATrim) {
  std::vector<void *> blocks;
  while (void *block = shmipc_block_alloc(region_, 256)) {
    blocks.push_back(block);
  }
  for (void *block : blocks) {
    ASSERT_EQ(shmipc_block_free(region_, block), 0);
  }
  // All but a few, which the next free would have looked at.
  EXPECT_GE(Stats().free_page_bytes, 55 * kPage);
  ExpectUnused();
}

TEST_P(BlockTest, NoPageChangesItsKindWhileSomebodyReclaims) {
  std::vector<void *> blocks;
  for (int i = 0; i < 100; i++) {
    blocks.push_back(shmipc_block_alloc(region_, 4000));
  }
  for (void *block : blocks) {
    ASSERT_EQ(shmipc_block_free(region_, block), 0);
  }
  ASSERT_LT(Stats().free_page_bytes, Stats().heap_bytes);
  // As if another thread were at it, then one of a dead process.
  uint64_t *reclaimer = &shmipc_heap_head_of(region_)->reclaimer;
  std::atomic<uint64_t> id{0};
  std::atomic<bool> is_over{false};
  std::thread lives([&] {
    shmipc_self_t *self;
    ASSERT_EQ(shmipc_self_of(region_, &self), 0);
    id = self->page_id;
    while (!is_over) {
      std::this_thread::yield();
    }
  });
  while (id == 0) {
    std::this_thread::yield();
  }
  *reclaimer = id;
  EXPECT_EQ(shmipc_heap_trim(region_), 0);
  EXPECT_LT(Stats().free_page_bytes, Stats().heap_bytes);
  EXPECT_EQ(Problems(region_), "");
  void *block = shmipc_block_alloc(region_, 4000);
  EXPECT_EQ(shmipc_block_free(region_, block), 0);
  is_over = true;
  lives.join();
  EXPECT_GT(shmipc_heap_trim(region_), 0);
  *reclaimer = 0;
  ExpectUnused();
}

TEST_P(BlockTest, WalkFindsEveryLiveBlockOnce) {
  std::map<uint64_t, size_t> expected;
  std::mt19937_64 random(Seed());
  std::vector<void *> all;
  for (int i = 0; i < 500; i++) {
    void *block = shmipc_block_alloc(region_, random() % 9000);
    ASSERT_NE(block, nullptr);
    all.push_back(block);
  }
  for (size_t i = 0; i < all.size(); i++) {
    if (i % 3 == 0) {
      shmipc_block_free(region_, all[i]);
    } else {
      expected[shmipc_ref_of(region_, all[i]).offset] =
          shmipc_block_usable_size(region_, all[i]);
    }
  }
  std::map<uint64_t, size_t> found;
  EXPECT_EQ(shmipc_heap_walk(
                region_,
                [](void *context, const shmipc_block_info_t *block) {
                  EXPECT_EQ(block->state, SHMIPC_BLOCK_OWNED);
                  EXPECT_FALSE(block->is_dead);
                  bool is_new =
                      static_cast<std::map<uint64_t, size_t> *>(context)
                          ->emplace(block->ref.offset, block->usable_bytes)
                          .second;
                  EXPECT_TRUE(is_new);
                  return 0;
                },
                &found),
            0);
  EXPECT_EQ(found, expected);
  EXPECT_EQ(shmipc_heap_walk(
                region_, [](void *, const shmipc_block_info_t *) { return -7; },
                nullptr),
            -7);
}

// Random operations against what should be there.
class Model {
 public:
  Model(shmipc_region_t *region, uint64_t seed)
      : region_(region), random_(seed) {
  }

  void Step() {
    uint64_t choice = random_() % 100;
    if (choice < 45 || blocks_.empty()) {
      Alloc();
    } else if (choice < 85) {
      Free();
    } else {
      Realloc();
    }
  }
  void FreeAll() {
    while (!blocks_.empty()) {
      Free();
    }
  }
  size_t count() const {
    return blocks_.size();
  }

 private:
  struct Block {
    unsigned char *start;
    size_t size;
    unsigned char id;
  };

  size_t Size() {
    switch (random_() % 10) {
      case 0:
        return random_() % 200000;
      case 1:
      case 2:
        return random_() % 10000;
      default:
        return random_() % 300;
    }
  }
  void Fill(Block *block) {
    block->id = static_cast<unsigned char>(random_());
    for (size_t i = 0; i < block->size; i++) {
      block->start[i] = static_cast<unsigned char>(block->id + i);
    }
  }
  static void ExpectFilled(const Block &block, size_t size) {
    for (size_t i = 0; i < size; i++) {
      ASSERT_EQ(block.start[i], static_cast<unsigned char>(block.id + i));
    }
  }
  void Alloc() {
    size_t alignment = random_() % 8 == 0 ? size_t{1} << random_() % 13 : 16;
    Block block = {nullptr, Size(), 0};
    block.start = static_cast<unsigned char *>(
        shmipc_block_alloc_aligned(region_, alignment, block.size));
    if (block.start == nullptr) {
      ASSERT_EQ(errno, ENOMEM);
      return;
    }
    ASSERT_EQ(reinterpret_cast<uintptr_t>(block.start) % alignment, 0u);
    Fill(&block);
    blocks_.push_back(block);
  }
  void Free() {
    std::swap(blocks_[random_() % blocks_.size()], blocks_.back());
    Block block = blocks_.back();
    blocks_.pop_back();
    ExpectFilled(block, block.size);
    ASSERT_EQ(shmipc_block_free(region_, block.start), 0);
  }
  void Realloc() {
    Block &block = blocks_[random_() % blocks_.size()];
    size_t size = Size();
    void *moved = shmipc_block_realloc(region_, block.start, size);
    if (moved == nullptr) {
      ASSERT_EQ(errno, ENOMEM);
      return;
    }
    block.start = static_cast<unsigned char *>(moved);
    ExpectFilled(block, std::min(size, block.size));
    block.size = size;
    Fill(&block);
  }

  shmipc_region_t *region_;
  std::mt19937_64 random_;
  std::vector<Block> blocks_;
};

TEST_P(BlockTest, RandomOperationsMatchAModel) {
  Model model(region_, Seed());
  for (int i = 0; i < 12000; i++) {
    model.Step();
    ASSERT_FALSE(HasFatalFailure());
    if (i % 1000 == 0) {
      ASSERT_EQ(Stats().num_live, model.count());
      ASSERT_EQ(Problems(region_), "");
    }
  }
  model.FreeAll();
  ExpectUnused();
}

TEST_P(BlockTest, ThreadsAndProcessesAtOnceMatchTheirModels) {
#ifdef __SANITIZE_THREAD__
  // A page that goes from thread to thread by way of another process is a race
  // to the sanitizer, which sees nothing of what orders them there.
  const int num_processes = 0;
#else
  const int num_processes = 2;
#endif
  std::vector<Process> processes;
  for (int i = 0; i < num_processes; i++) {
    processes.emplace_back([&, i] {
      shmipc_region_t *region = own_.AttachInChild();
      Model model(region, Seed() + 100 + static_cast<uint64_t>(i));
      for (int j = 0; j < 4000 && !HasFailure(); j++) {
        model.Step();
      }
      model.FreeAll();
      return HasFailure() ? 1 : 0;
    });
  }
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; i++) {
    threads.emplace_back([&, i] {
      Model model(region_, Seed() + static_cast<uint64_t>(i));
      for (int j = 0; j < 4000 && !HasFailure(); j++) {
        model.Step();
      }
      model.FreeAll();
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  for (Process &process : processes) {
    EXPECT_EQ(process.Wait(), 0);
  }
  ExpectUnused();
}

TEST_P(BlockTest, BlocksGoRoundBetweenThreads) {
  // Each puts blocks in a place and frees what it finds there.
  std::atomic<char *> places[64] = {};
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 3; t++) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(Seed() + static_cast<uint64_t>(t));
      for (int i = 0; i < 20000; i++) {
        size_t size = 1 + random() % 2000;
        char *block = static_cast<char *>(shmipc_block_alloc(region_, size));
        if (block != nullptr) {
          block[0] = static_cast<char>(size);
          block[size - 1] = static_cast<char>(size);
        }
        block = places[random() % 64].exchange(block);
        if (block != nullptr) {
          block[0]++;
          wrong += shmipc_block_free(region_, block) != 0;
        }
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  for (auto &place : places) {
    wrong += shmipc_block_free(region_, place) != 0;
  }
  EXPECT_EQ(wrong, 0);
  ExpectUnused();
}

TEST_P(BlockTest, OfManyThatTakeOneBlockOneGetsIt) {
  void *block = shmipc_block_alloc(region_, 100);
  std::atomic<int> num_got{0};
  std::atomic<int> round{0};
  std::atomic<int> done{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; t++) {
    threads.emplace_back([&] {
      for (int i = 1; i <= 200; i++) {
        while (round < i) {
          std::this_thread::yield();
        }
        num_got += shmipc_block_take(region_, block) == 0;
        done++;
      }
    });
  }
  for (int i = 1; i <= 200; i++) {
    ASSERT_EQ(shmipc_block_give(region_, block), 0);
    round = i;
    while (done < 3 * i) {
      std::this_thread::yield();
    }
    ASSERT_EQ(num_got, i);
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
}

}  // namespace
