// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What becomes of a writer whose thread is cancelled: a call that the kernel
// has begun is finished and accounted for; where a thread waits for a reader it
// ends, and the writer is good to be closed.

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <thread>

#include "bufio/bufio_testing.h"
#include "bufio/exit_testing.h"
#include "bufio/io_system.h"
#include "bufio/journal.h"
#include "bufio/writer.h"
#include "bufio/writer_testing.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::IsCancelledAt;
using bufio_testing::MakeFullPipe;
using bufio_testing::Pattern;
using bufio_testing::ReadFile;
using bufio_testing::ReadToEnd;
using bufio_testing::WriterLevelTest;

// Where the thread is when it is cancelled.
const std::function<void()> *place = nullptr;

void BeThere() {
  if (place != nullptr) {
    (*place)();
  }
}

// Every call that transfers or syncs is such a place, once the kernel has done
// it, as it is in glibc.
bufio_system_t CancellingKernel() {
  bufio_system_t table = bufio_system_kernel;
  table.write = [](int descriptor, const void *bytes, size_t len) {
    int64_t count = bufio_system_kernel.write(descriptor, bytes, len);
    BeThere();
    return count;
  };
  table.write_at = [](int descriptor, const void *bytes, size_t len,
                      uint64_t offset) {
    int64_t count =
        bufio_system_kernel.write_at(descriptor, bytes, len, offset);
    BeThere();
    return count;
  };
  table.write_vector = [](int descriptor, const struct iovec *parts,
                          int count) {
    int64_t written =
        bufio_system_kernel.write_vector(descriptor, parts, count);
    BeThere();
    return written;
  };
  return table;
}

class WriterCancelTest : public WriterLevelTest {
 protected:
  ~WriterCancelTest() override {
    bufio_system = &bufio_system_kernel;
    place = nullptr;
  }

  // Runs `body` in a thread that is cancelled at the first such place; whether
  // it ended there.
  bool IsCancelledIn(const std::function<void()> &body) {
    bufio_system = &table_;
    bool is_cancelled = IsCancelledAt([&](const std::function<void()> &there) {
      std::function<void()> once = [&] {
        place = nullptr;
        there();
      };
      place = &once;
      body();
      int state;
      pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
      EXPECT_EQ(state, PTHREAD_CANCEL_ENABLE);
    });
    bufio_system = &bufio_system_kernel;
    place = nullptr;
    return is_cancelled;
  }

  bufio_system_t table_ = CancellingKernel();
};

TEST_P(WriterCancelTest, WriteThatTheKernelHasBegunIsFinished) {
  Open();
  ASSERT_EQ(bufio_writer_puts(&writer_, "one"), 0);
  // Else close would wait for ever, or write it again.
  EXPECT_FALSE(IsCancelledIn([&] { (void)bufio_writer_flush(&writer_); }));
  EXPECT_SOUND(&writer_);
  EXPECT_EQ(bufio_writer_puts(&writer_, "two"), 0);
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  EXPECT_EQ(ReadFile(path_), "onetwo");
}

TEST_P(WriterCancelTest, LargeWriteThatTheKernelHasBegunIsFinished) {
  options_.buffer_bytes = 4096;
  const std::string large = Pattern(0, 100000);
  for (const std::string &before : {std::string(), std::string("before")}) {
    Open();
    ASSERT_EQ(bufio_writer_puts(&writer_, before.c_str()), 0);
    EXPECT_FALSE(IsCancelledIn([&] {
      EXPECT_EQ(bufio_writer_write(&writer_, large.data(), large.size()), 0);
    }));
    EXPECT_SOUND(&writer_);
    EXPECT_EQ(bufio_writer_close(&writer_), 0);
    EXPECT_EQ(ReadFile(path_), before + large);
  }
}

// The kernel tells an error of the disk once.
TEST_P(WriterCancelTest, FailureOfASyncIsNotForgotten) {
  Open();
  ASSERT_EQ(bufio_writer_puts(&writer_, "one"), 0);
  ASSERT_EQ(bufio_writer_flush(&writer_), 0);
  table_.sync_data = [](int) {
    BeThere();
    return -EIO;
  };
  EXPECT_FALSE(
      IsCancelledIn([&] { EXPECT_EQ(bufio_writer_sync(&writer_), -EIO); }));
  EXPECT_EQ(bufio_writer_close(&writer_), -EIO);
}

TEST_P(WriterCancelTest, CloseThatHasFlushedIsFinished) {
  Open();
  ASSERT_EQ(bufio_writer_puts(&writer_, "one"), 0);
  ASSERT_EQ(bufio_writer_flush(&writer_), 0);
  table_.close = [](int descriptor) {
    int status = bufio_system_kernel.close(descriptor);
    BeThere();
    return status;
  };
  EXPECT_FALSE(
      IsCancelledIn([&] { EXPECT_EQ(bufio_writer_close(&writer_), 0); }));
  EXPECT_EQ(bufio_writer_close(&writer_), 0) << "closed already";
  EXPECT_EQ(ReadFile(path_), "one");
}

// Else nobody would ever unlock the file. Below level `process` what an open
// leaves that is cancelled is a descriptor at most.
TEST_P(WriterCancelTest, OpenThatHasLockedTheFileIsFinished) {
  table_ = bufio_system_kernel;
  table_.lock = [](int descriptor, int operation) {
    int status = bufio_system_kernel.lock(descriptor, operation);
    BeThere();
    return status;
  };
  bufio_testing::WriteFile(path_, "old");
  EXPECT_FALSE(IsCancelledIn([&] { Open(); }));
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  options_.durability = BUFIO_DURABILITY_PROCESS;
  bufio_testing::RunChild([&] {
    Open();
    (void)!bufio_writer_puts(&writer_, "tail");
    kill(getpid(), SIGKILL);
  });
  EXPECT_FALSE(IsCancelledIn([&] {
    EXPECT_EQ(bufio_journal_replay(path_.c_str(), nullptr, nullptr), 0);
  }));
  EXPECT_EQ(ReadFile(path_), "tail");
  Open();
}

TEST_P(WriterCancelTest, AttachThatHasLockedTheFileIsFinished) {
  const std::string side = path_ + ".bufio-journal";
  options_.durability = BUFIO_DURABILITY_PROCESS;
  options_.journal_path = side.c_str();
  table_ = bufio_system_kernel;
  table_.lock = [](int descriptor, int operation) {
    int status = bufio_system_kernel.lock(descriptor, operation);
    BeThere();
    return status;
  };
  int descriptor = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_GE(descriptor, 0);
  EXPECT_FALSE(IsCancelledIn([&] {
    EXPECT_EQ(bufio_writer_attach(&writer_, descriptor, &options_), 0);
  }));
  EXPECT_EQ(bufio_writer_close(&writer_), 0);
  close(descriptor);
  Open();
}

INSTANTIATE_TEST_SUITE_P(Levels, WriterCancelTest,
                         testing::Values(BUFIO_DURABILITY_NONE,
                                         BUFIO_DURABILITY_EXIT,
                                         BUFIO_DURABILITY_PROCESS,
                                         BUFIO_DURABILITY_POWER));

// ---- readers that do not read ----

class WriterCancelWaitTest : public WriterCancelTest {};

TEST_P(WriterCancelWaitTest, ThreadThatWaitsForAReaderEnds) {
  for (bool is_large : {false, true}) {
    int ends[2];
    MakeFullPipe(SOCK_STREAM, ends);
    if (GetParam() != BUFIO_DURABILITY_EXIT) {
      ASSERT_EQ(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
    }
    options_.buffer_bytes = 4096;
    ASSERT_EQ(bufio_writer_attach(&writer_, ends[1], &options_), 0);
    ASSERT_EQ(bufio_writer_puts(&writer_, "one"), 0);
    table_ = bufio_system_kernel;
    table_.wait = [](int, short) {
      BeThere();
      return 0;
    };
    EXPECT_TRUE(IsCancelledIn([&] {
      const std::string large(100000, 'x');
      (void)(is_large ? bufio_writer_write(&writer_, large.data(), large.size())
                      : bufio_writer_flush(&writer_));
    }));
    EXPECT_SOUND(&writer_);
    std::thread reader([&] {
      const std::string got = ReadToEnd(ends[0]);
      EXPECT_EQ(got.find("one"), got.size() - 3) << "once, and last";
    });
    EXPECT_EQ(bufio_writer_close(&writer_), 0);
    close(ends[1]);
    reader.join();
    close(ends[0]);
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, WriterCancelWaitTest,
                         testing::Values(BUFIO_DURABILITY_NONE,
                                         BUFIO_DURABILITY_EXIT));

}  // namespace
