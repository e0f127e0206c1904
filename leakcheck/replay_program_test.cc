// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "leakcheck/replay_program.h"

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_test_util.h"
#include "leakcheck/replay_testing.h"

namespace leakcheck {
namespace {

// kind, slot, to_slot, size, thread
using Operation = std::tuple<unsigned, uint32_t, uint32_t, uint64_t, unsigned>;

std::vector<Operation> Operations(const ReplayProgram &program) {
  std::vector<Operation> operations;
  for (const ReplayOperation &operation : program.operations) {
    operations.emplace_back(operation.kind, operation.slot, operation.to_slot,
                            operation.size_bytes, operation.thread);
  }
  return operations;
}

std::string Compile(const TestLog &log, ReplayProgram *program,
                    const ReplayCompileOptions &options = {}) {
  return CompileReplay(log.path(), options, program);
}

TEST(ReplayProgramTest, AddressesBecomeSlotsThatAreUsedAgain) {
  TestLog log("program");
  log.Alloc(0x1000, 100).Alloc(0x2000, 50).Free(0x1000).Alloc(0x3000, 0);
  log.Resize(0x2000, 70).Free(0x2000).Alloc(0x1000, 7);
  ReplayProgram program;
  ASSERT_EQ(Compile(log, &program), "");
  EXPECT_EQ(Operations(program),
            (std::vector<Operation>{{kReplayAlloc, 0, 0, 100, 0},
                                    {kReplayAlloc, 0, 1, 50, 0},
                                    {kReplayFree, 0, 0, 0, 0},
                                    {kReplayAlloc, 0, 0, 0, 0},
                                    {kReplayResize, 1, 1, 70, 0},
                                    {kReplayFree, 1, 1, 0, 0},
                                    {kReplayAlloc, 0, 1, 7, 0}}));
  EXPECT_EQ(program.slot_count, 2u);
  EXPECT_EQ(program.thread_count, 1u);
  EXPECT_EQ(program.alloc_count, 4u);
  EXPECT_EQ(program.free_count, 2u);
  EXPECT_EQ(program.resize_count, 1u);
  EXPECT_EQ(program.peak_bytes, 150u);
  EXPECT_EQ(program.peak_count, 2u);
  EXPECT_EQ(program.peak_index, 1u);
  EXPECT_EQ(program.leftovers.size(), 2u);
  EXPECT_EQ(program.times_ns[4], 5u);
}

TEST(ReplayProgramTest, GrowthInPlaceCanBeThePeak) {
  TestLog log("program");
  log.Alloc(0x1000, 100).Resize(0x1000, 500).Resize(0x1000, 10);
  ReplayProgram program;
  ASSERT_EQ(Compile(log, &program), "");
  EXPECT_EQ(program.peak_bytes, 500u);
  EXPECT_EQ(program.peak_count, 1u);
  EXPECT_EQ(program.peak_index, 1u);
}

TEST(ReplayProgramTest, ThreadsAtOnceShareNoSlotByChance) {
  TestLog log("program", 2);
  log.Alloc(0x1000, 1, 0).Resize(0x1000, 2, 1).Free(0x1000, 0);
  log.Alloc(0x1000, 3, 1);
  ReplayCompileOptions options;
  options.is_concurrent = true;
  ReplayProgram program;
  ASSERT_EQ(Compile(log, &program, options), "");
  EXPECT_EQ(Operations(program),
            (std::vector<Operation>{{kReplayAlloc, 0, 0, 1, 0},
                                    {kReplayResize, 0, 1, 2, 1},
                                    {kReplayFree, 1, 1, 0, 0},
                                    {kReplayAlloc, 0, 2, 3, 1}}));
  EXPECT_EQ(program.thread_count, 2u);
  EXPECT_EQ(program.slot_count, 3u);
}

TEST(ReplayProgramTest, ContradictionsAreErrors) {
  ReplayProgram program;
  {
    TestLog log("program");
    log.Alloc(0x1000, 1).Alloc(0x1000, 1);
    EXPECT_EQ(Compile(log, &program),
              "at 2 ns thread 0 hands out block 0x1000, which is live");
  }
  {
    TestLog log("program");
    log.Alloc(0x1000, 1).Free(0x1000).Free(0x1000);
    EXPECT_EQ(Compile(log, &program),
              "at 3 ns thread 0 frees block 0x1000, which is not live");
  }
  {
    TestLog log("program");
    log.Alloc(0x1000, 1).Resize(0x1001, 1);
    EXPECT_EQ(Compile(log, &program),
              "at 2 ns thread 0 resizes block 0x1001, which is not live");
  }
}

TEST(ReplayProgramTest, ContradictionsAreLeftOutWhereEventsAreLost) {
  TestLog log("program");
  log.Alloc(0x1000, 1).Free(0x2000).Alloc(0x1000, 9).Resize(0x3000, 1).Lost(5);
  ReplayProgram program;
  ASSERT_EQ(Compile(log, &program), "");
  EXPECT_EQ(program.operations.size(), 1u);
  EXPECT_EQ(program.alloc_count, 1u);
  EXPECT_EQ(program.peak_bytes, 1u);
  EXPECT_EQ(program.lost_count, 5u);
  EXPECT_EQ(program.skipped_count, 3u);
}

TEST(ReplayProgramTest, TooMuchLiveIsAnError) {
  TestLog log("program");
  log.Alloc(0x1000, 60).Alloc(0x2000, 41);
  ReplayCompileOptions options;
  options.limit_bytes = 101;
  ReplayProgram program;
  EXPECT_EQ(Compile(log, &program, options), "");
  options.limit_bytes = 100;
  EXPECT_EQ(Compile(log, &program, options),
            "at 2 ns thread 0: a block of 41 bytes makes more than 100 live");
  TestLog huge("huge");
  huge.Alloc(0x1000, 16).Alloc(0x2000, UINT64_MAX - 0x2000);
  EXPECT_EQ(
      Compile(huge, &program),
      "at 2 ns thread 0: a block of 18446744073709543423 bytes makes more "
      "than 4294967296 live");
}

// Allocs and frees.
TEST(ReplayProgramTest, TooManyOperationsAreAnError) {
  TestLog turns("turns");
  turns.Alloc(0x1000, 60).Free(0x1000).Alloc(0x1000, 60).Free(0x1000);
  TestLog frees("frees");
  frees.Alloc(0x1000, 60).Alloc(0x2000, 60).Free(0x1000).Free(0x2000);
  for (const TestLog *log : {&turns, &frees}) {
    ReplayCompileOptions options;
    options.operations_max = 4;
    ReplayProgram program;
    EXPECT_EQ(Compile(*log, &program, options), "");
    options.operations_max = 3;
    ReplayProgram refused;
    EXPECT_EQ(Compile(*log, &refused, options), "more than 3 operations");
  }
}

TEST(ReplayProgramTest, NothingToReplayIsAnError) {
  const TestLog log("program");
  ReplayProgram program;
  EXPECT_EQ(Compile(log, &program), "no allocations in it");
}

TEST(ReplayProgramTest, DamageIsAnErrorWithItsPlace) {
  TestLog log("program");
  log.Alloc(0x1000, 60);
  std::string bytes = heaplog_test::ReadFile(log.path());
  bytes[4096 + 66] ^= 1;
  heaplog_test::WriteFile(log.path(), bytes);
  ReplayProgram program;
  EXPECT_EQ(Compile(log, &program), "byte 4096: a chunk's checksum is wrong");
  heaplog_test::WriteFile(log.path(), "something else");
  EXPECT_EQ(Compile(log, &program), "byte 0: not a heaplog");
  EXPECT_NE(CompileReplay("/nowhere", {}, &program).find("No such file"),
            std::string::npos);
}

}  // namespace
}  // namespace leakcheck
