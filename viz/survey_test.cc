// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/survey.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"
#include "viz/analysis_oracle.h"
#include "viz/fake_source.h"

namespace viz {
namespace {

heaplog_event_t Alloc(uint64_t time_ns, uint64_t address, uint64_t size_bytes,
                      uint32_t stack_id) {
  heaplog_event_t event = {};
  event.kind = HEAPLOG_ALLOC;
  event.time_ns = time_ns;
  event.address = address;
  event.size_bytes = size_bytes;
  event.usable_bytes = size_bytes;
  event.stack_id = stack_id;
  return event;
}

heaplog_event_t Other(heaplog_kind_t kind, uint64_t time_ns, uint64_t address,
                      uint64_t size_bytes) {
  heaplog_event_t event = Alloc(time_ns, address, size_bytes, 0);
  event.kind = kind;
  return event;
}

heaplog_event_t Free(uint64_t time_ns, uint64_t address) {
  return Other(HEAPLOG_FREE, time_ns, address, 0);
}

Survey SurveyOf(const std::vector<heaplog_event_t> &events) {
  Survey survey;
  survey.Add(events.data(), events.size());
  survey.Finish();
  return survey;
}

const StackTotals &Stack(const Survey &survey, uint32_t stack_id) {
  return survey.stacks()[survey.StackIndex(stack_id)];
}

TEST(SizeBucketTest, BucketsEndAtPowersOfTwo) {
  EXPECT_EQ(SizeBucket(0), 0u);
  EXPECT_EQ(SizeBucket(1), 0u);
  EXPECT_EQ(SizeBucket(2), 1u);
  EXPECT_EQ(SizeBucket(3), 2u);
  EXPECT_EQ(SizeBucket(4), 2u);
  EXPECT_EQ(SizeBucket(5), 3u);
  EXPECT_EQ(SizeBucket(4096), 12u);
  EXPECT_EQ(SizeBucket(4097), 13u);
  EXPECT_EQ(SizeBucket(UINT64_MAX), kSizeBuckets - 1);
}

TEST(LifetimeBucketTest, BucketsEndAt125Steps) {
  EXPECT_EQ(LifetimeBucketEndNs(0), 100u);
  EXPECT_EQ(LifetimeBucketEndNs(1), 200u);
  EXPECT_EQ(LifetimeBucketEndNs(2), 500u);
  EXPECT_EQ(LifetimeBucketEndNs(3), 1000u);
  EXPECT_EQ(LifetimeBucketEndNs(30), 1000000000000u);
  EXPECT_EQ(LifetimeBucket(0), 0u);
  EXPECT_EQ(LifetimeBucket(99), 0u);
  EXPECT_EQ(LifetimeBucket(100), 1u);
  EXPECT_EQ(LifetimeBucket(999999999999), 30u);
  EXPECT_EQ(LifetimeBucket(UINT64_MAX), kLifetimeBuckets - 2);
}

TEST(SurveyTest, EmptyLogHasZeroTotals) {
  const Survey survey = SurveyOf({});
  EXPECT_EQ(survey.totals().events, 0u);
  EXPECT_EQ(survey.totals().peak_event_count, 0u);
  EXPECT_TRUE(survey.stacks().empty());
}

TEST(SurveyTest, PeakIsTheFirstMomentOfTheGreatestSum) {
  const Survey survey = SurveyOf({Alloc(10, 0x1000, 100, 1), Free(20, 0x1000),
                                  Alloc(30, 0x1000, 60, 1),
                                  Alloc(40, 0x2000, 40, 2), Free(50, 0x1000)});
  EXPECT_EQ(survey.totals().peak_live_bytes, 100u);
  EXPECT_EQ(survey.totals().peak_event_count, 1u);
  EXPECT_EQ(survey.totals().peak_time_ns, 10u);
  EXPECT_EQ(Stack(survey, 1).at_peak_bytes, 100u);
  EXPECT_EQ(Stack(survey, 2).at_peak_bytes, 0u);
}

TEST(SurveyTest, PeakAtTheEndCounts) {
  const Survey survey =
      SurveyOf({Alloc(10, 0x1000, 100, 1), Alloc(20, 0x2000, 50, 2)});
  EXPECT_EQ(survey.totals().peak_event_count, 2u);
  EXPECT_EQ(Stack(survey, 1).at_peak_bytes, 100u);
  EXPECT_EQ(Stack(survey, 2).at_peak_bytes, 50u);
}

TEST(SurveyTest, TemporaryIsFreedBeforeTheNextAllocationOfItsThread) {
  const Survey survey =
      SurveyOf({Alloc(1, 0x1000, 1, 1), Free(2, 0x1000), Alloc(3, 0x1000, 1, 1),
                Alloc(4, 0x2000, 1, 1), Free(5, 0x1000), Free(6, 0x2000)});
  EXPECT_EQ(survey.totals().temporary, 2u);
}

TEST(SurveyTest, BlockFreedByAnotherThreadIsNotTemporary) {
  heaplog_event_t free = Free(2, 0x1000);
  free.thread_index = 1;
  EXPECT_EQ(SurveyOf({Alloc(1, 0x1000, 1, 1), free}).totals().temporary, 0u);
}

TEST(SurveyTest, ResizeMovesBytesToTheStackThatResized) {
  heaplog_event_t resize = Other(HEAPLOG_RESIZE, 2, 0x1000, 150);
  resize.stack_id = 2;
  const Survey survey = SurveyOf({Alloc(1, 0x1000, 100, 1), resize});
  EXPECT_EQ(survey.totals().live_bytes, 150u);
  EXPECT_EQ(survey.totals().allocated_bytes, 150u);
  EXPECT_EQ(survey.totals().allocations, 1u);
  EXPECT_EQ(survey.totals().resizes, 1u);
  EXPECT_EQ(Stack(survey, 1).live_bytes, 0u);
  EXPECT_EQ(Stack(survey, 1).allocated_bytes, 100u);
  EXPECT_EQ(Stack(survey, 2).live_bytes, 150u);
  EXPECT_EQ(Stack(survey, 2).allocated_bytes, 50u);
}

TEST(SurveyTest, WhatCannotBeTrueIsCounted) {
  const Survey survey =
      SurveyOf({Alloc(1, 0x1000, 10, 1), Alloc(2, 0x1000, 20, 1),
                Free(3, 0x5000), Other(HEAPLOG_RESIZE, 4, 0x5000, 8),
                Alloc(5, 0, 30, 1), Free(6, 0), Other(HEAPLOG_LOST, 7, 0, 12)});
  const Totals &totals = survey.totals();
  EXPECT_EQ(totals.live_bytes, 20u);
  EXPECT_EQ(totals.live_blocks, 1u);
  EXPECT_EQ(totals.frees, 0u);
  EXPECT_EQ(totals.anomalies.overwritten_blocks, 1u);
  EXPECT_EQ(totals.anomalies.unknown_frees, 2u);
  EXPECT_EQ(totals.anomalies.unknown_resizes, 1u);
  EXPECT_EQ(totals.anomalies.null_allocations, 1u);
  EXPECT_EQ(totals.lost_events, 12u);
}

TEST(SurveyTest, HistogramHasEachBlockOnce) {
  const Survey survey = SurveyOf({Alloc(0, 0x1000, 100, 1), Free(150, 0x1000),
                                  Alloc(200, 0x2000, 5000, 1)});
  EXPECT_EQ(survey.histogram(SizeBucket(100), 1).blocks, 1u);
  EXPECT_EQ(survey.histogram(SizeBucket(100), 1).bytes, 100u);
  const HistogramCell &live =
      survey.histogram(SizeBucket(5000), kLifetimeBuckets - 1);
  EXPECT_EQ(live.blocks, 1u);
  EXPECT_EQ(live.bytes, 5000u);
}

TEST(SurveyTest, SizesThatOverflowDoNoHarm) {
  const Survey survey =
      SurveyOf({Alloc(1, 0x1000, UINT64_MAX, 1),
                Alloc(2, 0x2000, UINT64_MAX, 1), Free(3, 0x1000)});
  EXPECT_EQ(survey.totals().live_blocks, 1u);
}

class SurveyOracleTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(SurveyOracleTest, TotalsAndStacksAreTheOracles) {
  RandomEventsOptions options;
  options.seed = GetParam();
  options.is_lossy = GetParam() % 2 == 0;
  const Oracle oracle(RandomEvents(options));
  const Survey survey = SurveyOf(oracle.events());
  const Totals &totals = survey.totals();
  const std::vector<uint64_t> live = oracle.LiveBytesAfterEach();
  const auto peak = std::max_element(live.begin(), live.end());
  EXPECT_EQ(totals.peak_live_bytes, *peak);
  EXPECT_EQ(totals.peak_event_count,
            static_cast<uint64_t>(peak - live.begin()));
  const OracleState end = oracle.After(oracle.events().size());
  EXPECT_EQ(totals.allocations, end.allocations);
  EXPECT_EQ(totals.frees, end.frees);
  EXPECT_EQ(totals.resizes, end.resizes);
  EXPECT_EQ(totals.temporary, end.temporary);
  EXPECT_EQ(totals.allocated_bytes, end.allocated_bytes);
  EXPECT_EQ(totals.live_bytes, end.LiveBytes());
  EXPECT_EQ(totals.live_blocks, end.blocks.size());
  OracleState at_peak = oracle.After(totals.peak_event_count);
  EXPECT_EQ(totals.peak_live_blocks, at_peak.blocks.size());
  for (const auto &[stack_id, expected] : end.stacks) {
    const StackTotals &stack = Stack(survey, stack_id);
    EXPECT_EQ(stack.allocations, expected.allocations);
    EXPECT_EQ(stack.allocated_bytes, expected.allocated_bytes);
    EXPECT_EQ(stack.temporary, expected.temporary);
    EXPECT_EQ(stack.live_bytes, expected.live_bytes);
    EXPECT_EQ(stack.at_peak_bytes, at_peak.stacks[stack_id].live_bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SurveyOracleTest,
                         ::testing::Range<uint64_t>(1, 21));

}  // namespace
}  // namespace viz
