// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/page_table.h"

#include <cstddef>
#include <cstdint>

#include "gtest/gtest.h"
#include "heap/central.h"
#include "heap/heap_testing.h"
#include "heap/kernel.h"

namespace {

using heap_testing::Random;
using heap_testing::RunInChild;

constexpr uintptr_t kLimit = uintptr_t{1} << HEAP_ADDRESS_BITS;
constexpr uintptr_t kLeafBytes = uintptr_t{1} << HEAP_LEAF_SHIFT;

bool Cover(uintptr_t address) {
  heap_central_lock();
  const bool covered = heap_page_table_cover(address);
  heap_central_unlock();
  return covered;
}

TEST(PageTableTest, EveryAddressHasAnEmptyDescriptorAtFirst) {
  Random random(heap_testing::Seed());
  for (int i = 0; i < 100000; ++i) {
    const uintptr_t address = random.Next() >> random.Below(64);
    const heap_page_t *page = heap_page_of(address);
    ASSERT_GE(page, heap_empty_leaf);
    ASSERT_LT(page, heap_empty_leaf + HEAP_LEAF_PAGES);
    ASSERT_EQ(page->kind, HEAP_PAGE_NONE);
    ASSERT_EQ(page->reciprocal, 0u);
  }
}

TEST(PageTableTest, EdgesOfTheAddressSpaceHaveAnEmptyDescriptor) {
  for (uintptr_t address :
       {uintptr_t{0}, uintptr_t{1}, kLimit - 1, kLimit, kLimit + 1,
        uintptr_t{1} << 62, ~uintptr_t{0} - kLimit, ~uintptr_t{0}}) {
    EXPECT_EQ(heap_page_of(address)->kind, HEAP_PAGE_NONE);
  }
}

TEST(PageTableTest, AddressTheTableCannotNameIsNotCovered) {
  EXPECT_FALSE(Cover(kLimit));
  EXPECT_FALSE(Cover(~uintptr_t{0}));
}

TEST(PageTableTest, CoveredPageHasADescriptorOfItsOwn) {
  RunInChild([] {
    const uintptr_t address = 5 * kLeafBytes + 7 * HEAP_PAGE_BYTES;
    ASSERT_TRUE(Cover(address));
    ASSERT_TRUE(Cover(address)) << "twice is as good as once";
    heap_page_t *page = heap_page_of(address);
    EXPECT_FALSE(page >= heap_empty_leaf &&
                 page < heap_empty_leaf + HEAP_LEAF_PAGES);
    EXPECT_EQ(page->kind, HEAP_PAGE_NONE);
    EXPECT_EQ(heap_page_of(address + HEAP_PAGE_BYTES - 1), page);
    EXPECT_EQ(heap_page_of(address + HEAP_PAGE_BYTES), page + 1);
    EXPECT_EQ(heap_page_of(address - 1), page - 1);
    // Nothing else changed: neighbouring leaves, and aliases above 2^48.
    for (uintptr_t other : {address - kLeafBytes, address + kLeafBytes,
                            address + kLimit, address + (uintptr_t{1} << 63)}) {
      EXPECT_GE(heap_page_of(other), heap_empty_leaf);
      EXPECT_LT(heap_page_of(other), heap_empty_leaf + HEAP_LEAF_PAGES);
    }
  });
}

TEST(PageTableTest, FirstAndLastPageOfTheAddressSpaceCanBeCovered) {
  RunInChild([] {
    for (uintptr_t address : {uintptr_t{0}, kLimit - 1}) {
      ASSERT_TRUE(Cover(address));
      heap_page_t *page = heap_page_of(address);
      page->kind = HEAP_PAGE_MAPPED;
      EXPECT_EQ(heap_page_of(address)->kind, HEAP_PAGE_MAPPED);
    }
    EXPECT_EQ(heap_page_of(kLimit)->kind, HEAP_PAGE_NONE);
  });
}

TEST(PageTableTest, RefusedLeafLeavesTheTableAsItWas) {
  RunInChild([] {
    heap_kernel_t refusing = heap_kernel_default;
    refusing.map = [](size_t, bool) -> void * {
      return nullptr;
    };
    heap_kernel = &refusing;
    EXPECT_FALSE(Cover(kLeafBytes));
    EXPECT_EQ(heap_leaves[1], 0u);
    heap_kernel = &heap_kernel_default;
    EXPECT_TRUE(Cover(kLeafBytes));
  });
}

}  // namespace
