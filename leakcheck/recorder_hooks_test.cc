// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The recorder without the heap, its hooks called by a program: see there.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "leakcheck/log_replay.h"
#include "leakcheck/recorder_testing.h"

namespace {

using leakcheck::LogReplay;
using leakcheck::RecordedRun;
using leakcheck::RunResult;
using ::testing::IsEmpty;

#if defined(__SANITIZE_THREAD__)
// It holds signals back until the program waits, and this one does not.
constexpr uint64_t kSignalsMin = 0;
constexpr uint64_t kLateRounds = 3;
#else
constexpr uint64_t kSignalsMin = 100;
constexpr uint64_t kLateRounds = 4;
#endif

class RecorderHooksTest : public ::testing::Test {
 protected:
  RunResult Run(const std::string &mode) {
    RunResult result = run_.RunBare(
        {leakcheck::RunfilePath("leakcheck/recorder_hooks_program"), mode},
        {"LEAKCHECK_LOG=run.heaplog"});
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    EXPECT_EQ(result.errors, "");
    return result;
  }

  std::unique_ptr<LogReplay> Replay() {
    auto replay = std::make_unique<LogReplay>(run_.Path("run.heaplog"));
    EXPECT_THAT(replay->problems(), IsEmpty());
    return replay;
  }

  RecordedRun run_;
};

TEST_F(RecorderHooksTest, EventsOfThreadsAreAllThere) {
  Run("threads");
  auto replay = Replay();
  EXPECT_EQ(replay->counts().lost, 0u);
  EXPECT_EQ(replay->counts().allocs, 8u * 20000u);
  EXPECT_EQ(replay->counts().frees, 8u * 20000u);
  EXPECT_EQ(replay->counts().resizes, 8u * 4000u);
  EXPECT_EQ(replay->counts().maps, 8u);
  EXPECT_THAT(replay->live(), IsEmpty());
}

TEST_F(RecorderHooksTest, EventsOfSignalHandlersAreThereOrCountedAsLost) {
  RunResult result = Run("signals");
  auto replay = Replay();
  uint64_t signals = strtoull(result.output.c_str(), nullptr, 10);
  EXPECT_GE(signals, kSignalsMin);
  EXPECT_GE(replay->counts().allocs, 300000u);
  EXPECT_LT(replay->counts().lost, signals / 10 + 10);
  uint64_t in_handlers = 0;
  for (const heaplog_event_t &event : replay->events()) {
    in_handlers += event.kind == HEAPLOG_ALLOC && event.size_bytes == 48;
  }
  EXPECT_LE(in_handlers, signals);
  EXPECT_GE(in_handlers + replay->counts().lost, signals);
}

TEST_F(RecorderHooksTest, EventsAfterAThreadsStreamWasClosedAreThere) {
  Run("late");
  auto replay = Replay();
  EXPECT_EQ(replay->counts().lost, 0u);
  EXPECT_EQ(replay->counts().allocs, 8u * kLateRounds);
  EXPECT_EQ(replay->counts().frees, 8u * kLateRounds);
  EXPECT_THAT(replay->live(), IsEmpty());
}

TEST_F(RecorderHooksTest, ErrnoIsPreserved) {
  Run("errno");
  Replay();
}

TEST_F(RecorderHooksTest, LongNameOutsideOfTheKernelsEnvironmentIsSaid) {
  RunResult result = run_.RunBare(
      {"/usr/bin/env", "-i",
       leakcheck::RunfilePath("leakcheck/recorder_hooks_program"), "long-log"},
      {});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.errors,
            "leakcheck: LEAKCHECK_LOG makes a path of more than 4,095 bytes. "
            "The program runs unrecorded.\n");
  EXPECT_THAT(run_.Logs(), IsEmpty());
}

}  // namespace
