// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Whole processes on this malloc, started in unusual ways.

#include <sys/personality.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "heap/heap_testing.h"

namespace {

// Compiled once for each variant.
#ifdef HEAP_HARDENED
#define VARIANT "_hardened"
#else
#define VARIANT ""
#endif

constexpr char kLinked[] = "heap/malloc_client" VARIANT;
constexpr char kStatic[] = "heap/malloc_client" VARIANT "_static";
constexpr char kPlain[] = "heap/malloc_client_plain";
constexpr char kPreload[] = "heap/libheap" VARIANT ".so";
constexpr char kLoader[] = "/lib64/ld-linux-x86-64.so.2";

struct Result {
  int status;
  std::string errors;
};

// Runs a program after `prepare` ran in its process.
Result Start(
    const std::vector<std::string> &command,
    const std::function<void()> &prepare = [] {}) {
  heap_testing::CapturedStderr captured;
  const pid_t child = fork();
  if (child == 0) {
    prepare();
    std::vector<char *> arguments;
    for (const std::string &argument : command) {
      arguments.push_back(const_cast<char *>(argument.c_str()));
    }
    arguments.push_back(nullptr);
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return {status, captured.Take()};
}

void ExpectSuccess(const Result &result) {
  EXPECT_EQ(result.status, 0) << result.errors;
}

void Limit(__rlimit_resource resource, size_t bytes) {
  const rlimit limit = {bytes, bytes};
  if (setrlimit(resource, &limit) != 0) {
    _exit(126);
  }
}

void Set(const char *name, const char *value) {
  setenv(name, value, 1);
}

TEST(MallocProcessTest, LinkedProgramRuns) {
  ExpectSuccess(Start({kLinked, "100"}));
}

TEST(MallocProcessTest, StaticProgramRuns) {
  ExpectSuccess(Start({kStatic, "100"}));
}

TEST(MallocProcessTest, PreloadedProgramRuns) {
  ExpectSuccess(Start({kPlain, "100"}, [] { Set("LD_PRELOAD", kPreload); }));
}

// Proof that the client notices whose malloc it has.
TEST(MallocProcessTest, PlainProgramIsNotServed) {
  EXPECT_EQ(WEXITSTATUS(Start({kPlain, "1"}).status), 6);
}

TEST(MallocProcessTest, ProgramsOwnOperatorsAreUsed) {
  const std::string client = "heap/malloc_operators_client";
  ExpectSuccess(Start({client + VARIANT}));
  ExpectSuccess(Start({client + VARIANT "_static"}));
  ExpectSuccess(Start({client + "_plain"}));
  ExpectSuccess(
      Start({client + "_plain"}, [] { Set("LD_PRELOAD", kPreload); }));
}

TEST(MallocProcessTest, RunsWithoutTheBreak) {
  const auto prepare = [] {
    Set("HEAP_SOURCE", "mmap");
  };
  ExpectSuccess(Start({kLinked, "100"}, prepare));
  ExpectSuccess(Start({kStatic, "100"}, prepare));
}

// It finds its limit, gets ENOMEM, and uses what it freed again.
TEST(MallocProcessTest, RunsInAHundredMegabytesOfAddresses) {
  const auto prepare = [] {
    Limit(RLIMIT_AS, 100 << 20);
  };
  ExpectSuccess(Start({kLinked, "20"}, prepare));
  ExpectSuccess(Start({kLinked, "1000"}, prepare));
  ExpectSuccess(Start({kStatic, "1000"}, prepare));
  const auto without_break = [] {
    Set("HEAP_SOURCE", "mmap");
    Limit(RLIMIT_AS, 100 << 20);
  };
  ExpectSuccess(Start({kLinked, "1000"}, without_break));
}

// The break may not grow above the limit; neither may writable mappings. Of a
// reservation what is free counts as well, so the stacks would find no room.
TEST(MallocProcessTest, RunsWithLittleData) {
  const auto prepare = [] {
    Set("HEAP_SOURCE", "brk");
    Limit(RLIMIT_DATA, 50 << 20);
  };
  ExpectSuccess(Start({kLinked, "20"}, prepare));
  ExpectSuccess(Start({kLinked, "1000"}, prepare));
  ExpectSuccess(Start({kStatic, "1000"}, prepare));
}

TEST(MallocProcessTest, RunsWithoutAddressRandomisation) {
  const auto prepare = [] {
    if (personality(ADDR_NO_RANDOMIZE) == -1) {
      _exit(125);
    }
  };
  const Result result = Start({kLinked, "100"}, prepare);
  if (WIFEXITED(result.status) && WEXITSTATUS(result.status) == 125) {
    // Containers may forbid it.
    std::printf("personality() is not permitted here\n");
    return;
  }
  ExpectSuccess(result);
  ExpectSuccess(Start({kStatic, "100"}, prepare));
}

// The break of such a process is not behind the program.
TEST(MallocProcessTest, RunsWhenStartedThroughTheLoader) {
  ExpectSuccess(Start({kLoader, kLinked, "100"}));
  ExpectSuccess(Start({kLoader, "--preload", kPreload, kPlain, "100"}));
}

// Each exec ends threads anywhere in malloc; what comes after knows of nothing.
TEST(MallocProcessTest, RunsAfterExecsOutOfThreads) {
  ExpectSuccess(Start({kLinked, "5", "100"}));
  ExpectSuccess(
      Start({kPlain, "5", "100"}, [] { Set("LD_PRELOAD", kPreload); }));
  ExpectSuccess(
      Start({kLinked, "5", "20"}, [] { Set("HEAP_SOURCE", "mmap"); }));
}

// Its handlers of fork were registered before the program's constructors ran.
TEST(MallocProcessTest, ForksBesideALibraryWithALockOfItsOwn) {
  ExpectSuccess(Start({"heap/malloc_fork_client" VARIANT}));
  ExpectSuccess(Start({"heap/malloc_fork_client_plain"},
                      [] { Set("LD_PRELOAD", kPreload); }));
}

TEST(MallocProcessTest, RunsWithStandardErrorClosed) {
  ExpectSuccess(Start({kLinked, "10"}, [] {
    Set("HEAP_STATS", "1");
    close(STDERR_FILENO);
  }));
}

TEST(MallocProcessTest, EnvironmentAsksForStatisticsAndHelp) {
  Result result = Start({kLinked, "10"}, [] { Set("HEAP_STATS", "json"); });
  ExpectSuccess(result);
  EXPECT_EQ(result.errors.rfind("{\"live_bytes\":", 0), 0u) << result.errors;
  result = Start({kLinked, "10"}, [] { Set("HEAP_STATS", "1"); });
  EXPECT_NE(result.errors.find("live_bytes: in live blocks\n"),
            std::string::npos);
  result = Start({kLinked, "10"}, [] { Set("HEAP_HELP", "1"); });
  ExpectSuccess(result);
  for (const char *name :
       {"HEAP_SOURCE=", "HEAP_ON_ERROR=", "HEAP_STATS=", "HEAP_HELP="}) {
    EXPECT_NE(result.errors.find(name), std::string::npos) << name;
  }
}

// Preloaded, it comes before the C library.
TEST(MallocProcessTest, PreloadedOneReadsTheEnvironmentAtStart) {
  const Result result = Start({kPlain, "10"}, [] {
    Set("LD_PRELOAD", kPreload);
    Set("HEAP_HELP", "1");
    Set("HEAP_STATS", "2");
    Set("HEAP_HARDEN", "all,-nothing");
  });
  ExpectSuccess(result);
  EXPECT_NE(result.errors.find("HEAP_STATS=2 is ignored"), std::string::npos);
  EXPECT_NE(result.errors.find("HEAP_SOURCE="), std::string::npos);
  const bool is_hardened = sizeof(VARIANT) > 1;
  EXPECT_EQ(result.errors.find("HEAP_HARDEN: -nothing is ignored") !=
                std::string::npos,
            is_hardened);
  EXPECT_EQ(
      result.errors.find("HEAP_HARDEN=all|none|[-]canary") != std::string::npos,
      is_hardened);
}

TEST(MallocProcessTest, UnknownValueOfAVariableIsNamed) {
  const Result result = Start({kLinked, "10"}, [] {
    Set("HEAP_SOURCE", "sbrk");
    Set("HEAP_ON_ERROR", "report");
  });
  ExpectSuccess(result);
  EXPECT_EQ(result.errors,
            std::string("my_alloc heap: HEAP_SOURCE=sbrk is ignored; it can "
                        "be ") +
                (sizeof(VARIANT) > 1 ? "mmap, brk\n" : "brk, mmap\n"));
}

}  // namespace
