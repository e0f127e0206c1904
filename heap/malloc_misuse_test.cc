// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A program for each kind of misuse and its correct twin
// (malloc_misuse_client), on the default variant, on the hardened one, and on
// that with each report survived: what is written, to the letter but for
// addresses, and how it ends. Then the hardened one with one defence switched
// off at a time.

#include <regex.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "heap/heap_testing.h"

namespace {

constexpr char kClient[] = "heap/malloc_misuse_client";
constexpr char kDefault[] = "heap/libheap.so";
constexpr char kHardened[] = "heap/libheap_hardened.so";

struct Result {
  bool is_exit;
  int code;  // Of exit, or the signal.
  std::string errors;
};

using Environment = std::map<std::string, std::string>;

Result RunClient(const std::string &name, const char *twin, const char *library,
                 Environment environment = {}) {
  heap_testing::CapturedStderr captured;
  const pid_t child = fork();
  if (child == 0) {
    setenv("LD_PRELOAD", library, 1);
    for (const auto &[variable, value] : environment) {
      setenv(variable.c_str(), value.c_str(), 1);
    }
    execl(kClient, kClient, name.c_str(), twin, nullptr);
    _exit(127);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return {WIFEXITED(status),
          WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status),
          captured.Take()};
}

bool Matches(const std::string &text, const std::string &pattern) {
  regex_t compiled;
  EXPECT_EQ(regcomp(&compiled, ("^(" + pattern + ")$").c_str(),
                    REG_EXTENDED | REG_NOSUB),
            0);
  const bool matches = regexec(&compiled, text.c_str(), 0, nullptr, 0) == 0;
  regfree(&compiled);
  return matches;
}

// What becomes of a misuse.
struct Outcome {
  enum Kind {
    kNothing,
    kReport,
    kFault,
    kStaleData
  } kind;
  const char *function = "";
  const char *cause = "";
  int block_bytes = 0;  // 0: no block is named.
};

std::string Line(const Outcome &outcome) {
  const std::string block = outcome.block_bytes == 0
                                ? ""
                                : ", block 0x[0-9a-f]+ of " +
                                      std::to_string(outcome.block_bytes) +
                                      " bytes";
  return std::string("heap: ") + outcome.function + ": " + outcome.cause +
         ": 0x[0-9a-f]+" + block + ", thread [0-9]+, called from 0x[0-9a-f]+\n";
}

void ExpectOutcome(const Result &result, const Outcome &outcome,
                   bool is_survived) {
  switch (outcome.kind) {
    case Outcome::kNothing:
      EXPECT_TRUE(result.is_exit && result.code == 0) << result.code;
      EXPECT_EQ(result.errors, "");
      break;
    case Outcome::kReport:
      EXPECT_EQ(result.is_exit, is_survived);
      EXPECT_EQ(result.code, is_survived ? 0 : SIGABRT);
      EXPECT_TRUE(Matches(result.errors, Line(outcome))) << result.errors;
      break;
    case Outcome::kFault:
      EXPECT_TRUE(!result.is_exit && result.code == SIGSEGV) << result.code;
      break;
    case Outcome::kStaleData:
      EXPECT_TRUE(result.is_exit && result.code == 9) << result.code;
      break;
  }
}

constexpr char kFreed[] = "double free or freed pointer";
constexpr char kInterior[] = "invalid pointer \\(not the start of its block\\)";
constexpr char kForeign[] = "invalid pointer \\(no block of this heap\\)";
constexpr char kOverflow[] = "block was written to past its end";
constexpr char kUnderflow[] = "memory was written to before its start";
constexpr char kWritten[] = "block was written to after it was freed";
constexpr char kSize[] = "size differs from that of the block";

constexpr Outcome kNothing = {Outcome::kNothing};
constexpr Outcome kFault = {Outcome::kFault};
constexpr Outcome kStaleData = {Outcome::kStaleData};

constexpr Outcome Report(const char *function, const char *cause, int bytes) {
  return {Outcome::kReport, function, cause, bytes};
}

struct Case {
  const char *name;
  Outcome hardened;
  Outcome plain;  // The default variant.
  // Switched off, the hardened one does as `without`. NULL: none does it alone.
  const char *defence = nullptr;
  Outcome without = kNothing;
};

constexpr int kMediumBytes = 102400;  // 100,000 and the canary, whole pages.

constexpr int kBigBytes = (40 << 20) + 4096;  // With the canary's page.

const Case kCases[] = {
    {"double_free", Report("free", kFreed, 112), Report("free", kFreed, 112)},
    {"double_free_late", Report("free", kFreed, 112),
     Report("free", kFreed, 112)},
    {"double_free_by_thread", Report("free", kFreed, 112),
     Report("free", kFreed, 112)},
    {"double_free_medium", Report("free", kFreed, kMediumBytes),
     Report("free", kFreed, 0)},
    {"double_free_big", Report("free", kFreed, kBigBytes),
     Report("free", kForeign, 0)},
    {"double_free_empty", Report("free", kFreed, 0),
     Report("free", kFreed, 16)},
    {"free_of_stack", Report("free", kForeign, 0), Report("free", kForeign, 0)},
    {"free_of_interior", Report("free", kInterior, 112),
     Report("free", kInterior, 112)},
    {"free_unaligned", Report("free", kInterior, 112),
     Report("free", kInterior, 112)},
    {"overflow_zero", Report("free", kOverflow, 112), kNothing, "canary",
     kNothing},
    {"overflow_text", Report("free", kOverflow, 112), kNothing, "canary",
     kNothing},
    {"overflow_full_class", Report("free", kOverflow, 112), kNothing, "canary",
     kNothing},
    {"overflow_medium", Report("free", kOverflow, kMediumBytes), kNothing,
     "canary", kNothing},
    {"overflow_big", Report("free", kOverflow, 40 << 20), kNothing, "canary",
     kNothing},
    {"overflow_aligned", Report("free", kOverflow, 1024), kNothing, "canary",
     kNothing},
    {"overflow_after_realloc", Report("free", kOverflow, 112), kNothing,
     "canary", kNothing},
    {"overflow_realloc", Report("realloc", kOverflow, 112), kNothing, "canary",
     kNothing},
    {"overflow_by_thread", Report("free", kOverflow, 112), kNothing, "canary",
     kNothing},
    {"underflow", Report("free", kUnderflow, 112), kNothing, "canary",
     kNothing},
    {"underflow_medium", kFault, kNothing, "guard",
     Report("free", kUnderflow, kMediumBytes)},
    {"write_after_free", Report("alloc", kWritten, 112), kNothing, "reuse",
     kNothing},
    {"write_after_free_at_end", Report("alloc", kWritten, 112), kNothing,
     "reuse", kNothing},
    {"write_after_free_medium", Report("alloc", kWritten, kMediumBytes),
     kNothing, "reuse", kNothing},
    {"write_after_free_big", kFault, kFault},
    {"stale_data_after_free", kNothing, kStaleData, "zero", kStaleData},
    {"stale_data_in_new_block", kNothing, kStaleData, "zero", kStaleData},
    {"stale_data_after_shrink", kNothing, kStaleData},
    {"read_of_empty", kFault, kNothing, "empty", kNothing},
    {"write_to_empty", kFault, kNothing, "empty",
     Report("free", kOverflow, 16)},
    {"sized_delete", Report("sized free", kSize, 112), kNothing},
    {"sized_delete_of_array", Report("sized free", kSize, 112), kNothing,
     "sized", kNothing},
    {"sized_free_after_realloc", Report("sized free", kSize, 112), kNothing},
    {"absurd_size", kNothing, kNothing},
};

class MallocMisuseTest : public testing::TestWithParam<Case> {};

TEST_P(MallocMisuseTest, TwinIsRightOnAll) {
  const char *name = GetParam().name;
  ExpectOutcome(RunClient(name, "good", kDefault), kNothing, false);
  ExpectOutcome(RunClient(name, "good", kHardened), kNothing, false);
  ExpectOutcome(RunClient(name, "good", kHardened, {{"HEAP_HARDEN", "none"}}),
                kNothing, false);
}

TEST_P(MallocMisuseTest, DefaultVariant) {
  ExpectOutcome(RunClient(GetParam().name, "bad", kDefault), GetParam().plain,
                false);
}

// Where chance decides what lies where, ten times.
TEST_P(MallocMisuseTest, HardenedVariant) {
  for (int i = 0; i < 10; ++i) {
    ExpectOutcome(RunClient(GetParam().name, "bad", kHardened),
                  GetParam().hardened, false);
  }
}

TEST_P(MallocMisuseTest, HardenedVariantReportsAndGoesOn) {
  ExpectOutcome(RunClient(GetParam().name, "bad", kHardened,
                          {{"HEAP_ON_ERROR", "report"}}),
                GetParam().hardened, true);
}

TEST_P(MallocMisuseTest, DefenceThatIsOffIsOff) {
  if (GetParam().defence != nullptr) {
    const std::string list = std::string("all,-") + GetParam().defence;
    ExpectOutcome(
        RunClient(GetParam().name, "bad", kHardened, {{"HEAP_HARDEN", list}}),
        GetParam().without, false);
  }
}

INSTANTIATE_TEST_SUITE_P(All, MallocMisuseTest, testing::ValuesIn(kCases),
                         [](const auto &test) {
                           return std::string(test.param.name);
                         });

}  // namespace
