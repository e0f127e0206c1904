// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/page_table.h"

#include <unistd.h>

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
constexpr uintptr_t kNearBytes = uintptr_t{HEAP_NEAR_PAGES} << HEAP_PAGE_SHIFT;

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
  RunInChild([] {
    EXPECT_FALSE(Cover(kLimit));
    EXPECT_FALSE(Cover(~uintptr_t{0}));
  });
}

TEST(PageTableTest, NearPageHasADescriptorOfItsOwn) {
  RunInChild([] {
    const uintptr_t base = 5 * kLeafBytes + 7 * HEAP_PAGE_BYTES;
    heap_page_table_set_near(base);
    heap_page_table_set_near(base + HEAP_PAGE_BYTES);  // Too late.
    ASSERT_TRUE(Cover(base + kNearBytes - 1));
    for (uintptr_t page = 0; page < HEAP_NEAR_PAGES; page += 4097) {
      const uintptr_t address = base + page * HEAP_PAGE_BYTES;
      EXPECT_EQ(heap_page_of(address), heap_near_pages + page);
      EXPECT_EQ(heap_page_of(address + HEAP_PAGE_BYTES - 1),
                heap_near_pages + page);
    }
    for (uintptr_t other : {base - 1, base + kNearBytes, base + kLimit}) {
      EXPECT_EQ(heap_page_of(other), &heap_no_page);
    }
    EXPECT_EQ(heap_leaves[base >> HEAP_LEAF_SHIFT], nullptr);
  });
}

TEST(PageTableTest, FarPageHasADescriptorOfItsOwn) {
  RunInChild([] {
    const uintptr_t address = 5 * kLeafBytes + 7 * HEAP_PAGE_BYTES;
    ASSERT_TRUE(Cover(address));
    ASSERT_TRUE(Cover(address)) << "twice is as good as once";
    heap_page_t *page = heap_page_of(address);
    EXPECT_NE(page, &heap_no_page);
    EXPECT_EQ(page->kind, HEAP_PAGE_NONE);
    EXPECT_EQ(heap_page_of(address + HEAP_PAGE_BYTES - 1), page);
    EXPECT_EQ(heap_page_of(address + HEAP_PAGE_BYTES), page + 1);
    EXPECT_EQ(heap_page_of(address - 1), page - 1);
    // Nothing else changed: neighbouring leaves, and aliases above 2^48.
    for (uintptr_t other : {address - kLeafBytes, address + kLeafBytes,
                            address + kLimit, address + (uintptr_t{1} << 63)}) {
      EXPECT_EQ(heap_page_of(other), &heap_no_page);
    }
  });
}

// Otherwise a block's descriptor could be overlooked from then on.
TEST(PageTableTest, BaseIsFixedBeforeTheFirstDescriptor) {
  RunInChild([] {
    ASSERT_TRUE(Cover(5 * kLeafBytes));
    const uintptr_t base = heap_near_base;
    EXPECT_LT(base - reinterpret_cast<uintptr_t>(sbrk(0)), HEAP_PAGE_BYTES);
    heap_page_table_set_near(5 * kLeafBytes);
    EXPECT_EQ(heap_near_base, base);
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
    EXPECT_EQ(heap_leaves[1], nullptr);
    heap_kernel = &heap_kernel_default;
    EXPECT_TRUE(Cover(kLeafBytes));
  });
}

}  // namespace
