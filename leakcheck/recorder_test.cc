// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A program whose allocations are known runs under libleakcheck.so, and its
// logs are read back.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "leakcheck/log_replay.h"
#include "leakcheck/recorder_testing.h"

namespace {

using leakcheck::LogReplay;
using leakcheck::RecordedRun;
using leakcheck::RunResult;
using leakcheck::StackFunctions;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;
using Events = std::vector<heaplog_event_t>;
using Names = std::vector<std::string>;

std::string Program() {
  return leakcheck::RunfilePath("leakcheck/recorder_test_program");
}

std::string Plugin() {
  return leakcheck::RunfilePath("leakcheck/libtest_plugin.so");
}

std::string LogName(const RunResult &result, const std::string &more = "") {
  return "leakcheck." + std::to_string(result.pid) + more + ".heaplog";
}

Events AllocsOf(const LogReplay &replay, uint64_t size_bytes) {
  Events found;
  for (const heaplog_event_t &event : replay.events()) {
    if (event.kind == HEAPLOG_ALLOC && event.size_bytes == size_bytes) {
      found.push_back(event);
    }
  }
  return found;
}

size_t CountLive(const LogReplay &replay, uint64_t size_bytes) {
  size_t count = 0;
  for (const auto &[address, block] : replay.live()) {
    count += block.size_bytes == size_bytes;
  }
  return count;
}

size_t CountOwnStreams(const LogReplay &replay) {
  size_t count = 0;
  for (const heaplog_thread_t &thread : replay.Threads()) {
    count += strcmp(thread.name, "(shared)") != 0;
  }
  return count;
}

class RecorderTest : public ::testing::Test {
 protected:
  // Runs a mode of the test program, which must succeed.
  RunResult Run(std::vector<std::string> arguments,
                const Names &environment = {}) {
    arguments.insert(arguments.begin(), Program());
    RunResult result = run_.Run(arguments, environment);
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    EXPECT_EQ(result.errors, "");
    return result;
  }

  std::unique_ptr<LogReplay> Replay(const std::string &name) {
    auto replay = std::make_unique<LogReplay>(run_.Path(name));
    EXPECT_THAT(replay->problems(), IsEmpty()) << name;
    EXPECT_EQ(replay->counts().lost, 0u);
    return replay;
  }

  RecordedRun run_;
};

// --- What is recorded ---

TEST_F(RecorderTest, EachFormOfAllocationIsThereOnce) {
  auto replay = Replay(LogName(Run({"exact"})));
  EXPECT_THAT(AllocsOf(*replay, 70001), SizeIs(3));  // malloc
  EXPECT_THAT(AllocsOf(*replay, 70002), SizeIs(1));
  EXPECT_THAT(AllocsOf(*replay, 7 * 10007), SizeIs(1));  // calloc
  EXPECT_THAT(AllocsOf(*replay, 73728), SizeIs(1));      // aligned_alloc
  EXPECT_THAT(AllocsOf(*replay, 70004), SizeIs(1));      // memalign
  EXPECT_THAT(AllocsOf(*replay, 70005), SizeIs(1));      // posix_memalign
  EXPECT_THAT(AllocsOf(*replay, 70006), SizeIs(1));      // valloc
  EXPECT_THAT(AllocsOf(*replay, 7 * 10001), SizeIs(1));  // reallocarray
  EXPECT_THAT(AllocsOf(*replay, 70008), SizeIs(2));      // malloc, strdup
  EXPECT_THAT(AllocsOf(*replay, 0), SizeIs(1));
}

TEST_F(RecorderTest, AlignedBlocksAreAligned) {
  auto replay = Replay(LogName(Run({"exact"})));
  EXPECT_EQ(AllocsOf(*replay, 73728).at(0).address % 4096, 0u);
  EXPECT_EQ(AllocsOf(*replay, 70004).at(0).address % 64, 0u);
  EXPECT_EQ(AllocsOf(*replay, 70005).at(0).address % 256, 0u);
  EXPECT_EQ(AllocsOf(*replay, 70006).at(0).address % 4096, 0u);
}

TEST_F(RecorderTest, ReallocsAreMovesOrResizesAndEndFreed) {
  auto replay = Replay(LogName(Run({"exact"})));
  // 70008 -> 70018 -> 700018 -> 38 -> free, each in place or moved.
  for (uint64_t size_bytes : {70018, 700018, 38}) {
    size_t resizes = static_cast<size_t>(std::count_if(
        replay->events().begin(), replay->events().end(),
        [size_bytes](const heaplog_event_t &event) {
          return event.kind == HEAPLOG_RESIZE && event.size_bytes == size_bytes;
        }));
    EXPECT_EQ(AllocsOf(*replay, size_bytes).size() + resizes, 1u) << size_bytes;
    EXPECT_EQ(CountLive(*replay, size_bytes), 0u);
  }
}

TEST_F(RecorderTest, OnlyTheLeakIsLiveAtTheEnd) {
  auto replay = Replay(LogName(Run({"exact"})));
  for (const auto &[address, block] : replay->live()) {
    if (block.size_bytes >= 70001 && block.size_bytes < 70100) {
      // 70092 and 70093: the program's destructor and constructor.
      EXPECT_THAT(block.size_bytes, ::testing::AnyOf(70002, 70092, 70093));
    }
  }
  EXPECT_EQ(CountLive(*replay, 70002), 1u);
}

TEST_F(RecorderTest, StacksNameTheCallers) {
  auto replay = Replay(LogName(Run({"exact"})));
  for (const heaplog_event_t &event : AllocsOf(*replay, 70001)) {
    Names stack = StackFunctions(*replay, event.stack_id);
    ASSERT_GE(stack.size(), 4u);
    EXPECT_EQ(stack[0], "alpha");
    EXPECT_EQ(stack[1], "beta");
    EXPECT_EQ(stack[2], "run_exact");
    EXPECT_EQ(stack.back(), "_start");
  }
}

TEST_F(RecorderTest, SameStackHasTheSameId) {
  auto replay = Replay(LogName(Run({"exact"})));
  Events events = AllocsOf(*replay, 70001);
  ASSERT_THAT(events, SizeIs(3));
  EXPECT_EQ(events[0].stack_id, events[1].stack_id);
  EXPECT_EQ(events[0].stack_id, events[2].stack_id);
  EXPECT_NE(events[0].stack_id, AllocsOf(*replay, 70002).at(0).stack_id);
}

TEST_F(RecorderTest, DeepStacksAreWhole) {
  auto replay = Replay(LogName(Run({"exact"})));
  Names stack =
      StackFunctions(*replay, AllocsOf(*replay, 70031).at(0).stack_id);
  EXPECT_EQ(std::count(stack.begin(), stack.end(), "deep"), 21);
  EXPECT_EQ(stack.back(), "_start");
}

TEST_F(RecorderTest, StacksDeeperThanTheLimitAreCutAndSaySo) {
  auto replay = Replay(LogName(Run({"exact"})));
  std::vector<uint64_t> frames =
      replay->Stack(AllocsOf(*replay, 70032).at(0).stack_id);
  ASSERT_THAT(frames, SizeIs(65));
  EXPECT_EQ(frames.back(), 0u);
  EXPECT_EQ(std::count(frames.begin(), frames.end(), 0u), 1);
}

TEST_F(RecorderTest, LimitOfFramesCanBeSet) {
  auto replay = Replay(LogName(Run({"exact"}, {"LEAKCHECK_FRAMES=200"})));
  Names stack =
      StackFunctions(*replay, AllocsOf(*replay, 70032).at(0).stack_id);
  EXPECT_EQ(std::count(stack.begin(), stack.end(), "deep"), 151);
  EXPECT_EQ(stack.back(), "_start");
}

TEST_F(RecorderTest, OneFrameIsEnoughForALimit) {
  auto replay = Replay(LogName(Run({"exact"}, {"LEAKCHECK_FRAMES=1"})));
  EXPECT_THAT(StackFunctions(*replay, AllocsOf(*replay, 70001).at(0).stack_id),
              ElementsAre("alpha", "?"));
}

TEST_F(RecorderTest, ProcessIsDescribed) {
  RunResult result = Run({"exact"});
  auto replay = Replay(LogName(result));
  char program[PATH_MAX];
  ASSERT_NE(realpath(Program().c_str(), program), nullptr);
  EXPECT_STREQ(replay->info().executable, program);
  EXPECT_EQ(std::string(replay->info().command_line,
                        replay->info().command_line_bytes),
            Program() + '\0' + "exact" + '\0');
  EXPECT_EQ(replay->info().pid, static_cast<uint64_t>(result.pid));
  EXPECT_TRUE(replay->info().clean_end);
  EXPECT_GE(replay->counts().samples, 2u);
  struct stat status;
  ASSERT_EQ(stat(run_.Path(LogName(result)).c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
}

// --- Threads ---

TEST_F(RecorderTest, BlocksExchangedByThreadsAreConsistent) {
  auto replay = Replay(LogName(Run({"threads"})));
  EXPECT_GE(replay->counts().allocs, 8u * 20000u);
  EXPECT_EQ(CountOwnStreams(*replay), 9u);
  // All but libc's own and the three of the program's constructors.
  EXPECT_LT(replay->live().size(), 20u);
}

TEST_F(RecorderTest, ThreadsThatEndShareSpaceInTheLog) {
  RunResult result = Run({"thread-exits"});
  auto replay = Replay(LogName(result));
  EXPECT_THAT(AllocsOf(*replay, 70041), SizeIs(2000));
  EXPECT_THAT(AllocsOf(*replay, 70042), SizeIs(2000));
  // Freed by destructors of the threads' data, in later rounds too.
  EXPECT_EQ(CountLive(*replay, 70041), 0u);
  EXPECT_EQ(CountLive(*replay, 70042), 0u);
  EXPECT_LT(replay->info().file_bytes, 4u << 20);
}

TEST_F(RecorderTest, ThreadThatMapsFirstInAProgramWithManyKeysRunsOn) {
  auto replay = Replay(LogName(Run({"many-keys"})));
  Events allocs = AllocsOf(*replay, 70000171);
  ASSERT_THAT(allocs, SizeIs(1));
  EXPECT_NE(allocs[0].stack_id, 0u);
  // The main thread and this one; its map is not in its own stream.
  EXPECT_EQ(CountOwnStreams(*replay), 2u);
  size_t shared_maps = 0;
  for (const heaplog_event_t &event : replay->events()) {
    shared_maps +=
        event.kind == HEAPLOG_MAP && event.size_bytes >= 70000171 &&
        event.thread_index != allocs[0].thread_index &&
        strcmp(replay->Threads()[event.thread_index].name, "(shared)") == 0;
  }
  EXPECT_EQ(shared_maps, 1u);
}

// --- Forked children ---

TEST_F(RecorderTest, ForkedChildHasALogOfItsOwn) {
  RunResult result = Run({"fork"});
  Names logs = run_.Logs();
  ASSERT_THAT(logs, SizeIs(2));
  auto parent = Replay(LogName(result));
  EXPECT_EQ(CountLive(*parent, 70051), 0u);
  EXPECT_THAT(AllocsOf(*parent, 70052), IsEmpty());
  EXPECT_THAT(AllocsOf(*parent, 70053), SizeIs(1));
  std::string childs = logs[0] == LogName(result) ? logs[1] : logs[0];
  EXPECT_THAT(childs, HasSubstr(".fork.heaplog"));
  auto child = Replay(childs);
  EXPECT_THAT(AllocsOf(*child, 70052), SizeIs(1));
  EXPECT_THAT(AllocsOf(*child, 70053), IsEmpty());
  // What it inherited is there, and what it freed of that is not live.
  EXPECT_GT(child->live().size(), 2u);
  EXPECT_GE(child->counts().maps, 1u);
  EXPECT_TRUE(child->info().clean_end);
  EXPECT_NE(child->info().pid, parent->info().pid);
  Names stack = StackFunctions(*child, AllocsOf(*child, 70052).at(0).stack_id);
  EXPECT_EQ(stack[0], "alpha");
  EXPECT_THAT(stack, Contains("run_fork"));
}

TEST_F(RecorderTest, ForkedChildrenCanBeLeftOut) {
  RunResult result = Run({"fork"}, {"LEAKCHECK_FORK=stop"});
  EXPECT_THAT(run_.Logs(), ElementsAre(LogName(result)));
  Replay(LogName(result));
}

TEST_F(RecorderTest, ForkedChildThatDoesNothingLeavesNothing) {
  RunResult result = Run({"fork-nothing"});
  EXPECT_THAT(run_.Logs(), ElementsAre(LogName(result)));
  EXPECT_TRUE(Replay(LogName(result))->info().clean_end);
}

TEST_F(RecorderTest, ForkingAmongBusyThreadsIsHarmless) {
  RunResult result = Run({"fork-threads"});
  Replay(LogName(result));
  Names logs = run_.Logs();
  EXPECT_THAT(logs, SizeIs(21));
  for (const std::string &log : logs) {
    if (log != LogName(result)) {
      auto child = Replay(log);
      EXPECT_THAT(AllocsOf(*child, 70052), SizeIs(1));
    }
  }
}

TEST_F(RecorderTest, ForkedChildThatExecutesLeavesTheNewProgramsLog) {
  RunResult result = Run({"fork-exec"});
  Names logs = run_.Logs();
  ASSERT_THAT(logs, SizeIs(2));
  for (const std::string &log : logs) {
    EXPECT_THAT(log, Not(HasSubstr("fork")));
    if (log != LogName(result)) {
      EXPECT_THAT(AllocsOf(*Replay(log), 70001), SizeIs(3));
    }
  }
}

TEST_F(RecorderTest, VforkChildrenDoNotEndTheirParentsLog) {
  RunResult result = Run({"vfork"});
  EXPECT_THAT(run_.Logs(), SizeIs(2));
  auto replay = Replay(LogName(result));
  EXPECT_EQ(replay->counts().ends, 1u);
  EXPECT_THAT(AllocsOf(*replay, 70071), SizeIs(1));
  EXPECT_EQ(replay->events().back().kind, uint32_t{HEAPLOG_END});
}

// --- Names of logs ---

TEST_F(RecorderTest, ExecutedProgramDoesNotOverwriteItsPredecessorsLog) {
  RunResult result = Run({"exec"});
  EXPECT_THAT(run_.Logs(), ElementsAre(LogName(result, ".2"), LogName(result)));
  EXPECT_THAT(AllocsOf(*Replay(LogName(result)), 70081), SizeIs(1));
  EXPECT_THAT(AllocsOf(*Replay(LogName(result, ".2")), 70001), SizeIs(3));
}

TEST_F(RecorderTest, LogGoesIntoTheWorkingFolderWithoutTheVariable) {
  RunResult result = Run({"exact"}, {"LEAKCHECK_LOG="});
  EXPECT_THAT(run_.Logs(), ElementsAre(LogName(result)));
}

TEST_F(RecorderTest, FirstOfTwoVariablesCounts) {
  RunResult result = Run(
      {"exact"}, {"LEAKCHECK_LOG=1.%p.heaplog", "LEAKCHECK_LOG=2.%p.heaplog"});
  EXPECT_THAT(run_.Logs(),
              ElementsAre("1." + std::to_string(result.pid) + ".heaplog"));
}

TEST_F(RecorderTest, LogGoesWhereTheVariableSays) {
  RunResult result =
      Run({"exact"}, {"LEAKCHECK_LOG=" + run_.folder() + "/100%%.%p.heaplog"});
  EXPECT_THAT(run_.Logs(),
              ElementsAre("100%." + std::to_string(result.pid) + ".heaplog"));
}

TEST_F(RecorderTest, TakenNameIsNotOverwrittenAndSaid) {
  std::ofstream(run_.Path("run.heaplog")) << "precious";
  RunResult result =
      run_.Run({Program(), "exact"}, {"LEAKCHECK_LOG=run.heaplog"});
  EXPECT_EQ(result.exit_code, 0);
  std::string other = "run." + std::to_string(result.pid) + ".heaplog";
  EXPECT_THAT(run_.Logs(), ElementsAre(other, "run.heaplog"));
  EXPECT_EQ(result.errors, "leakcheck: " + run_.Path("run.heaplog") +
                               " exists; writing " + run_.Path(other) +
                               " (put %p into LEAKCHECK_LOG for a name per "
                               "process)\n");
  EXPECT_THAT(AllocsOf(*Replay(other), 70001), SizeIs(3));
}

TEST_F(RecorderTest, LogThatCannotBeCreatedIsSaidAndTheProgramRuns) {
  RunResult result = run_.Run({Program(), "fork"},
                              {"LEAKCHECK_LOG=/nonexistent/folder/x.heaplog"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.errors,
            "leakcheck: cannot create the log /nonexistent/folder/x.heaplog: "
            "No such file or directory; set LEAKCHECK_LOG to a file that can "
            "be created. The program runs unrecorded.\n");
  EXPECT_THAT(run_.Logs(), IsEmpty());
}

TEST_F(RecorderTest, NameThatIsTooLongIsSaidAndTheProgramRuns) {
  // Absolute, the longest and one more; what no buffer holds; with the folder.
  const std::string longest = "/" + std::string(4094, 'x');
  for (const std::string &name :
       {longest + "x", "/" + std::string(100000, 'x'), longest.substr(1)}) {
    RunResult result = run_.Run({Program(), "fork"}, {"LEAKCHECK_LOG=" + name});
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_EQ(result.errors,
              "leakcheck: LEAKCHECK_LOG makes a path of more than 4,095 bytes. "
              "The program runs unrecorded.\n");
  }
  RunResult result =
      run_.Run({Program(), "fork"}, {"LEAKCHECK_LOG=" + longest});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_THAT(result.errors,
              HasSubstr("cannot create the log " + longest + ": "));
  EXPECT_THAT(run_.Logs(), IsEmpty());
}

TEST_F(RecorderTest, ValuesNotUnderstoodAreSaidAndReplaced) {
  for (const char *value :
       {"LEAKCHECK_FRAMES=0", "LEAKCHECK_FRAMES=257", "LEAKCHECK_FRAMES=x",
        "LEAKCHECK_FRAMES=", "LEAKCHECK_FRAMES=18446744073709551617",
        "LEAKCHECK_FORK=yes"}) {
    RecordedRun run;
    RunResult result = run.Run({Program(), "exact"}, {value});
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_THAT(result.errors, HasSubstr("leakcheck: LEAKCHECK_F")) << value;
    EXPECT_EQ(std::count(result.errors.begin(), result.errors.end(), '\n'), 1);
    EXPECT_THAT(run.Logs(), SizeIs(1));
  }
}

TEST_F(RecorderTest, HelpListsTheVariablesAndDoesNotRunTheProgram) {
  RunResult result = run_.Run({"/bin/echo", "hello"}, {"LEAKCHECK_HELP=1"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.output, "");
  for (const char *name : {"LEAKCHECK_LOG=", "LEAKCHECK_FRAMES=",
                           "LEAKCHECK_FORK=", "LEAKCHECK_HELP="}) {
    EXPECT_THAT(result.errors, HasSubstr(name));
  }
  EXPECT_THAT(run_.Logs(), IsEmpty());
}

// --- Ends ---

TEST_F(RecorderTest, AllocationsBeforeAndAfterMainAreThere) {
  auto replay = Replay(LogName(Run({"ends"})));
  EXPECT_THAT(AllocsOf(*replay, 70093), SizeIs(1));  // constructor
  EXPECT_THAT(AllocsOf(*replay, 70091), SizeIs(1));  // atexit
  EXPECT_THAT(AllocsOf(*replay, 70092), SizeIs(1));  // destructor
  EXPECT_TRUE(replay->info().clean_end);
}

TEST_F(RecorderTest, EveryOrderlyEndIsInTheLog) {
  for (const auto &[mode, size_bytes] :
       std::map<std::string, uint64_t>{{"_exit", 70161},
                                       {"quick-exit", 70162},
                                       {"exit-in-thread", 70101},
                                       {"main-thread-exit", 70111}}) {
    auto replay = Replay(LogName(Run({mode})));
    EXPECT_TRUE(replay->info().clean_end) << mode;
    EXPECT_EQ(replay->counts().ends, 1u) << mode;
    EXPECT_THAT(AllocsOf(*replay, size_bytes), SizeIs(1)) << mode;
  }
}

TEST_F(RecorderTest, KilledProcessLeavesEveryEvent) {
  RunResult result = run_.Run({Program(), "kill"});
  EXPECT_EQ(result.exit_code, -SIGKILL);
  auto replay = Replay(LogName(result));
  EXPECT_FALSE(replay->info().clean_end);
  EXPECT_THAT(AllocsOf(*replay, 24), SizeIs(100000));
  EXPECT_THAT(AllocsOf(*replay, 70121), SizeIs(1));
}

TEST_F(RecorderTest, AbortedProcessLeavesEveryEvent) {
  rlimit no_core = {0, 0};
  ASSERT_EQ(setrlimit(RLIMIT_CORE, &no_core), 0);
  RunResult result = run_.Run({Program(), "abort"});
  EXPECT_EQ(result.exit_code, -SIGABRT);
  auto replay = Replay(LogName(result));
  EXPECT_FALSE(replay->info().clean_end);
  EXPECT_THAT(AllocsOf(*replay, 70122), SizeIs(1));
}

// --- Loaded objects ---

TEST_F(RecorderTest, ObjectsComeAndGo) {
  auto replay = Replay(LogName(Run({"plugin", Plugin()})));
  std::vector<heaplog_module_t> plugins;
  for (const heaplog_module_t &module : replay->Modules()) {
    if (strstr(module.path, "libtest_plugin.so") != nullptr) {
      plugins.push_back(module);
    }
  }
  ASSERT_THAT(plugins, SizeIs(3));
  for (uint64_t i = 0; i < 3; i++) {
    Events events = AllocsOf(*replay, 70131 + i);
    ASSERT_THAT(events, SizeIs(1));
    std::vector<uint64_t> frames = replay->Stack(events[0].stack_id);
    ASSERT_GE(frames.size(), 3u);
    EXPECT_GE(frames[0], plugins[i].start_address);
    EXPECT_LT(frames[0], plugins[i].end_address);
    EXPECT_LE(plugins[i].load_time_ns, events[0].time_ns);
    EXPECT_GE(plugins[i].unload_time_ns, events[0].time_ns);
    EXPECT_NE(plugins[i].unload_time_ns, UINT64_MAX);
    EXPECT_EQ(StackFunctions(*replay, events[0].stack_id)[0],
              "test_plugin_alloc");
  }
}

TEST_F(RecorderTest, LoadingAmongBusyThreadsIsHarmless) {
  Replay(LogName(Run({"plugin-threads", Plugin()})));
}

// --- Adverse conditions ---

TEST_F(RecorderTest, ClosedDescriptorsCostNeitherLogNorOtherFiles) {
  std::string path = run_.Path("other.txt");
  auto replay = Replay(LogName(Run({"close-all", path})));
  EXPECT_GE(replay->counts().allocs, 200000u);
  EXPECT_THAT(AllocsOf(*replay, 70151), SizeIs(1));
  std::ifstream stream(path);
  std::string content;
  std::getline(stream, content);
  EXPECT_EQ(content, "untouched");
}

TEST_F(RecorderTest, ShortAddressSpaceIsEnough) {
  RunResult result = run_.Run(
      {"/bin/bash", "-c", "ulimit -v 100000 && exec \"$0\" exact", Program()});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_EQ(result.errors, "");
  EXPECT_THAT(AllocsOf(*Replay(LogName(result, ".2")), 70001), SizeIs(3));
}

TEST_F(RecorderTest, FullDiskEndsTheLogAndNotTheProgram) {
  // The limit of file size stands for a full disk: 10 chunks of 64 KiB.
  RunResult result =
      run_.Run({"/bin/bash", "-c",
                "ulimit -f 640 && exec \"$0\" close-all other.txt", Program()});
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  LogReplay replay(run_.Path(LogName(result, ".2")));
  EXPECT_THAT(replay.problems(), IsEmpty());
  EXPECT_LE(replay.info().file_bytes, 640u * 1024);
  EXPECT_GT(replay.counts().allocs, 50000u);
  EXPECT_LT(replay.counts().allocs, 200000u);
  EXPECT_FALSE(replay.info().clean_end);
}

}  // namespace
