// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The arenas on the real kernel; heap_failure_test has the refusing one and
// strangers who move the break.

#include "heap/arena.h"

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <utility>

#include "gtest/gtest.h"
#include "heap/central.h"
#include "heap/heap_testing.h"

namespace {

using heap_testing::Random;
using heap_testing::RunInChild;

uintptr_t Alloc(size_t units, size_t align_bytes, bool *out_zeroed) {
  heap_central_lock();
  const uintptr_t address =
      heap_arena_alloc(units, align_bytes, HEAP_RUN_BLOCK, out_zeroed);
  heap_central_unlock();
  return address;
}

uintptr_t Alloc(size_t units) {
  bool zeroed;
  return Alloc(units, 16, &zeroed);
}

void Free(uintptr_t address) {
  heap_central_lock();
  heap_arena_free(address);
  heap_central_unlock();
}

bool Resize(uintptr_t address, size_t units) {
  heap_central_lock();
  const bool done = heap_arena_resize(address, units);
  heap_central_unlock();
  return done;
}

heap_arena_place_t Find(uintptr_t address) {
  heap_central_lock();
  const heap_arena_place_t place = heap_arena_find(address);
  heap_central_unlock();
  return place;
}

const char *Check() {
  heap_central_lock();
  const char *broken = heap_arena_check();
  heap_central_unlock();
  return broken;
}

std::pair<size_t, size_t> Totals() {
  heap_central_lock();
  heap_arena_totals_t totals = heap_arena_sum();
  heap_central_unlock();
  return {totals.mapped_bytes, totals.free_bytes};
}

void *Pointer(uintptr_t address) {
  return reinterpret_cast<void *>(address);
}

size_t Bytes(size_t units) {
  return units * HEAP_UNIT_BYTES;
}

TEST(ArenaTest, UnusedHeapHasNothingFromTheKernel) {
  RunInChild([] {
    EXPECT_EQ(Totals(), std::make_pair(size_t{0}, size_t{0}));
    EXPECT_EQ(Check(), nullptr);
    EXPECT_EQ(Find(0).kind, HEAP_RUN_NOTHING);
    EXPECT_EQ(Find(UINTPTR_MAX).kind, HEAP_RUN_NOTHING);
    EXPECT_EQ(Find(reinterpret_cast<uintptr_t>(sbrk(0))).kind,
              HEAP_RUN_NOTHING);
  });
}

TEST(ArenaTest, RunComesFromTheBreakAndIsFoundByEachOfItsAddresses) {
  RunInChild([] {
    const auto old_break = reinterpret_cast<uintptr_t>(sbrk(0));
    const uintptr_t run = Alloc(40);
    EXPECT_GE(run, old_break);
    EXPECT_LT(run, reinterpret_cast<uintptr_t>(sbrk(0)));
    for (uintptr_t address :
         {run, run + 1, run + Bytes(20), run + Bytes(40) - 1}) {
      const heap_arena_place_t place = Find(address);
      EXPECT_EQ(place.kind, HEAP_RUN_BLOCK);
      EXPECT_EQ(place.start, run);
      EXPECT_EQ(place.size_bytes, Bytes(40));
    }
    EXPECT_EQ(Find(run + Bytes(40)).kind, HEAP_RUN_FREE);
    EXPECT_EQ(Find(reinterpret_cast<uintptr_t>(sbrk(0)) - 1).kind,
              HEAP_RUN_FREE);
    EXPECT_EQ(Find(reinterpret_cast<uintptr_t>(sbrk(0))).kind,
              HEAP_RUN_NOTHING);
  });
}

TEST(ArenaTest, RequestsBeyondTheGreatestRunAreRefused) {
  RunInChild([] {
    for (size_t units : {size_t{HEAP_RUN_MAX_UNITS}, SIZE_MAX / HEAP_UNIT_BYTES,
                         size_t{UINT32_MAX} + 10, SIZE_MAX}) {
      EXPECT_EQ(Alloc(units), 0u);
      EXPECT_EQ(Check(), nullptr);
    }
    const uintptr_t run = Alloc(16);
    EXPECT_FALSE(Resize(run, size_t{HEAP_RUN_MAX_UNITS} + 1));
    EXPECT_FALSE(Resize(run, SIZE_MAX));
    EXPECT_EQ(Find(run).size_bytes, Bytes(16));
  });
}

TEST(ArenaTest, BreakComesDownAgain) {
  RunInChild([] {
    const uintptr_t low = Alloc(100);
    auto *break_before = static_cast<char *>(sbrk(0));
    const uintptr_t run = Alloc(64 << 10);
    EXPECT_GE(static_cast<char *>(sbrk(0)) - break_before, 63 << 20);
    Free(run);
    EXPECT_LE(static_cast<char *>(sbrk(0)) - break_before, 40 << 20);
    // What comes back is zero again, whatever was in it.
    bool zeroed;
    const uintptr_t again = Alloc(64 << 10, 16, &zeroed);
    EXPECT_EQ(again, run);
    Free(again);
    Free(low);
    EXPECT_EQ(Check(), nullptr);
    const auto [mapped, free] = Totals();
    EXPECT_EQ(mapped, free);
  });
}

// The shortest run is of four units, even for a request of fewer; all of it
// belongs to the block, and so none of it is fresh any more.
TEST(ArenaTest, ShortRunIsNotFreshInAnyOfItsUnits) {
  for (size_t units = 0; units < 4; ++units) {
    RunInChild([units] {
      const uintptr_t low = Alloc(9);
      const uintptr_t run = Alloc(units);
      const size_t run_bytes = Find(run).size_bytes;
      ASSERT_EQ(run, low + Bytes(9));
      ASSERT_EQ(run_bytes, Bytes(4));
      memset(Pointer(run), 0xCD, run_bytes);
      Free(run);
      Free(low);
      for (size_t first_units = 9; first_units < 14; ++first_units) {
        const uintptr_t first = Alloc(first_units);
        bool zeroed;
        const uintptr_t second = Alloc(8, 16, &zeroed);
        ASSERT_EQ(second, first + Bytes(first_units));
        EXPECT_TRUE(!zeroed || heap_testing::IsZero(Pointer(second), Bytes(8)))
            << "behind " << first_units << " units";
        Free(second);
        Free(first);
      }
    });
  }
}

TEST(ArenaTest, GrowingTheLastRunGrowsTheBreak) {
  RunInChild([] {
    const uintptr_t run = Alloc(100);
    for (size_t units = 100; units < (32 << 10); units += 1000) {
      ASSERT_TRUE(Resize(run, units));
      ASSERT_EQ(Find(run).size_bytes, Bytes(units));
      memset(Pointer(run), 1, Bytes(units));
    }
    EXPECT_EQ(Check(), nullptr);
    ASSERT_TRUE(Resize(run, 10));
    bool zeroed;
    const uintptr_t other = Alloc(100, 16, &zeroed);
    EXPECT_EQ(other, run + Bytes(10));
    EXPECT_FALSE(zeroed) << "the shrunk block had written there";
  });
}

// Random runs of all alignments, filled, against a map of their ranges; what is
// said to be zero is.
TEST(ArenaTest, RunsAgreeWithTheModel) {
  const uint64_t seed = heap_testing::Seed();
  RunInChild([seed] {
    Random random(seed);
    std::map<uintptr_t, size_t> live;  // Start, bytes.
    for (int step = 0; step < 20000; ++step) {
      const uint64_t choice = random.Below(10);
      if (choice < 5 && live.size() < 300) {
        const size_t units =
            random.OneIn(30) ? random.Below(4000) : random.Below(40);
        const size_t align = size_t{16} << random.Below(13);
        bool zeroed;
        const uintptr_t run = Alloc(units, align, &zeroed);
        ASSERT_NE(run, 0u);
        ASSERT_EQ(run % align, 0u);
        const size_t bytes = Find(run).size_bytes;
        ASSERT_GE(bytes, Bytes(units));
        ASSERT_TRUE(!zeroed || heap_testing::IsZero(Pointer(run), bytes));
        const auto next = live.lower_bound(run);
        ASSERT_TRUE(next == live.end() || run + bytes <= next->first);
        ASSERT_TRUE(next == live.begin() ||
                    std::prev(next)->first + std::prev(next)->second <= run);
        live[run] = bytes;
        heap_testing::Fill(Pointer(run), bytes, run);
      } else if (!live.empty()) {
        auto it = live.lower_bound(
            live.begin()->first +
            random.Below(live.rbegin()->first - live.begin()->first + 1));
        ASSERT_EQ(Find(it->first + random.Below(it->second)).start, it->first);
        ASSERT_TRUE(heap_testing::IsFilled(Pointer(it->first), it->second,
                                           it->second, it->first));
        const size_t units = random.Below(60) + 4;
        if (choice == 9 && Resize(it->first, units)) {
          it->second = Find(it->first).size_bytes;
          ASSERT_EQ(it->second, Bytes(units));
          heap_testing::Fill(Pointer(it->first), it->second, it->first);
        } else {
          Free(it->first);
          live.erase(it);
        }
      }
      if (step % 16 == 0) {
        ASSERT_STREQ(Check(), nullptr);
      }
    }
  });
}

}  // namespace
