// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Blocks of a region's heap, one by one: sizes, alignment, misuse, owners.
//
// SHMIPC_TEST_SEED for other random numbers.

#include "shmipc/block.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "shmipc/block_class.h"
#include "shmipc/block_testing.h"

namespace {

using shmipc_testing::BackendName;
using shmipc_testing::Backends;
using shmipc_testing::kPage;
using shmipc_testing::Problems;
using shmipc_testing::Process;
using shmipc_testing::Seed;
using shmipc_testing::TestRegion;

class BlockTest : public shmipc_testing::HeapTest {};

INSTANTIATE_TEST_SUITE_P(All, BlockTest, testing::ValuesIn(Backends()),
                         BackendName);

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

// A thread with blocks of its own, and one that never had any.
TEST_P(BlockTest, OtherThreadsFreeExactlyOnce) {
  for (bool has_own : {true, false}) {
    auto *block = static_cast<char *>(shmipc_block_alloc(region_, 100));
    auto *medium = static_cast<char *>(shmipc_block_alloc(region_, 5000));
    std::thread([&] {
      void *own = has_own ? shmipc_block_alloc(region_, 100) : nullptr;
      for (char *ptr : {block, medium}) {
        EXPECT_EQ(shmipc_block_free(region_, ptr + 16), -EINVAL);
        EXPECT_EQ(shmipc_block_free(region_, ptr), 0);
        EXPECT_EQ(shmipc_block_free(region_, ptr), -EALREADY);
        EXPECT_EQ(shmipc_block_free(region_, ptr + 16), -EINVAL);
      }
      EXPECT_EQ(shmipc_block_free(region_, own), 0);
    }).join();
    EXPECT_EQ(shmipc_block_free(region_, block), -EALREADY);
    EXPECT_EQ(shmipc_block_free(region_, medium), -EALREADY);
  }
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

TEST_P(BlockTest, WhereNoBlockCanStartIsNeverAFreedOne) {
  auto *page = reinterpret_cast<char *>(shmipc_page_of(region_, 3));
  EXPECT_EQ(shmipc_block_free(region_, page), -EALREADY);
  EXPECT_EQ(shmipc_block_free(region_, page + 5), -EINVAL);
}

TEST_P(BlockTest, AttachmentsThatAreClosedLeaveNothing) {
  shmipc_region_t *last = nullptr;
  for (int i = 0; i < 20; i++) {
    shmipc_region_close(last);
    last = own_.Attach();
    void *block = shmipc_block_alloc(last, 100);
    EXPECT_EQ(shmipc_block_free(last, block), 0);
  }
  void *block = shmipc_block_alloc(region_, 100);
  EXPECT_EQ(shmipc_block_free(region_, block), 0);
  shmipc_region_t *other = own_.Attach();
  EXPECT_NE(shmipc_block_alloc(other, 100), nullptr);
  int count = 0;
  for (shmipc_self_t *self = shmipc_self_cached; self != nullptr;
       self = self->next) {
    count++;
  }
  EXPECT_EQ(count, 3);
  shmipc_region_close(last);
  shmipc_region_close(other);
}

}  // namespace
