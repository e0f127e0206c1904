// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Names of logs; that the variables have their effects is tested with whole
// programs, in recorder_test.

#include "leakcheck/recorder_options.h"

#include <gtest/gtest.h>
#include <string.h>

#include <string>

namespace {

std::string Name(const char *log, bool forked, unsigned attempt) {
  recorder_options_t options = {};
  strcpy(options.log, log);
  char path[256];
  if (!recorder_options_log_name(&options, 7, forked, attempt, path,
                                 sizeof(path))) {
    return "does not fit";
  }
  return path;
}

TEST(RecorderOptionsTest, PidReplacesItsPattern) {
  EXPECT_EQ(Name("/run.%p.heaplog", false, 1), "/run.7.heaplog");
  EXPECT_EQ(Name("/%p/%p", false, 1), "/7/7");
}

TEST(RecorderOptionsTest, DoubledPercentIsOne) {
  EXPECT_EQ(Name("/100%%p.heaplog", false, 1), "/100%p.heaplog");
  EXPECT_EQ(Name("/%%%p", false, 1), "/%7");
}

TEST(RecorderOptionsTest, OtherPercentsStay) {
  EXPECT_EQ(Name("/50%.heaplog", false, 1), "/50%.heaplog");
  EXPECT_EQ(Name("/%d%", false, 1), "/%d%");
}

TEST(RecorderOptionsTest, TakenNamesGetANumber) {
  EXPECT_EQ(Name("/run.%p.heaplog", false, 2), "/run.7.2.heaplog");
  EXPECT_EQ(Name("/run.%p.heaplog", false, 13), "/run.7.13.heaplog");
  EXPECT_EQ(Name("/%p.log", false, 2), "/7.log.2");
}

TEST(RecorderOptionsTest, TakenNamesWithoutPidGetThePidFirst) {
  EXPECT_EQ(Name("/run.heaplog", false, 1), "/run.heaplog");
  EXPECT_EQ(Name("/run.heaplog", false, 2), "/run.7.heaplog");
  EXPECT_EQ(Name("/run.heaplog", false, 3), "/run.7.2.heaplog");
  EXPECT_EQ(Name("/run%%p", false, 2), "/run%p.7");
}

TEST(RecorderOptionsTest, LogsOfForkedChildrenSaySo) {
  EXPECT_EQ(Name("/run.%p.heaplog", true, 1), "/run.7.fork.heaplog");
  EXPECT_EQ(Name("/run.%p.heaplog", true, 2), "/run.7.fork.2.heaplog");
  EXPECT_EQ(Name("/run.heaplog", true, 1), "/run.7.fork.heaplog");
  EXPECT_EQ(Name("/run.heaplog", true, 2), "/run.7.fork.2.heaplog");
}

TEST(RecorderOptionsTest, ExtensionAloneIsAName) {
  EXPECT_EQ(Name(".heaplog", false, 2), ".heaplog.7");
}

TEST(RecorderOptionsTest, NamesThatDoNotFitAreRefused) {
  std::string exact(255, 'x');
  EXPECT_EQ(Name(exact.c_str(), false, 1), exact);
  EXPECT_EQ(Name((exact + "x").c_str(), false, 1), "does not fit");
  EXPECT_EQ(Name("", false, 1), "does not fit");
}

TEST(RecorderOptionsTest, PerProcessMeansAPattern) {
  recorder_options_t options = {};
  strcpy(options.log, "/a.%p");
  EXPECT_TRUE(recorder_options_per_process(&options));
  strcpy(options.log, "/a.%%p");
  EXPECT_FALSE(recorder_options_per_process(&options));
  strcpy(options.log, "/a.%%%p");
  EXPECT_TRUE(recorder_options_per_process(&options));
  strcpy(options.log, "/a%");
  EXPECT_FALSE(recorder_options_per_process(&options));
}

TEST(RecorderOptionsTest, HelpNamesEveryVariable) {
  for (const char *name : {"LEAKCHECK_LOG", "LEAKCHECK_FRAMES",
                           "LEAKCHECK_FORK", "LEAKCHECK_HELP"}) {
    EXPECT_NE(strstr(recorder_options_help, name), nullptr) << name;
  }
}

}  // namespace
