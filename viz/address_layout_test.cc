// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/address_layout.h"

#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace viz {
namespace {

// Whether one range holds all of [start, start + bytes).
bool Covers(const std::vector<AddressRange> &ranges, uint64_t start,
            uint64_t bytes) {
  for (const AddressRange &range : ranges) {
    if (range.start <= start && start + bytes <= range.end) {
      return true;
    }
  }
  return false;
}

TEST(TouchedAddressesTest, NothingTouchedIsNothing) {
  EXPECT_TRUE(TouchedAddresses().Ranges().empty());
}

TEST(TouchedAddressesTest, NeighboursAreOneRange) {
  TouchedAddresses touched;
  touched.Add(0x10010, 16);
  touched.Add(0x11ff8, 16);
  touched.Add(0x20000, 0);
  const std::vector<AddressRange> ranges = touched.Ranges();
  ASSERT_EQ(ranges.size(), 2u);
  EXPECT_EQ(ranges[0].start, 0x10000u);
  EXPECT_EQ(ranges[0].end, 0x13000u);
  EXPECT_EQ(ranges[1].start, 0x20000u);
  EXPECT_EQ(ranges[1].end, 0x21000u);
}

TEST(TouchedAddressesTest, WideBlocksJoinNarrowOnes) {
  TouchedAddresses touched;
  touched.Add(0x100000, 1 << 24);
  touched.Add(0x0ff000, 100);
  ASSERT_EQ(touched.Ranges().size(), 1u);
  EXPECT_EQ(touched.Ranges()[0].start, 0xff000u);
  EXPECT_EQ(touched.Ranges()[0].end, 0x1100000u);
}

TEST(TouchedAddressesTest, ManyScatteredBlocksStayCovered) {
  std::mt19937_64 random(3);
  TouchedAddresses touched;
  std::vector<uint64_t> starts;
  for (int i = 0; i < 400000; ++i) {
    starts.push_back(random() >> 16);
    touched.Add(starts.back(), 100);
  }
  for (int i = 0; i < 20000; ++i) {
    starts.push_back(random() >> 16);
    touched.Add(starts.back(), 1 << 20);
  }
  const std::vector<AddressRange> ranges = touched.Ranges();
  EXPECT_LE(ranges.size(), 300000u);
  for (size_t i = 1; i < ranges.size(); ++i) {
    ASSERT_GT(ranges[i].start, ranges[i - 1].end);
  }
  for (size_t i = 0; i < starts.size(); i += 1000) {
    ASSERT_TRUE(Covers(ranges, starts[i], i < 400000 ? 100 : 1 << 20));
  }
}

TEST(TouchedAddressesTest, EndsOfTheAddressSpaceAreFine) {
  TouchedAddresses touched;
  touched.Add(0, 1);
  touched.Add(UINT64_MAX, 1000);
  touched.Add(UINT64_MAX - (1 << 20), UINT64_MAX);
  const std::vector<AddressRange> ranges = touched.Ranges();
  ASSERT_EQ(ranges.size(), 2u);
  EXPECT_EQ(ranges.back().end, UINT64_MAX);
}

TEST(AddressLayoutTest, NoRangesAreNoCells) {
  const AddressLayout layout({}, 4096);
  EXPECT_EQ(layout.cell_count(), 0u);
  EXPECT_EQ(layout.SegmentAt(5, 0), 0u);
}

TEST(AddressLayoutTest, SmallHeapHasTheSmallestCells) {
  const AddressLayout layout({{0x10000, 0x11000}}, 4096);
  EXPECT_EQ(layout.cell_bits(), AddressLayout::kCellBitsMin);
  EXPECT_EQ(layout.cell_count(), 256u);
}

TEST(AddressLayoutTest, WideGapsSplitSegmentsAndNarrowOnesDoNot) {
  const AddressLayout layout({{0x10000, 0x11000},
                              {0x11100, 0x12000},
                              {0x555500000000, 0x555500001000}},
                             4096);
  ASSERT_EQ(layout.segments().size(), 2u);
  EXPECT_EQ(layout.segments()[0].start, 0x10000u);
  EXPECT_EQ(layout.segments()[0].end, 0x12000u);
  EXPECT_EQ(layout.segments()[1].first_cell, 512u);
}

TEST(AddressLayoutTest, SegmentAtFindsTheOneOrTheNext) {
  const AddressLayout layout({{0x10000, 0x11000}, {0x90000, 0x91000}}, 4096);
  for (size_t hint : {0, 1, 2}) {
    EXPECT_EQ(layout.SegmentAt(0, hint), 0u);
    EXPECT_EQ(layout.SegmentAt(0x10fff, hint), 0u);
    EXPECT_EQ(layout.SegmentAt(0x11000, hint), 1u);
    EXPECT_EQ(layout.SegmentAt(0x90000, hint), 1u);
    EXPECT_EQ(layout.SegmentAt(0x91000, hint), 2u);
  }
}

TEST(AddressLayoutTest, LimitsHoldForAnyRanges) {
  std::mt19937_64 random(5);
  for (int round = 0; round < 50; ++round) {
    std::vector<AddressRange> ranges;
    uint64_t at = random() >> (random() % 60);
    for (int i = 0; i < 2000; ++i) {
      const uint64_t start = at + (random() >> (12 + random() % 50));
      const uint64_t end = start + 1 + (random() >> (12 + random() % 50));
      if (start < at || end < start) {
        break;
      }
      ranges.push_back({start, end});
      at = end + 1;
    }
    const AddressLayout layout(ranges, 4096);
    ASSERT_LE(layout.cell_count(), 4096u);
    ASSERT_LE(layout.segments().size(), AddressLayout::kSegmentsMax);
    ASSERT_EQ(layout.cell_count() % 16, 0u);
    for (const AddressRange &range : ranges) {
      const size_t segment = layout.SegmentAt(range.start, 0);
      ASSERT_LT(segment, layout.segments().size());
      ASSERT_LE(layout.segments()[segment].start, range.start);
      ASSERT_GE(layout.segments()[segment].end, range.end);
    }
  }
}

TEST(AddressLayoutTest, JoinedCellsCoverTheSame) {
  const AddressLayout layout({{0x10000, 0x31000}, {0x90000, 0x91000}}, 16384);
  const AddressLayout joined = layout.Joined(4);
  EXPECT_EQ(joined.cell_count(), layout.cell_count() / 16);
  EXPECT_EQ(joined.cell_bits(), layout.cell_bits() + 4);
  ASSERT_EQ(joined.segments().size(), 2u);
  EXPECT_EQ(joined.segments()[1].first_cell,
            layout.segments()[1].first_cell / 16);
}

}  // namespace
}  // namespace viz
