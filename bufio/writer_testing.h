// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the tests of the writer share.

#ifndef MY_ALLOC_BUFIO_WRITER_TESTING_H_
#define MY_ALLOC_BUFIO_WRITER_TESTING_H_

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "bufio/bufio_testing.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

#define EXPECT_SOUND(writer) EXPECT_STREQ(bufio_writer_check(writer), nullptr)

namespace bufio_testing {

class WriterTest : public testing::Test {
 protected:
  ~WriterTest() override {
    bufio_writer_close(&writer_);
    unlink(path_.c_str());
    unlink((path_ + ".bufio-journal").c_str());
  }

  void Open() {
    ASSERT_EQ(bufio_writer_open(&writer_, path_.c_str(), &options_), 0);
    EXPECT_SOUND(&writer_);
  }

  std::string path_ = TempPath("writer");
  bufio_writer_options_t options_ = {};
  bufio_writer_t writer_ = {};
};

// Each test of this one runs at every level.
class WriterLevelTest : public WriterTest,
                        public testing::WithParamInterface<bufio_durability_t> {
 protected:
  WriterLevelTest() {
    options_.durability = GetParam();
  }
};

// Opens beside the side files of killed writers.
class WriterOpenTest : public testing::Test {
 protected:
  WriterOpenTest() {
    process_.durability = BUFIO_DURABILITY_PROCESS;
    process_.append = true;
  }

  ~WriterOpenTest() override {
    bufio_writer_close(&writer_);
    for (const std::string &name : {path_, other_}) {
      unlink(name.c_str());
      unlink((name + ".bufio-journal").c_str());
    }
  }

  int Open(const bufio_writer_options_t &options) {
    return bufio_writer_open(&writer_, path_.c_str(), &options);
  }

  // A process that wrote `text` at level `process` and was killed.
  void KillAWriterOf(const char *text) {
    pid_t child = fork();
    if (child == 0) {
      if (Open(process_) == 0 && bufio_writer_puts(&writer_, text) == 0) {
        kill(getpid(), SIGKILL);
      }
      _exit(1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    ASSERT_TRUE(Exists(side_));
  }

  std::string path_ = TempPath("open");
  std::string side_ = path_ + ".bufio-journal";
  std::string other_ = TempPath("other");
  bufio_writer_options_t process_ = {};
  bufio_writer_t writer_ = {};
};

}  // namespace bufio_testing

#endif  // MY_ALLOC_BUFIO_WRITER_TESTING_H_
