// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The tool as a program: what it prints, and how it fails.

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_test_util.h"
#include "leakcheck/replay_testing.h"

namespace leakcheck {
namespace {

struct Output {
  int status;
  std::string text;
};

// Standard error is in the text too.
Output RunTool(const std::string &arguments, const std::string &before = "") {
  const std::string command =
      before + " leakcheck/heap_replay " + arguments + " 2>&1";
  FILE *pipe = popen(command.c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  Output output = {};
  char buffer[4096];
  size_t count;
  while ((count = fread(buffer, 1, sizeof(buffer), pipe)) > 0) {
    output.text.append(buffer, count);
  }
  output.status = WEXITSTATUS(pclose(pipe));
  return output;
}

bool Has(const Output &output, const std::string &part) {
  return output.text.find(part) != std::string::npos;
}

size_t Count(const std::string &text, const std::string &part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos;
       at = text.find(part, at + 1)) {
    ++count;
  }
  return count;
}

// A program that holds 100 blocks of 1000 bytes, and replaces them.
void Write(TestLog *log) {
  for (uint64_t i = 0; i < 1000; ++i) {
    const uint64_t address = 0x1000 * (1 + i % 100);
    if (i >= 100) {
      log->Free(address, i % 2);
    }
    log->Alloc(address, 1000, i % 2);
  }
}

class HeapReplayTest : public testing::Test {
 protected:
  void SetUp() override {
    Write(&log_);
  }

  TestLog log_{"replay.heaplog", 2};
};

TEST_F(HeapReplayTest, PrintsARowAndASeriesAnAllocator) {
  const Output output = RunTool("--rounds=2 --samples=4 " + log_.path());
  EXPECT_EQ(output.status, 0) << output.text;
  EXPECT_EQ(output.text.find(
                "log        " + log_.path() +
                "\n"
                "operations 1900: 1000 allocs, 900 frees, 0 resizes; 2 "
                "threads, in order\n"
                "live peak  100000 bytes in 100 blocks, after operation 100\n"
                "malloc     "),
            0u)
      << output.text;
  // Their rows, and their series' heads.
  for (const char *name : {"first_fit  ", "next_fit  ", "best_fit  ", "tlsf  ",
                           "buddy  ", "segregated "}) {
    EXPECT_EQ(Count(output.text, std::string("\n") + name), 2u) << output.text;
  }
  EXPECT_EQ(Count(output.text, "\nmalloc     "), 3u) << "and in the head";
  // Three of the four samples and the peak are between a pair; buddy rounds up,
  // and so does the class.
  EXPECT_EQ(Count(output.text, " 100000       100800 "), 4u * 3) << output.text;
  EXPECT_EQ(Count(output.text, " 100000       102400 "), 2u * 3) << output.text;
}

TEST_F(HeapReplayTest, PrintsJson) {
  const Output output =
      RunTool("--rounds=1 --samples=2 --allocators=tlsf,buddy --format=json " +
              log_.path());
  EXPECT_EQ(output.status, 0) << output.text;
  EXPECT_EQ(output.text.find(
                "{\"log\":\"" + log_.path() +
                "\",\"operations\":1900,\"allocs\":1000,\"frees\":900,"
                "\"resizes\":0,\"threads\":2,\"concurrent\":false,\"rounds\":1,"
                "\"peak_bytes\":100000,\"peak_blocks\":100,"
                "\"peak_operation\":100,\"lost_events\":0,"
                "\"skipped_events\":0,\"malloc\":\""),
            0u)
      << output.text;
  EXPECT_EQ(Count(output.text, "{\"allocator\":\""), 2u);
  EXPECT_EQ(Count(output.text, "{\"operation\":"), 2u * 3);
  EXPECT_TRUE(
      Has(output, "\"requested_bytes\":100000,\"usable_bytes\":100800,"))
      << output.text;
  EXPECT_TRUE(Has(output, "\"usable_bytes\":102400,")) << "buddy rounds up";
  EXPECT_TRUE(Has(output, "\"internal\":0.023438,")) << "1 - 100000 / 102400";
  EXPECT_EQ(Count(output.text, "{"), Count(output.text, "}"));
  EXPECT_EQ(Count(output.text, "["), Count(output.text, "]"));
}

// A path is any bytes; JSON is UTF-8.
TEST(HeapReplayPathTest, JsonHasNoBytesOfAPathBeyondAscii) {
  TestLog log("gr\xfc\xdf.heaplog", 2);
  Write(&log);
  const Output output = RunTool(
      "--rounds=1 --samples=2 --allocators=tlsf --format=json " + log.path());
  EXPECT_EQ(output.status, 0) << output.text;
  EXPECT_TRUE(Has(output, "gr??.heaplog\",")) << output.text;
}

TEST_F(HeapReplayTest, RunsThreadsAtOnce) {
  const Output output = RunTool(
      "--rounds=2 --concurrent --allocators=tlsf,malloc " + log_.path());
  EXPECT_EQ(output.status, 0) << output.text;
  EXPECT_TRUE(Has(output, "2 threads, at once\n")) << output.text;
  EXPECT_TRUE(Has(output, "\ntlsf ")) << output.text;
}

TEST_F(HeapReplayTest, StrategiesMayRefuse) {
  TestLog log("large.heaplog");
  log.Alloc(0x1000, 600 << 10).Free(0x1000).Alloc(0x1000, 600 << 10);
  const Output output =
      RunTool("--rounds=1 --limit_mib=1 --allocators=buddy --format=json " +
              log.path());
  EXPECT_EQ(output.status, 0) << output.text;
  EXPECT_TRUE(Has(output, "\"refused\":0,")) << output.text;
  // No buddy of 2^n is both above 512 KiB and within a MiB with another one.
  log.Alloc(0x2000000, 300 << 10);
  EXPECT_TRUE(Has(RunTool("--rounds=1 --limit_mib=1 --allocators=buddy "
                          "--format=json " +
                          log.path()),
                  "\"refused\":1,"));
}

TEST_F(HeapReplayTest, WrongUsageIsExplained) {
  EXPECT_EQ(RunTool("").status, 2);
  EXPECT_TRUE(
      Has(RunTool("--format=xml " + log_.path()), "--format is text or"));
  EXPECT_EQ(RunTool("--rounds=0 " + log_.path()).status, 2);
  EXPECT_EQ(RunTool("--samples=0 " + log_.path()).status, 2);
  EXPECT_EQ(RunTool("--limit_mib=0 " + log_.path()).status, 2);
  const Output output = RunTool("--allocators=tlsf,worst_fit " + log_.path());
  EXPECT_EQ(output.status, 2);
  EXPECT_TRUE(Has(output,
                  "some of first_fit,next_fit,best_fit,tlsf,buddy,"
                  "segregated,"))
      << output.text;
}

TEST_F(HeapReplayTest, HostileLogsAreRefused) {
  const std::string bytes = heaplog_test::ReadFile(log_.path());
  for (const size_t at : {size_t{5}, size_t{4100}, size_t{4200}}) {
    std::string damaged = bytes;
    damaged[at] ^= 1;
    heaplog_test::WriteFile(log_.path(), damaged);
    const Output output = RunTool(log_.path());
    EXPECT_EQ(output.status, 1) << at;
    EXPECT_TRUE(Has(output, log_.path() + ": byte ")) << output.text;
  }
  heaplog_test::WriteFile(log_.path(), bytes.substr(0, 5000));
  EXPECT_EQ(RunTool(log_.path()).status, 1);
  heaplog_test::WriteFile(log_.path(), "");
  EXPECT_EQ(RunTool(log_.path()).status, 1);
  TestLog twice("twice.heaplog");
  twice.Alloc(0x1000, 1).Alloc(0x1000, 1);
  const Output output = RunTool(twice.path());
  EXPECT_EQ(output.status, 1);
  EXPECT_EQ(output.text, twice.path() +
                             ": at 2 ns thread 0 hands out block 0x1000, which "
                             "is live\n");
}

TEST_F(HeapReplayTest, FailuresAreExplained) {
  Output output =
      RunTool("--granule_bytes=24 --allocators=tlsf " + log_.path());
  EXPECT_EQ(output.status, 1);
  EXPECT_TRUE(Has(output, ": tlsf: Invalid argument\n")) << output.text;
  // A segregated heap has pages instead of a granule.
  output =
      RunTool("--granule_bytes=64 --span_bytes=4095 --rounds=1 " + log_.path());
  EXPECT_EQ(output.status, 1);
  EXPECT_TRUE(Has(output, ": segregated: Invalid argument\n")) << output.text;
  output = RunTool(
      "--granule_bytes=64 --span_bytes=4096 --rounds=1 "
      "--allocators=segregated,tlsf " +
      log_.path());
  EXPECT_EQ(output.status, 0) << output.text;
  output = RunTool("--operations_max=10 " + log_.path());
  EXPECT_EQ(output.status, 1);
  EXPECT_TRUE(Has(output, ": more than 10 operations\n")) << output.text;
  output =
      RunTool("--rounds=1 --allocators=tlsf " + log_.path() + " >/dev/full");
  EXPECT_EQ(output.status, 1);
  output = RunTool("/nowhere.heaplog");
  EXPECT_EQ(output.status, 1);
  EXPECT_TRUE(Has(output, "/nowhere.heaplog: ")) << output.text;
}

}  // namespace
}  // namespace leakcheck
