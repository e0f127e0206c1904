// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "viz/frame_log.h"

#include <cstdint>
#include <map>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace viz {
namespace {

struct Delta {
  uint64_t key;
  int64_t by;

  uint64_t Key() const {
    return key;
  }
  void Join(const Delta &later) {
    by += later.by;
  }
  bool IsNothing() const {
    return by == 0;
  }
};

using State = std::map<uint64_t, int64_t>;

// The state at each frame of a log.
std::map<uint32_t, State> Replay(const FrameLog<Delta> &log) {
  std::map<uint32_t, State> states;
  State state;
  size_t at = 0;
  for (const LoggedFrame &frame : log.frames()) {
    for (; at < frame.changes_end; ++at) {
      const Delta &delta = log.changes()[at];
      state[delta.key] += delta.by;
      if (state[delta.key] == 0) {
        state.erase(delta.key);
      }
    }
    states[frame.number] = state;
  }
  return states;
}

// Gives a log 1,000 frames of random changes, the last one and every 97th to be
// kept. Returns the state at each frame, recorded or not.
std::map<uint32_t, State> Fill(FrameLog<Delta> *log, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::map<uint32_t, State> states;
  State state;
  State pending;
  for (uint32_t frame = 0; frame < 1000; ++frame) {
    for (int i = 0; i < 5; ++i) {
      const uint64_t key = random() % 30;
      const auto by = static_cast<int64_t>(random() % 5) - 2;
      pending[key] += by;
      state[key] += by;
      if (state[key] == 0) {
        state.erase(key);
      }
    }
    const bool keep = frame % 97 == 0 || frame == 999;
    if (log->IsRecorded(frame, keep)) {
      for (const auto &[key, by] : pending) {
        if (by != 0) {
          log->Push({key, by});
        }
      }
      pending.clear();
      log->EndFrame(frame, keep);
    }
    states[frame] = state;
  }
  log->Finish();
  return states;
}

TEST(FrameLogTest, LargeBudgetKeepsEveryFrame) {
  FrameLog<Delta> log(100000, 1000, 1);
  const std::map<uint32_t, State> states = Fill(&log, 1);
  EXPECT_EQ(log.frames().size(), 1000u);
  EXPECT_EQ(Replay(log), states);
}

TEST(FrameLogTest, SmallBudgetDropsFramesAndStaysExact) {
  for (const size_t budget : {3000, 1000, 500, 400}) {
    FrameLog<Delta> log(budget, 1000, 1);
    const std::map<uint32_t, State> states = Fill(&log, budget);
    ASSERT_FALSE(log.overflowed());
    EXPECT_LE(log.changes().size(), budget);
    for (const auto &[frame, state] : Replay(log)) {
      ASSERT_EQ(state, states.at(frame)) << "frame " << frame;
    }
  }
}

TEST(FrameLogTest, KeptFramesStay) {
  FrameLog<Delta> log(400, 1000, 1);
  Fill(&log, 2);
  const std::map<uint32_t, State> replayed = Replay(log);
  EXPECT_LT(replayed.size(), 50u);
  for (uint32_t frame = 0; frame < 1000; frame += 97) {
    EXPECT_EQ(replayed.count(frame), 1u) << frame;
  }
  EXPECT_EQ(replayed.count(999), 1u);
}

TEST(FrameLogTest, OverflowsRatherThanDropBelowTheFewestFrames) {
  FrameLog<Delta> log(300, 1000, 500);
  Fill(&log, 3);
  EXPECT_TRUE(log.overflowed());
  EXPECT_TRUE(log.frames().empty());
  EXPECT_TRUE(log.changes().empty());
}

}  // namespace
}  // namespace viz
