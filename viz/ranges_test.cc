// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// MappedRanges and Footprint against sets of pages.

#include <cstdint>
#include <iterator>
#include <map>
#include <random>
#include <set>
#include <utility>

#include "gtest/gtest.h"
#include "viz/footprint.h"
#include "viz/mapped_ranges.h"

namespace viz {
namespace {

TEST(MappedRangesTest, TellsWhatReallyChanged) {
  std::mt19937_64 random(1);
  MappedRanges ranges;
  std::set<uint64_t> expected;
  for (int i = 0; i < 20000; ++i) {
    const uint64_t start = random() % 300;
    const uint64_t end = start + random() % 40;
    const bool add = random() % 2 == 0;
    std::set<uint64_t> told;
    const auto visit = [&told](uint64_t a, uint64_t b) {
      ASSERT_LT(a, b);
      for (; a < b; ++a) {
        ASSERT_TRUE(told.insert(a).second) << "told twice";
      }
    };
    std::set<uint64_t> changed;
    for (uint64_t at = start; at < end; ++at) {
      if (add ? expected.insert(at).second : expected.erase(at) == 1) {
        changed.insert(at);
      }
    }
    if (add) {
      ranges.Add(start, end, visit);
    } else {
      ranges.Remove(start, end, visit);
    }
    ASSERT_EQ(told, changed);
    ASSERT_EQ(ranges.bytes(), expected.size());
  }
}

TEST(FootprintTest, CountsPagesWithAByteInUse) {
  std::mt19937_64 random(2);
  Footprint footprint;
  std::map<uint64_t, uint64_t> blocks;  // Start to end.
  uint64_t pages_expected = 0;
  for (int i = 0; i < 20000; ++i) {
    const uint64_t start = random() % 1000 * 512;
    const auto found = blocks.find(start);
    if (found != blocks.end()) {
      footprint.Remove(start, found->second);
      blocks.erase(found);
    } else {
      const auto next = blocks.upper_bound(start);
      const uint64_t room =
          (next == blocks.end() ? start + 65536 : next->first) - start;
      if (next != blocks.begin() && std::prev(next)->second > start) {
        continue;
      }
      // Often up to the very end of a page.
      const uint64_t end =
          random() % 3 == 0 ? start + room : start + 1 + random() % room;
      footprint.Add(start, end);
      blocks[start] = end;
    }
    if (i % 100 == 0) {
      std::set<uint64_t> pages;
      for (const auto &[a, b] : blocks) {
        for (uint64_t page = a / 4096; page <= (b - 1) / 4096; ++page) {
          pages.insert(page);
        }
      }
      pages_expected = pages.size();
      ASSERT_EQ(footprint.bytes(), pages_expected * 4096);
    }
  }
  for (const auto &[start, end] : blocks) {
    footprint.Remove(start, end);
  }
  EXPECT_EQ(footprint.bytes(), 0u);
}

}  // namespace
}  // namespace viz
