// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/recorder_extent.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <memory>
#include <random>
#include <utility>
#include <vector>

namespace {

using Ranges = std::vector<std::pair<uintptr_t, uintptr_t>>;

class RecorderExtentTest : public ::testing::Test {
 protected:
  void Add(uintptr_t start, uintptr_t end) {
    recorder_extent_add(set_.get(), start, end);
  }

  void Remove(uintptr_t start, uintptr_t end) {
    recorder_extent_remove(set_.get(), start, end);
  }

  Ranges All() const {
    Ranges all;
    for (size_t i = 0; i < set_->count; i++) {
      all.emplace_back(set_->ranges[i].start, set_->ranges[i].end);
    }
    return all;
  }

  std::unique_ptr<recorder_extent_t, decltype(&free)> set_{
      static_cast<recorder_extent_t *>(calloc(1, sizeof(recorder_extent_t))),
      free};
};

TEST_F(RecorderExtentTest, NeighboursBecomeOne) {
  Add(10, 20);
  Add(30, 40);
  EXPECT_EQ(All(), (Ranges{{10, 20}, {30, 40}}));
  Add(20, 30);
  EXPECT_EQ(All(), (Ranges{{10, 40}}));
  Add(40, 50);
  Add(5, 10);
  EXPECT_EQ(All(), (Ranges{{5, 50}}));
}

TEST_F(RecorderExtentTest, StaySortedWhateverTheOrder) {
  Add(50, 60);
  Add(10, 20);
  Add(30, 40);
  EXPECT_EQ(All(), (Ranges{{10, 20}, {30, 40}, {50, 60}}));
}

TEST_F(RecorderExtentTest, RemovingTheMiddleLeavesBothEnds) {
  Add(10, 50);
  Remove(20, 30);
  EXPECT_EQ(All(), (Ranges{{10, 20}, {30, 50}}));
  Remove(10, 20);
  EXPECT_EQ(All(), (Ranges{{30, 50}}));
  Remove(40, 50);
  EXPECT_EQ(All(), (Ranges{{30, 40}}));
}

TEST_F(RecorderExtentTest, RemovingOverGapsIgnoresThem) {
  Add(10, 20);
  Add(30, 40);
  Add(50, 60);
  Remove(15, 55);
  EXPECT_EQ(All(), (Ranges{{10, 15}, {55, 60}}));
  Remove(0, 100);
  EXPECT_EQ(All(), Ranges());
  Remove(0, 100);
}

TEST_F(RecorderExtentTest, FullSetCountsWhatItDrops) {
  for (uintptr_t i = 0; i < RECORDER_EXTENT_CAPACITY + 5; i++) {
    Add(20 * i, 20 * i + 10);
  }
  EXPECT_EQ(set_->count, RECORDER_EXTENT_CAPACITY);
  EXPECT_EQ(set_->num_dropped, 5u);
  Remove(20, 30);
  Add(20, 30);
  EXPECT_EQ(set_->num_dropped, 5u);
}

TEST_F(RecorderExtentTest, AgreesWithABitmap) {
  const unsigned seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937 random(seed);
  constexpr uintptr_t kUnits = 200;
  std::vector<bool> model(kUnits + 1);
  for (int i = 0; i < 20000; i++) {
    uintptr_t start = random() % kUnits;
    uintptr_t end = start + 1 + random() % (kUnits - start);
    bool free_range = true;
    for (uintptr_t unit = start; unit < end; unit++) {
      free_range = free_range && !model[unit];
    }
    bool add = free_range;
    if (add) {
      Add(start, end);
    } else {
      Remove(start, end);
    }
    for (uintptr_t unit = start; unit < end; unit++) {
      model[unit] = add;
    }
    Ranges expected;
    for (uintptr_t unit = 0; unit < kUnits; unit++) {
      if (model[unit] && (unit == 0 || !model[unit - 1])) {
        expected.emplace_back(unit, unit);
      }
      if (model[unit]) {
        expected.back().second = unit + 1;
      }
    }
    ASSERT_EQ(All(), expected);
  }
}

}  // namespace
