// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Replays what the recorder recorded of a real program, on a malloc that is
// preloaded.

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_test_util.h"

namespace {

std::string RunShell(const std::string &command) {
  FILE *pipe = popen((command + " 2>&1").c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  std::string text;
  char buffer[4096];
  size_t count;
  while ((count = fread(buffer, 1, sizeof(buffer), pipe)) > 0) {
    text.append(buffer, count);
  }
  EXPECT_EQ(WEXITSTATUS(pclose(pipe)), 0) << text;
  return text;
}

TEST(HeapReplayPreloadTest, ReplaysARecordingOnThePreloadedMalloc) {
  const std::string log = heaplog_test::TempPath("preload.heaplog");
  RunShell("LD_PRELOAD=$PWD/leakcheck/libleakcheck.so LEAKCHECK_LOG=" + log +
           " sort -n /proc/self/maps");
  const std::string text = RunShell(
      "LD_PRELOAD=$PWD/heap/libheap.so leakcheck/heap_replay --rounds=1 " +
      log);
  EXPECT_NE(text.find("heap/libheap.so\n"), std::string::npos) << text;
  EXPECT_NE(text.find("\nmalloc "), std::string::npos) << text;
  EXPECT_NE(text.find("\ntlsf "), std::string::npos) << text;
  unlink(log.c_str());
}

}  // namespace
