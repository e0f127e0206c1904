// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Both passes against the oracle, over random histories: every figure of every
// frame, every cell of the map, every stack.

#include "viz/timeline.h"

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "viz/analysis_oracle.h"
#include "viz/fake_source.h"
#include "viz/stack_slots.h"
#include "viz/survey.h"

namespace viz {
namespace {

bool NoWrapper(uint64_t, uint64_t) {
  return false;
}

// Both passes over some events.
struct Analysis {
  Analysis(const std::vector<heaplog_event_t> &events,
           const TimelineLimits &limits,
           const StackSlotsLimits &slot_limits = StackSlotsLimits())
      : source(events) {
    // Stack 2k + 1 calls from k, so that there is a tree.
    for (uint32_t id = 1; id <= 200; ++id) {
      source.SetStack(id, id / 2, 0x400000 + 16 * id);
    }
    survey.Add(events.data(), events.size());
    survey.Finish();
    slots =
        std::make_unique<StackSlots>(survey, source, NoWrapper, slot_limits);
    timeline = std::make_unique<Timeline>(survey, *slots, limits);
    // In two parts, as batches end anywhere.
    const size_t half = events.size() / 2;
    timeline->Add(events.data(), half);
    timeline->Add(events.data() + half, events.size() - half);
    timeline->Finish();
  }

  FakeSource source;
  Survey survey;
  std::unique_ptr<StackSlots> slots;
  std::unique_ptr<Timeline> timeline;
};

struct CellState {
  int64_t bytes = 0;
  int64_t mapped = 0;
  int64_t blocks = 0;
  uint16_t owner = 1;
};

// What the oracle's blocks make of each cell.
class CellOracle {
 public:
  CellOracle(const Analysis &analysis, const OracleState &state)
      : analysis_(analysis),
        layout_(analysis.timeline->cells().layout()),
        shares_(layout_.cell_count()),
        cells_(layout_.cell_count()) {
    for (const auto &[address, block] : state.blocks) {
      AddBlock(address, block);
    }
    for (const auto &[page, unused] : state.mapped_pages) {
      Spread(
          page * 4096, page * 4096 + 4096,
          [this](size_t cell, int64_t bytes) { cells_[cell].mapped += bytes; });
    }
    for (size_t i = 0; i < cells_.size(); ++i) {
      SetOwner(i);
    }
  }

  const std::vector<CellState> &cells() const {
    return cells_;
  }

 private:
  struct Shares {
    std::map<size_t, int64_t> sites, threads, sizes;
  };

  template <typename Visit>
  void Spread(uint64_t start, uint64_t end, Visit visit) {
    const uint64_t cell_bytes = uint64_t{1} << layout_.cell_bits();
    for (const AddressLayout::Segment &segment : layout_.segments()) {
      const uint64_t from = std::max(start, segment.start);
      const uint64_t to = std::min(end, segment.end);
      for (uint64_t at = from; at < to;) {
        const uint64_t index = (at - segment.start) / cell_bytes;
        const uint64_t next =
            std::min(to, segment.start + (index + 1) * cell_bytes);
        visit(segment.first_cell + index, static_cast<int64_t>(next - at));
        at = next;
      }
    }
  }

  void AddBlock(uint64_t address, const OracleBlock &block) {
    const auto &threads = analysis_.timeline->owner_threads();
    const auto thread =
        std::find(threads.begin(), threads.end(), block.thread_index) -
        threads.begin();
    const size_t slot = analysis_.slots->SlotOf(block.stack_id);
    const size_t site =
        std::min<size_t>(analysis_.slots->slots()[slot].site, kOwnerSites - 1);
    if (block.size_bytes == 0) {
      Spread(address, address + 1,
             [this](size_t cell, int64_t) { ++cells_[cell].blocks; });
    }
    Spread(address, address + block.size_bytes,
           [&](size_t cell, int64_t bytes) {
             cells_[cell].bytes += bytes;
             ++cells_[cell].blocks;
             shares_[cell].sites[site] += bytes;
             shares_[cell].threads[static_cast<size_t>(thread)] += bytes;
             shares_[cell].sizes[OwnerSize(block.size_bytes)] += bytes;
           });
  }

  static uint8_t Most(const std::map<size_t, int64_t> &shares) {
    const auto most = std::max_element(
        shares.begin(), shares.end(),
        [](const auto &a, const auto &b) { return a.second < b.second; });
    return static_cast<uint8_t>(most->first);
  }

  void SetOwner(size_t cell) {
    if (cells_[cell].bytes > 0) {
      cells_[cell].owner = static_cast<uint16_t>(
          2 + PackOwner({Most(shares_[cell].sites), Most(shares_[cell].threads),
                         Most(shares_[cell].sizes)}));
    }
  }

  const Analysis &analysis_;
  const AddressLayout &layout_;
  std::vector<Shares> shares_;
  std::vector<CellState> cells_;
};

void ExpectSameCells(const std::vector<CellState> &actual,
                     const std::vector<CellState> &expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i].bytes, expected[i].bytes) << "cell " << i;
    ASSERT_EQ(actual[i].blocks, expected[i].blocks) << "cell " << i;
    ASSERT_EQ(actual[i].mapped, expected[i].mapped) << "cell " << i;
    ASSERT_EQ(actual[i].owner, expected[i].owner) << "cell " << i;
  }
}

// Adds up the recorded changes and compares at every `every`-th frame.
void CheckCells(const Analysis &analysis, const Oracle &oracle, size_t every) {
  const FrameLog<CellChange> &log = analysis.timeline->cells().log();
  ASSERT_FALSE(log.overflowed());
  std::vector<CellState> cells(
      analysis.timeline->cells().layout().cell_count());
  size_t at = 0;
  size_t number = 0;
  for (const LoggedFrame &logged : log.frames()) {
    for (; at < logged.changes_end; ++at) {
      const CellChange &change = log.changes()[at];
      CellState &cell = cells[change.cell];
      cell.bytes += change.bytes;
      cell.mapped += change.mapped;
      cell.blocks += change.blocks;
      if (change.owner != 0) {
        cell.owner = change.owner;
      }
    }
    if (number++ % every == 0 || at == log.changes().size()) {
      const TimelineFrame &frame = analysis.timeline->frames()[logged.number];
      SCOPED_TRACE(::testing::Message() << "frame " << logged.number);
      const OracleState state = oracle.After(frame.events);
      ExpectSameCells(cells, CellOracle(analysis, state).cells());
      int64_t bytes = 0;
      for (const CellState &cell : cells) {
        bytes += cell.bytes;
      }
      ASSERT_EQ(static_cast<uint64_t>(bytes), frame.live_bytes);
    }
  }
}

// Frames end between times, but for the peak's.
void CheckFrameTimes(const Analysis &analysis, const Oracle &oracle) {
  const std::vector<heaplog_event_t> &events = oracle.events();
  const uint64_t peak = analysis.survey.totals().peak_event_count;
  uint64_t last = 0;
  for (const TimelineFrame &frame : analysis.timeline->frames()) {
    ASSERT_GT(frame.events, last);
    last = frame.events;
    ASSERT_EQ(frame.time_ns, events[frame.events - 1].time_ns);
    if (frame.events < events.size() && frame.events != peak) {
      ASSERT_LT(frame.time_ns, events[frame.events].time_ns);
    }
  }
  ASSERT_EQ(last, events.size());
}

void CheckFrames(const Analysis &analysis, const Oracle &oracle, size_t every) {
  uint64_t last_events = 0;
  const std::vector<uint64_t> live = oracle.LiveBytesAfterEach();
  const std::vector<TimelineFrame> &frames = analysis.timeline->frames();
  for (size_t i = 0; i < frames.size(); ++i) {
    const TimelineFrame &frame = frames[i];
    if (i % every == 0 || i + 1 == frames.size()) {
      const OracleState state = oracle.After(frame.events);
      SCOPED_TRACE(::testing::Message() << "frame " << i);
      ASSERT_EQ(frame.live_bytes, state.LiveBytes());
      ASSERT_EQ(frame.live_blocks, state.blocks.size());
      ASSERT_EQ(frame.usable_bytes, state.UsableBytes());
      ASSERT_EQ(frame.footprint_bytes, state.FootprintBytes());
      ASSERT_EQ(frame.mapped_bytes, state.MappedBytes());
      ASSERT_EQ(frame.resident_bytes, state.resident_bytes);
      ASSERT_EQ(frame.allocations, state.allocations);
      ASSERT_EQ(frame.frees, state.frees);
      ASSERT_EQ(frame.temporary, state.temporary);
      const auto first = live.begin() + static_cast<ptrdiff_t>(last_events);
      const auto end = live.begin() + static_cast<ptrdiff_t>(frame.events) + 1;
      ASSERT_EQ(frame.highest_live_bytes, *std::max_element(first, end));
    }
    last_events = frame.events;
  }
}

// Slots, added up over their frames, are the oracle's stacks at each.
void CheckSlots(const Analysis &analysis, const Oracle &oracle, size_t every) {
  const FrameLog<SlotChange> &log = analysis.timeline->slots().log();
  std::map<uint32_t, OracleStack> actual;  // By slot.
  size_t at = 0;
  size_t number = 0;
  for (const LoggedFrame &logged : log.frames()) {
    for (; at < logged.changes_end; ++at) {
      const SlotChange &change = log.changes()[at];
      OracleStack &slot = actual[change.slot];
      slot.allocations += change.allocations;
      slot.allocated_bytes += change.allocated_bytes;
      slot.temporary += change.temporary;
      slot.live_bytes += static_cast<uint64_t>(change.live_bytes);
    }
    if (number++ % every != 0 && at != log.changes().size()) {
      continue;
    }
    const OracleState state =
        oracle.After(analysis.timeline->frames()[logged.number].events);
    std::map<uint32_t, OracleStack> expected;
    for (const auto &[stack_id, stack] : state.stacks) {
      OracleStack &slot = expected[analysis.slots->SlotOf(stack_id)];
      slot.allocations += stack.allocations;
      slot.allocated_bytes += stack.allocated_bytes;
      slot.temporary += stack.temporary;
      slot.live_bytes += stack.live_bytes;
    }
    // Each slot that either knows; what is missing is nothing.
    std::map<uint32_t, OracleStack> all = actual;
    all.insert(expected.begin(), expected.end());
    for (const auto &[slot, unused] : all) {
      ASSERT_TRUE(actual[slot] == expected[slot])
          << "slot " << slot << " in frame " << logged.number;
    }
  }
}

void CheckKept(const Analysis &analysis, const Oracle &oracle) {
  const std::vector<TimelineFrame> &frames = analysis.timeline->frames();
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> expected;
  const OracleState state = oracle.After(oracle.events().size());
  for (const auto &[address, block] : state.blocks) {
    uint32_t frame = 0;
    while (frames[frame].time_ns < block.birth_ns) {
      ++frame;
    }
    expected[{frame, analysis.slots->SlotOf(block.stack_id)}] +=
        block.size_bytes;
  }
  std::map<std::pair<uint32_t, uint32_t>, uint64_t> actual;
  for (const KeptBytes &kept : analysis.timeline->kept()) {
    actual[{kept.frame, kept.slot}] = kept.bytes;
  }
  ASSERT_EQ(actual, expected);
}

class TimelineOracleTest : public ::testing::TestWithParam<uint64_t> {
 protected:
  void Check(const RandomEventsOptions &options, const TimelineLimits &limits,
             size_t every) {
    SCOPED_TRACE(::testing::Message() << "seed " << options.seed);
    const Oracle oracle(RandomEvents(options));
    const Analysis analysis(oracle.events(), limits);
    ASSERT_NO_FATAL_FAILURE(CheckFrameTimes(analysis, oracle));
    ASSERT_NO_FATAL_FAILURE(CheckFrames(analysis, oracle, every));
    ASSERT_NO_FATAL_FAILURE(CheckCells(analysis, oracle, every));
    ASSERT_NO_FATAL_FAILURE(CheckSlots(analysis, oracle, every));
    ASSERT_NO_FATAL_FAILURE(CheckKept(analysis, oracle));
  }
};

TEST_P(TimelineOracleTest, EveryEventIsAFrameInSmallLogs) {
  RandomEventsOptions options;
  options.seed = GetParam();
  options.count = 300;
  options.clump_bytes = 1 << 16;
  Check(options, TimelineLimits(), 1);
}

TEST_P(TimelineOracleTest, FewFramesAreAsExact) {
  RandomEventsOptions options;
  options.seed = GetParam();
  TimelineLimits limits;
  limits.frames = 64;
  Check(options, limits, 3);
}

TEST_P(TimelineOracleTest, FramesJoinedForTheBudgetAreAsExact) {
  RandomEventsOptions options;
  options.seed = GetParam();
  TimelineLimits limits;
  limits.cell_changes = 4000;
  limits.slot_changes = 200;
  Check(options, limits, 40);
}

TEST_P(TimelineOracleTest, WideBlocksAreAsExact) {
  RandomEventsOptions options;
  options.seed = GetParam();
  options.count = 1000;
  options.clump_bytes = 1 << 24;
  options.size_max = 1 << 18;
  TimelineLimits limits;
  limits.frames = 50;
  Check(options, limits, 5);
}

TEST_P(TimelineOracleTest, LossyLogsAreAsExact) {
  RandomEventsOptions options;
  options.seed = GetParam();
  options.is_lossy = true;
  TimelineLimits limits;
  limits.frames = 100;
  Check(options, limits, 7);
}

INSTANTIATE_TEST_SUITE_P(Seeds, TimelineOracleTest,
                         ::testing::Range<uint64_t>(1, 6));

heaplog_event_t Event(heaplog_kind_t kind, uint64_t time_ns, uint64_t address,
                      uint64_t size_bytes) {
  heaplog_event_t event = {};
  event.kind = kind;
  event.time_ns = time_ns;
  event.address = address;
  event.size_bytes = size_bytes;
  event.usable_bytes = kind == HEAPLOG_ALLOC ? size_bytes : 0;
  return event;
}

TEST(TimelineTest, EmptyLogHasOneEmptyFrame) {
  const Analysis analysis({}, TimelineLimits());
  ASSERT_EQ(analysis.timeline->frames().size(), 1u);
  EXPECT_EQ(analysis.timeline->frames()[0].live_bytes, 0u);
  EXPECT_EQ(analysis.timeline->cells().layout().cell_count(), 0u);
}

TEST(TimelineTest, PeakIsAFrameHoweverFewFramesThereAre) {
  RandomEventsOptions options;
  options.count = 5000;
  TimelineLimits limits;
  limits.frames = 4;
  limits.cell_changes = 10;
  limits.slot_changes = 100;
  const Analysis analysis(RandomEvents(options), limits);
  const Totals &totals = analysis.survey.totals();
  const std::vector<TimelineFrame> &frames = analysis.timeline->frames();
  const auto peak = std::find_if(
      frames.begin(), frames.end(), [&totals](const TimelineFrame &frame) {
        return frame.events == totals.peak_event_count;
      });
  ASSERT_NE(peak, frames.end());
  EXPECT_EQ(peak->live_bytes, totals.peak_live_bytes);
  const auto number = static_cast<uint32_t>(peak - frames.begin());
  const auto is_peak = [number](const LoggedFrame &frame) {
    return frame.number == number;
  };
  const auto &slot_frames = analysis.timeline->slots().log().frames();
  EXPECT_TRUE(std::any_of(slot_frames.begin(), slot_frames.end(), is_peak));
}

TEST(TimelineTest, SleepAndBurstBothGetFrames) {
  std::vector<heaplog_event_t> events;
  // 9,000 events in the first microsecond, 1,000 in the second after.
  for (uint64_t i = 0; i < 9000; ++i) {
    events.push_back(Event(HEAPLOG_ALLOC, i / 9, 0x1000 + 16 * i, 16));
  }
  for (uint64_t i = 0; i < 1000; ++i) {
    events.push_back(
        Event(HEAPLOG_FREE, 1000 + i * 1000000, 0x1000 + 16 * i, 0));
  }
  TimelineLimits limits;
  limits.frames = 100;
  const Analysis analysis(events, limits);
  const std::vector<TimelineFrame> &frames = analysis.timeline->frames();
  const auto in_burst = std::count_if(
      frames.begin(), frames.end(),
      [](const TimelineFrame &frame) { return frame.time_ns < 1000; });
  EXPECT_GE(in_burst, 40);
  EXPECT_LE(in_burst, 60);
  EXPECT_GE(frames.size(), 90u);
  EXPECT_LE(frames.size(), 103u);
}

TEST(TimelineTest, MoreEventsThanWereSurveyedAreIgnored) {
  std::vector<heaplog_event_t> events;
  events.push_back(Event(HEAPLOG_ALLOC, 1, 0x1000, 100));
  Survey survey;
  survey.Add(events.data(), 1);
  survey.Finish();
  events.push_back(Event(HEAPLOG_ALLOC, 2, 0x900000, 100));
  FakeSource source(events);
  const StackSlots slots(survey, source, NoWrapper, StackSlotsLimits());
  Timeline timeline(survey, slots, TimelineLimits());
  timeline.Add(events.data(), events.size());
  timeline.Finish();
  EXPECT_EQ(timeline.frames().back().live_bytes, 100u);
}

TEST(TimelineTest, OtherEventsThanWereSurveyedDoNoHarm) {
  std::vector<heaplog_event_t> events = RandomEvents(RandomEventsOptions());
  Survey survey;
  survey.Add(events.data(), events.size());
  survey.Finish();
  RandomEventsOptions others;
  others.seed = 99;
  others.stacks = 1000;
  others.clump_bytes = 1 << 28;
  others.is_lossy = true;
  events = RandomEvents(others);
  FakeSource source(events);
  const StackSlots slots(survey, source, NoWrapper, StackSlotsLimits());
  Timeline timeline(survey, slots, TimelineLimits());
  timeline.Add(events.data(), events.size());
  timeline.Finish();
  EXPECT_GT(timeline.frames().size(), 1u);
}

TEST(TimelineTest, AddressesAtBothEndsOfTheAddressSpaceAreFine) {
  std::vector<heaplog_event_t> events;
  events.push_back(Event(HEAPLOG_ALLOC, 1, 1, 100));
  events.push_back(Event(HEAPLOG_ALLOC, 2, UINT64_MAX - 10, 1000));
  events.push_back(Event(HEAPLOG_ALLOC, 3, uint64_t{1} << 63, UINT64_MAX));
  events.push_back(Event(HEAPLOG_MAP, 4, 4096, UINT64_MAX));
  events.push_back(Event(HEAPLOG_UNMAP, 5, 0, UINT64_MAX));
  events.push_back(Event(HEAPLOG_FREE, 6, uint64_t{1} << 63, 0));
  const Analysis analysis(events, TimelineLimits());
  EXPECT_EQ(analysis.timeline->frames().back().live_blocks, 2u);
  EXPECT_EQ(analysis.timeline->frames().back().mapped_bytes, 0u);
}

TEST(TimelineTest, ScatteredAddressesAreBounded) {
  std::vector<heaplog_event_t> events;
  std::mt19937_64 random(7);
  for (uint64_t i = 0; i < 300000; ++i) {
    events.push_back(Event(HEAPLOG_ALLOC, i, random() >> 17 << 4, 100));
  }
  const Analysis analysis(events, TimelineLimits());
  const AddressLayout &layout = analysis.timeline->cells().layout();
  EXPECT_LE(layout.cell_count(), TimelineLimits().cells);
  EXPECT_LE(layout.segments().size(), AddressLayout::kSegmentsMax);
  EXPECT_LE(analysis.timeline->cells().log().changes().size(),
            TimelineLimits().cell_changes);
}

}  // namespace
}  // namespace viz
