// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the tests of blocks share: a heap of every kind of region.

#ifndef MY_ALLOC_SHMIPC_BLOCK_TESTING_H_
#define MY_ALLOC_SHMIPC_BLOCK_TESTING_H_

#include <cstddef>
#include <string>

#include "gtest/gtest.h"
#include "shmipc/block.h"
#include "shmipc/block_internal.h"
#include "shmipc/block_layout.h"
#include "shmipc/shared_heap.h"
#include "shmipc/shmipc_testing.h"

namespace shmipc_testing {

constexpr size_t kPage = SHMIPC_PAGE_BYTES;

class HeapTest : public testing::TestWithParam<shmipc_backend_t> {
 protected:
  explicit HeapTest(size_t num_pages = 64)
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

inline std::string BackendName(
    const testing::TestParamInfo<shmipc_backend_t> &info) {
  return NameOf(info.param);
}

}  // namespace shmipc_testing

#endif  // MY_ALLOC_SHMIPC_BLOCK_TESTING_H_
