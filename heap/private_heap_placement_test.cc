// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What each strategy of private heaps places where.

#include <cstddef>
#include <vector>

#include "gtest/gtest.h"
#include "heap/private_heap.h"
#include "heap/private_heap_testing.h"

namespace {

using heap_testing::Create;
using heap_testing::Heap;
using heap_testing::Options;
using heap_testing::Stats;

// Frees holes of the given sizes, with live blocks between; returns where they
// are.
std::vector<void *> MakeHoles(heap_t *heap, const std::vector<size_t> &sizes) {
  std::vector<void *> holes;
  for (size_t size : sizes) {
    holes.push_back(heap_alloc_in(heap, size));
    EXPECT_NE(heap_alloc_in(heap, 16), nullptr);
  }
  for (void *hole : holes) {
    heap_free_in(heap, hole);
  }
  return holes;
}

TEST(PlacementTest, FirstFitTakesTheLowest) {
  const Heap heap = Create(Options(HEAP_FIRST_FIT));
  const auto holes = MakeHoles(heap.get(), {32, 4096, 512, 500000});
  EXPECT_EQ(heap_alloc_in(heap.get(), 500), holes[1]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 20), holes[0]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 500),
            static_cast<char *>(holes[1]) + 512);
}

TEST(PlacementTest, NextFitGoesOn) {
  // All of the heap is taken, so that a search that reaches the end starts at
  // the low end again.
  heap_options_t options = Options(HEAP_NEXT_FIT);
  options.limit_bytes = 65536;
  const Heap heap = Create(options);
  const auto holes = MakeHoles(heap.get(), {512, 512, 1024, 512});
  void *rest = heap_alloc_in(heap.get(), Stats(heap).largest_free_bytes);
  ASSERT_NE(rest, nullptr);
  // The search ended at the end.
  auto *first = static_cast<char *>(heap_alloc_in(heap.get(), 256));
  EXPECT_EQ(first, holes[0]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 512), holes[1]) << "too large for it";
  // First fit would take the rest of holes[0].
  EXPECT_EQ(heap_alloc_in(heap.get(), 256), holes[2]);
  heap_free_in(heap.get(), first);
  EXPECT_EQ(heap_alloc_in(heap.get(), 256), static_cast<char *>(holes[2]) + 256)
      << "not the hole just made";
  EXPECT_EQ(heap_alloc_in(heap.get(), 512),
            static_cast<char *>(holes[2]) + 512);
  EXPECT_EQ(heap_alloc_in(heap.get(), 512), holes[3]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 16), holes[0]) << "from the low end";
}

TEST(PlacementTest, BestFitTakesTheSmallest) {
  const Heap heap = Create(Options(HEAP_BEST_FIT));
  const auto holes = MakeHoles(heap.get(), {4096, 528, 512, 2048, 512, 8192});
  EXPECT_EQ(heap_alloc_in(heap.get(), 500), holes[2]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 500), holes[4]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 500), holes[1]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 500), holes[3]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 3000), holes[0]);
}

TEST(PlacementTest, TlsfTakesOneThatIsSurelyLargeEnough) {
  const Heap heap = Create(Options(HEAP_TLSF));
  const auto holes = MakeHoles(heap.get(), {8192, 1040, 1024, 1600});
  // Lengths of 64 to 67 granules are one range: of the two holes in it the one
  // freed last comes first, whichever is smaller.
  EXPECT_EQ(heap_alloc_in(heap.get(), 1024), holes[2]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 1024), holes[1]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 1500), holes[3]);
  EXPECT_EQ(heap_alloc_in(heap.get(), 1500), holes[0]);
}

TEST(PlacementTest, BuddiesAreHalves) {
  const Heap heap = Create(Options(HEAP_BUDDY));
  auto *first = static_cast<char *>(heap_alloc_in(heap.get(), 4096));
  auto *second = static_cast<char *>(heap_alloc_in(heap.get(), 1000));
  auto *third = static_cast<char *>(heap_alloc_in(heap.get(), 1024));
  EXPECT_EQ(second, first + 4096);
  EXPECT_EQ(third, second + 1024);
  EXPECT_EQ(heap_usable_size_in(heap.get(), second), 1024u);
  EXPECT_EQ(heap_realloc_in(heap.get(), second, 100), second);
  EXPECT_EQ(heap_usable_size_in(heap.get(), second), 128u);
  heap_free_in(heap.get(), third);
  EXPECT_EQ(heap_realloc_in(heap.get(), second, 4096), second);
  EXPECT_EQ(heap_usable_size_in(heap.get(), second), 4096u);
  EXPECT_STREQ(heap_check_in(heap.get()), nullptr);
  EXPECT_EQ(heap_aligned_alloc_in(heap.get(), size_t{1} << 20, 16), nullptr);
  EXPECT_NE(heap_aligned_alloc_in(heap.get(), 65536, 16), nullptr);
}

TEST(PlacementTest, LittleIsNotSplitOff) {
  heap_options_t options = Options(HEAP_BEST_FIT);
  options.split_bytes = 128;
  const Heap heap = Create(options);
  const auto holes = MakeHoles(heap.get(), {1024});
  void *ptr = heap_alloc_in(heap.get(), 1024 - 112);
  EXPECT_EQ(ptr, holes[0]);
  EXPECT_EQ(heap_usable_size_in(heap.get(), ptr), 1024u);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, 1024 - 128), ptr);
  EXPECT_EQ(heap_usable_size_in(heap.get(), ptr), 1024u - 128);
  // What is free behind it and what it gives up are too little together.
  void *next = heap_alloc_in(heap.get(), 128);
  ASSERT_EQ(next, static_cast<char *>(ptr) + 1024 - 128);
  EXPECT_EQ(heap_realloc_in(heap.get(), ptr, 1024 - 128 - 112), ptr);
  EXPECT_EQ(heap_usable_size_in(heap.get(), ptr), 1024u - 128);
}

}  // namespace
