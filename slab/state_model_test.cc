// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The protocol of the states: programs with and without a mistake, in all
// interleavings (state_model.h).

#include <cstddef>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "slab/state_model.h"

namespace {

using namespace slab_testing;  // The steps.

const std::vector<Step> kFree = {kFreeLoad, kFreeStore, kFreePush};
const std::vector<Step> kAlloc = {kAllocPop, kAllocLoad, kAllocStore};
const std::vector<Step> kToDepot = {kFlushLoad, kFlushStore, kFlushToDepot};
const std::vector<Step> kToSlab = {kFlushLoad, kFlushStore, kFlushToSlab};
const std::vector<Step> kToSlabAtOnce = {kFlushLoad, kFlushFree};
const std::vector<Step> kFromDepot = {kDepotPop, kDepotLoad, kDepotStore,
                                      kRefillPush};
const std::vector<Step> kFromSlab = {kSlabTake, kRefillPush};
const std::vector<Step> kReap = {kGiveBack};

std::vector<Step> Join(const std::vector<std::vector<Step>> &parts) {
  std::vector<Step> program;
  for (const std::vector<Step> &part : parts) {
    program.insert(program.end(), part.begin(), part.end());
  }
  return program;
}

void ExpectRight(const World &world) {
  ASSERT_FALSE(world.is_reported);
  ASSERT_FALSE(world.is_in_two_hands);
  ASSERT_FALSE(world.is_lost);
  ASSERT_FALSE(world.is_dangling);
}

void ExpectReported(const World &world) {
  // Or it was a free of an object that lives again.
  const bool is_exempt = world.is_freed_live;
  ASSERT_TRUE(world.is_reported || is_exempt);
  ASSERT_TRUE(!world.is_in_two_hands || is_exempt);
  ASSERT_TRUE(!world.is_lost || is_exempt);
}

// Calls `use` with each kind of start.
template <typename Use>
void ForEachStart(Use use) {
  for (const bool is_hot : {false, true}) {
    for (const bool is_other_free : {false, true}) {
      SCOPED_TRACE(std::string("hot: ") + (is_hot ? "yes" : "no") +
                   ", other free: " + (is_other_free ? "yes" : "no"));
      use(Start{is_hot, is_other_free, true});
    }
  }
}

TEST(StateModelTest, OneThreadIsNeverReported) {
  EXPECT_EQ(Try({Join({kFree, kAlloc, kFree, kAlloc, kFree})}, ExpectRight),
            1u);
}

TEST(StateModelTest, OthersAllocsDoNotDisturbAFree) {
  // The others' magazines do not have the object.
  EXPECT_GT(Try({Join({kFree, kAlloc, kFree}), kAlloc, kAlloc}, ExpectRight),
            100u);
}

TEST(StateModelTest, TwoFreesAtOnceAreReported) {
  EXPECT_GT(Try({kFree, kFree}, ExpectReported), 10u);
}

TEST(StateModelTest, ThreeFreesAtOnceAreReported) {
  EXPECT_GT(Try({kFree, kFree, kFree}, ExpectReported), 100u);
}

TEST(StateModelTest, TwoFreesAndAllocsAreReported) {
  EXPECT_GT(Try({Join({kFree, kAlloc}), Join({kFree, kAlloc})}, ExpectReported),
            100u);
  EXPECT_GT(Try({Join({kFree, kAlloc}), kFree, kAlloc}, ExpectReported), 100u);
}

// The object is used on: what was handed out is freed again, rightly.
TEST(StateModelTest, TwoFreesAreReportedThoughUseGoesOn) {
  EXPECT_GT(Try({Join({kFree, kAlloc, kFree, kAlloc}), Join({kFree, kAlloc})},
                ExpectReported),
            1000u);
}

// A thread flushes while others are inside of their calls, and another one gets
// the object from the depot or the slab.
TEST(StateModelTest, FlushesAndRefillsAreNeverReported) {
  ForEachStart([](Start start) {
    EXPECT_GT(Try({Join({kFree, kToDepot, kFromDepot, kAlloc}),
                   Join({kFromDepot, kAlloc})},
                  ExpectRight, start),
              1000u);
    EXPECT_GT(Try({Join({kFree, kToSlab, kFromSlab, kAlloc}),
                   Join({kFromSlab, kAlloc}), kReap},
                  ExpectRight, start),
              1000u);
    EXPECT_GT(Try({Join({kFree, kToSlabAtOnce, kFromSlab, kAlloc}),
                   Join({kFromSlab, kAlloc}), kReap},
                  ExpectRight, start),
              1000u);
  });
}

TEST(StateModelTest, TwoFreesAndFlushesAreReported) {
  ForEachStart([](Start start) {
    for (const std::vector<Step> &flush : {kToDepot, kToSlab, kToSlabAtOnce}) {
      EXPECT_GT(Try({Join({kFree, flush, kReap}), Join({kFree, flush, kReap})},
                    ExpectReported, start),
                100u);
      EXPECT_GT(Try({Join({kFree, flush}), Join({kFree, kAlloc, kFree})},
                    ExpectReported, start),
                100u);
    }
    for (const std::vector<Step> &flush : {kToSlab, kToSlabAtOnce}) {
      EXPECT_GT(Try({Join({kFree, flush}), Join({kFree, kToDepot}), kReap},
                    ExpectReported, start),
                1000u);
    }
  });
}

TEST(StateModelTest, TwoFreesFlushesAndRefillsAreReported) {
  ForEachStart([](Start start) {
    EXPECT_GT(Try({Join({kFree, kToDepot}), kFree, Join({kFromDepot, kAlloc})},
                  ExpectReported, start),
              1000u);
    for (const std::vector<Step> &flush : {kToSlab, kToSlabAtOnce}) {
      EXPECT_GT(
          Try({Join({kFree, flush}), kFree, Join({kFromSlab, kAlloc, kReap})},
              ExpectReported, start),
          1000u);
    }
  });
}

TEST(StateModelTest, SlabsThatDoNotLookAreGivenBackWithALiveObject) {
  static size_t num_lost;
  num_lost = 0;
  Start start;
  start.looks_before_it_goes = false;
  Try(
      {Join({kFree, kToSlab}), Join({kFree, kToSlab}), kReap},
      [](const World &world) { num_lost += world.is_lost; }, start);
  EXPECT_GT(num_lost, 0u);
}

// The slab goes back while a magazine has the object as well, and comes back.
TEST(StateModelTest, SlotsThatOutliveTheSlabAreReported) {
  static size_t num_dangling;
  num_dangling = 0;
  ForEachStart([](Start start) {
    Try(
        {Join({kFree, kToSlab, kReap, kFromSlab, kAlloc, kFree}),
         Join({kFree, kAlloc})},
        [](const World &world) {
          num_dangling += world.is_dangling;
          ExpectReported(world);
        },
        start);
    Try({Join({kFree, kToSlab, kReap}),
         Join({kFree, kFromSlab, kAlloc, kFree, kAlloc})},
        ExpectReported, start);
  });
  EXPECT_GT(num_dangling, 0u);
}

// That the model notices what it looks for: in two hands it is.
TEST(StateModelTest, AllocsThatDoNotLookHandOutTwice) {
  static size_t num_missed;
  num_missed = 0;
  const std::vector<Step> kAllocBlindly = {kAllocPop, kAllocStore};
  Try({Join({kFree, kAllocBlindly}), Join({kFree, kAllocBlindly})},
      [](const World &world) {
        num_missed += world.is_in_two_hands && !world.is_freed_live;
      });
  EXPECT_GT(num_missed, 0u);
}

}  // namespace
