// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What a close of level `process` leaves: no side file, no lock, or nothing
// that the next open minds.

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "bufio/bufio_testing.h"
#include "bufio/writer.h"
#include "bufio/writer_testing.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::Exists;
using bufio_testing::FaultyKernel;
using bufio_testing::ReadFile;
using bufio_testing::RunChild;
using bufio_testing::WriteFile;

class WriterCloseTest : public bufio_testing::WriterOpenTest {};

TEST_F(WriterCloseTest, CloseWithNoDescriptorFreeRemovesItsSideFile) {
  int status = RunChild([&] {
    if (Open(process_) != 0 || bufio_writer_puts(&writer_, "accepted") != 0) {
      _exit(1);
    }
    while (dup(STDERR_FILENO) >= 0) {
    }
    _exit(errno == EMFILE && bufio_writer_close(&writer_) == 0 ? 0 : 2);
  });
  EXPECT_EQ(status, 0);
  EXPECT_EQ(ReadFile(path_), "accepted");
  EXPECT_FALSE(Exists(side_));
}

// Should it be there still, whatever happened to the file meanwhile.
TEST_F(WriterCloseTest, SideFileOfAClosedWriterDoesNotCount) {
  for (bool append : {false, true}) {
    for (int level = 0; level < 4; level++) {
      for (const char *text : {"accepted, and others'", "acc", "other"}) {
        unlink(path_.c_str());
        ASSERT_EQ(Open(process_), 0);
        ASSERT_EQ(bufio_writer_puts(&writer_, "accepted"), 0);
        {
          FaultyKernel kernel;
          kernel.decide = [](Call call, size_t) {
            return call == Call::kUnlink ? -EACCES : 0;
          };
          EXPECT_EQ(bufio_writer_close(&writer_), 0);
        }
        ASSERT_TRUE(Exists(side_));
        WriteFile(path_, text);
        bufio_writer_options_t options = {};
        options.durability = static_cast<bufio_durability_t>(level);
        options.append = append;
        ASSERT_EQ(Open(options), 0);
        EXPECT_EQ(bufio_writer_puts(&writer_, " more"), 0);
        EXPECT_EQ(bufio_writer_close(&writer_), 0);
        EXPECT_EQ(ReadFile(path_), (append ? text : "") + std::string(" more"));
        EXPECT_FALSE(Exists(side_));
      }
    }
  }
}

// In a folder that may be read only by now. Level `process` needs the name.
TEST_F(WriterCloseTest, SideFileOfAClosedWriterThatStaysKeepsNobodyOut) {
  for (bool append : {false, true}) {
    for (bufio_durability_t level :
         {BUFIO_DURABILITY_NONE, BUFIO_DURABILITY_EXIT,
          BUFIO_DURABILITY_POWER}) {
      unlink(path_.c_str());
      unlink(side_.c_str());
      FaultyKernel kernel;
      kernel.decide = [](Call call, size_t) {
        return call == Call::kUnlink ? -EACCES : 0;
      };
      ASSERT_EQ(Open(process_), 0);
      ASSERT_EQ(bufio_writer_puts(&writer_, "accepted"), 0);
      EXPECT_EQ(bufio_writer_close(&writer_), 0);
      ASSERT_TRUE(Exists(side_));
      bufio_writer_options_t options = {};
      options.durability = level;
      options.append = append;
      ASSERT_EQ(Open(options), 0);
      EXPECT_EQ(bufio_writer_puts(&writer_, " more"), 0);
      EXPECT_EQ(bufio_writer_close(&writer_), 0);
      EXPECT_EQ(ReadFile(path_), append ? "accepted more" : " more");
      EXPECT_EQ(Open(process_), -EBUSY);
    }
  }
}

// Whoever forks while another thread closes has a child with a copy of every
// descriptor.
TEST_F(WriterCloseTest, ChildForkedDuringACloseDoesNotKeepTheLock) {
  for (bool attach : {false, true}) {
    static pid_t child;
    child = -1;
    int descriptor = -1;
    if (attach) {
      descriptor = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
      ASSERT_GE(descriptor, 0);
      process_.journal_path = side_.c_str();
      ASSERT_EQ(bufio_writer_attach(&writer_, descriptor, &process_), 0);
    } else {
      ASSERT_EQ(Open(process_), 0);
    }
    {
      FaultyKernel kernel;
      kernel.decide = [](Call call, size_t) -> int64_t {
        if (call == Call::kUnlink) {
          child = fork();
          if (child == 0) {
            pause();
          }
        }
        return 0;
      };
      EXPECT_EQ(bufio_writer_close(&writer_), 0);
    }
    ASSERT_GT(child, 0);
    process_.journal_path = nullptr;
    EXPECT_EQ(Open(process_), 0);
    EXPECT_EQ(bufio_writer_close(&writer_), 0);
    kill(child, SIGKILL);
    EXPECT_EQ(waitpid(child, nullptr, 0), child);
    close(descriptor);
    unlink(path_.c_str());
  }
}

}  // namespace
