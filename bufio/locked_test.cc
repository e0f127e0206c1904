// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/locked.h"

#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "bufio/bufio_testing.h"
#include "bufio/format.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::FaultyKernel;
using bufio_testing::IsCancelledAt;
using bufio_testing::ReadFile;
using bufio_testing::TempPath;

class LockedTest : public testing::Test {
 protected:
  ~LockedTest() override {
    unlink(path_.c_str());
  }

  std::string path_ = TempPath("locked");
  bufio_locked_writer_t log_ = {};
};

TEST_F(LockedTest, RecordsOfManyThreadsStayWholeAndInOrder) {
  bufio_writer_options_t options = {};
  options.buffer_bytes = 4096;
  ASSERT_EQ(bufio_locked_writer_open(&log_, path_.c_str(), &options), 0);
  constexpr int kThreads = 4;
  constexpr int kRecords = 5000;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; thread++) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < kRecords; i++) {
        if (i % 3 == 0) {
          bufio_writer_t *writer = bufio_locked_writer_acquire(&log_);
          bufio_writer_put_u64(writer, static_cast<uint64_t>(thread));
          bufio_writer_putc(writer, ' ');
          bufio_writer_put_u64(writer, static_cast<uint64_t>(i));
          bufio_writer_putc(writer, '\n');
          bufio_locked_writer_release(&log_);
        } else if (i % 3 == 1) {
          ASSERT_EQ(bufio_locked_writer_printf(&log_, "%d %d\n", thread, i), 0);
        } else {
          std::string record =
              std::to_string(thread) + " " + std::to_string(i) + "\n";
          ASSERT_EQ(
              bufio_locked_writer_write(&log_, record.data(), record.size()),
              0);
        }
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_EQ(bufio_locked_writer_sync(&log_), 0);
  EXPECT_EQ(bufio_locked_writer_close(&log_), 0);
  std::istringstream file(ReadFile(path_));
  std::map<int, int> next;
  int thread;
  int i;
  int total = 0;
  while (file >> thread >> i) {
    ASSERT_EQ(next[thread]++, i);
    total++;
  }
  EXPECT_EQ(total, kThreads * kRecords);
}

TEST_F(LockedTest, ErrorsAreStickyAndCurable) {
  ASSERT_EQ(bufio_locked_writer_open(&log_, path_.c_str(), nullptr), 0);
  EXPECT_EQ(bufio_locked_writer_write(&log_, "text", 4), 0);
  {
    FaultyKernel kernel;
    kernel.decide = [](Call call, size_t) -> int64_t {
      return call == Call::kWrite ? -ENOSPC : 0;
    };
    EXPECT_EQ(bufio_locked_writer_flush(&log_), -ENOSPC);
    EXPECT_EQ(bufio_locked_writer_printf(&log_, "x"), -ENOSPC);
  }
  EXPECT_EQ(bufio_locked_writer_resume(&log_), 0);
  EXPECT_EQ(bufio_locked_writer_close(&log_), 0);
  EXPECT_EQ(ReadFile(path_), "text");
  EXPECT_EQ(bufio_locked_writer_close(nullptr), 0);
}

TEST_F(LockedTest, AttachedDescriptorStaysOpen) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_EQ(bufio_locked_writer_attach(&log_, -1, nullptr), -EBADF);
  ASSERT_EQ(bufio_locked_writer_attach(&log_, ends[1], nullptr), 0);
  EXPECT_EQ(bufio_locked_writer_printf(&log_, "%s %d", "hello", 1), 0);
  EXPECT_EQ(bufio_locked_writer_close(&log_), 0);
  char bytes[8];
  EXPECT_EQ(read(ends[0], bytes, 8), 7);
  EXPECT_EQ(memcmp(bytes, "hello 1", 7), 0);
  EXPECT_EQ(write(ends[1], "x", 1), 1);
  close(ends[0]);
  close(ends[1]);
}

// Somebody cancels the thread that holds the lock.
TEST_F(LockedTest, CancelledHolderReleasesFirst) {
  ASSERT_EQ(bufio_locked_writer_open(&log_, path_.c_str(), nullptr), 0);
  ASSERT_FALSE(IsCancelledAt([&](const std::function<void()> &place) {
    bufio_writer_t *writer = bufio_locked_writer_acquire(&log_);
    (void)bufio_writer_puts(writer, "one");
    place();
    (void)bufio_writer_puts(writer, "two");
    bufio_locked_writer_release(&log_);
  }));
  EXPECT_EQ(bufio_locked_writer_write(&log_, "three", 5), 0);
  EXPECT_EQ(bufio_locked_writer_close(&log_), 0);
  EXPECT_EQ(ReadFile(path_), "onetwothree");
}

// Forks while another thread holds the lock now and then.
TEST_F(LockedTest, ChildFindsTheLockFree) {
  ASSERT_EQ(bufio_locked_writer_open(&log_, path_.c_str(), nullptr), 0);
  std::atomic<bool> stop{false};
  std::thread other([&] {
    while (!stop) {
      bufio_locked_writer_write(&log_, "parent\n", 7);
    }
  });
  for (int i = 0; i < 50; i++) {
    pid_t child = fork();
    if (child == 0) {
      _exit(bufio_locked_writer_write(&log_, "child\n", 6) == 0 ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
  }
  stop = true;
  other.join();
  EXPECT_EQ(bufio_locked_writer_close(&log_), 0);
}

}  // namespace
