// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_test_util.h"
#include "leakcheck/heaplog_writer.h"

namespace {

using heaplog_test::kStartNs;
using heaplog_test::Options;
using heaplog_test::ReadFile;
using heaplog_test::TempPath;
using heaplog_test::WriteFile;

class HeaplogToolTest : public ::testing::Test {
 protected:
  void SetUp() override {
    heaplog_writer_options_t options = Options(path_);
    ASSERT_EQ(heaplog_writer_open(&options, &writer_), 0);
    ASSERT_EQ(heaplog_stream_open(writer_, kStartNs, 1, "t", &stream_), 0);
    ASSERT_TRUE(heaplog_append_process(stream_, "/bin/x", "x\0\n\0", 4));
    ASSERT_TRUE(heaplog_append_stack(stream_, 1, 0, 0xabc));
    ASSERT_TRUE(heaplog_append_stack(stream_, 2, 1, 0xdef));
    ASSERT_TRUE(heaplog_append_map(stream_, kStartNs, 0x10000, 65536));
    ASSERT_TRUE(
        heaplog_append_alloc(stream_, kStartNs + 5, 0x10010, 100, 112, 2));
    ASSERT_TRUE(
        heaplog_append_resize(stream_, kStartNs + 6, 0x10010, 110, 112, 2));
    ASSERT_TRUE(
        heaplog_append_free(stream_, kStartNs + 1000000007, 0x10010, 0));
    ASSERT_TRUE(heaplog_append_alloc(stream_, kStartNs, 0x10010, 20, 32, 0));
    ASSERT_TRUE(heaplog_append_sample(stream_, kStartNs, 4096));
  }

  void TearDown() override {
    heaplog_writer_close(writer_);
    unlink(path_.c_str());
  }

  // Runs the tool; standard error is in the output too.
  int Run(const std::string &arguments) {
    std::string command =
        "leakcheck/heaplog_tool " + arguments + " " + path_ + " 2>&1";
    FILE *pipe = popen(command.c_str(), "r");
    EXPECT_NE(pipe, nullptr);
    char buffer[4096];
    output_.clear();
    size_t count;
    while ((count = fread(buffer, 1, sizeof(buffer), pipe)) > 0) {
      output_.append(buffer, count);
    }
    return WEXITSTATUS(pclose(pipe));
  }

  bool Says(const std::string &text) {
    return output_.find(text) != std::string::npos;
  }

  std::string path_ = TempPath("tool.heaplog");
  std::string output_;
  heaplog_writer_t *writer_ = nullptr;
  heaplog_stream_t *stream_ = nullptr;
};

TEST_F(HeaplogToolTest, DumpsALinePerEvent) {
  EXPECT_EQ(Run("dump"), 0);
  EXPECT_EQ(output_,
            "0.000000000 thread 0 map 0x10000 size 65536\n"
            "0.000000005 thread 0 alloc 0x10010 size 100 usable 112 stack 2\n"
            "0.000000006 thread 0 resize 0x10010 size 110 usable 112 stack 2\n"
            "1.000000007 thread 0 free 0x10010\n"
            "1.000000007 thread 0 alloc 0x10010 size 20 usable 32\n"
            "1.000000007 thread 0 sample resident 4096\n");
  EXPECT_EQ(Run("--stacks dump"), 0);
  EXPECT_TRUE(Says("stack 2 0xdef 0xabc\n")) << output_;
}

TEST_F(HeaplogToolTest, InfoGivesTotals) {
  EXPECT_EQ(Run("info"), 0);
  EXPECT_TRUE(Says("process      4711 /bin/x\n")) << output_;
  EXPECT_TRUE(Says("command line x ? \n")) << output_;
  EXPECT_TRUE(Says("events       6\n  alloc      2\n  free       1\n"))
      << output_;
  EXPECT_TRUE(Says("live bytes   20 in 1 blocks at the end, 110 at the peak\n"))
      << output_;
  EXPECT_TRUE(Says("no end recorded\n")) << output_;
}

TEST_F(HeaplogToolTest, CheckPassesASoundLog) {
  EXPECT_EQ(Run("check"), 0) << output_;
  ASSERT_TRUE(heaplog_append_end(stream_, kStartNs));
  EXPECT_EQ(Run("check"), 0);
  EXPECT_TRUE(Says("orderly end\n")) << output_;
}

TEST_F(HeaplogToolTest, CheckSeesContradictions) {
  ASSERT_TRUE(heaplog_append_alloc(stream_, kStartNs, 0x10010, 1, 1, 0));
  EXPECT_EQ(Run("check"), 1);
  EXPECT_TRUE(Says("double alloc 1\n")) << output_;
  ASSERT_TRUE(heaplog_append_free(stream_, kStartNs, 0x10020, 0));
  EXPECT_EQ(Run("check"), 1);
  EXPECT_TRUE(Says("unknown free 1\n")) << output_;
  // With events lost, they are no wonder.
  ASSERT_TRUE(heaplog_append_lost(stream_, kStartNs, 3));
  EXPECT_EQ(Run("check"), 0);
}

TEST_F(HeaplogToolTest, DamageIsReportedWithItsPlace) {
  std::string bytes = ReadFile(path_);
  bytes[4096 + 70] ^= 1;
  WriteFile(path_, bytes);
  for (const char *command : {"info", "check", "dump"}) {
    EXPECT_EQ(Run(command), 1);
    EXPECT_TRUE(Says(": byte 4096: a chunk's checksum is wrong\n")) << output_;
  }
  WriteFile(path_, "something else");
  EXPECT_EQ(Run("info"), 1);
  EXPECT_TRUE(Says(": byte 0: not a heaplog\n")) << output_;
}

TEST_F(HeaplogToolTest, WrongUsageIsExplained) {
  EXPECT_EQ(Run(""), 2);
  EXPECT_EQ(Run("shred"), 2);
  EXPECT_TRUE(Says("info|check|dump FILE")) << output_;
}

}  // namespace
