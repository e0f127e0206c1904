// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "bufio/async_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bufio/bufio_testing.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Pattern;
using bufio_testing::ReadFile;
using bufio_testing::Seed;
using bufio_testing::TempPath;

// A kernel whose write(2) does as these say. (FaultyKernel is for one thread.)
std::atomic<int> write_error{0};
std::atomic<bool> sync_fails{false};
std::atomic<bool> first_sync_fails{false};
std::atomic<uint64_t> sync_calls{0};
std::atomic<size_t> write_at_most{SIZE_MAX};
// Writes wait while it is set; counted so that a test knows one is waiting.
std::atomic<bool> write_blocks{false};
std::atomic<int> num_blocked{0};

int64_t ControlledWrite(int descriptor, const void *bytes, size_t len) {
  if (write_blocks) {
    num_blocked++;
    while (write_blocks) {
      std::this_thread::yield();
    }
  }
  int error = write_error;
  if (error != 0) {
    return -error;
  }
  return bufio_system_kernel.write(descriptor, bytes,
                                   std::min(len, write_at_most.load()));
}

int ControlledSync(int descriptor) {
  if (++sync_calls == 1 && first_sync_fails) {
    // Fails once, as the kernel does, and returns late: a sync that another
    // thread may make meanwhile has been told 0 by then.
    for (int i = 0; i < 200 && sync_calls == 1; i++) {
      usleep(1000);
    }
    return -EIO;
  }
  return sync_fails ? -EIO : bufio_system_kernel.sync_data(descriptor);
}

class AsyncWriterTest : public testing::Test {
 protected:
  AsyncWriterTest() {
    write_error = 0;
    sync_fails = false;
    first_sync_fails = false;
    sync_calls = 0;
    write_at_most = SIZE_MAX;
    write_blocks = false;
    num_blocked = 0;
    system_ = bufio_system_kernel;
    system_.write = ControlledWrite;
    system_.sync_data = ControlledSync;
    bufio_system = &system_;
    options_.queue_bytes = 4096;
  }

  ~AsyncWriterTest() override {
    write_blocks = false;
    bufio_async_writer_close(writer_);
    bufio_system = &bufio_system_kernel;
    unlink(path_.c_str());
  }

  void Open() {
    ASSERT_EQ(bufio_async_writer_open(path_.c_str(), &options_, &writer_), 0);
  }

  int Close() {
    int status = bufio_async_writer_close(writer_);
    writer_ = nullptr;
    return status;
  }

  // Has the flusher stand in write(2).
  void Block() {
    write_blocks = true;
    ASSERT_EQ(bufio_async_writer_write(writer_, "x", 1), 0);
    while (num_blocked == 0) {
      std::this_thread::yield();
    }
  }

  bufio_system_t system_;
  std::string path_ = TempPath("async");
  bufio_async_writer_options_t options_ = {};
  bufio_async_writer_t *writer_ = nullptr;
};

TEST_F(AsyncWriterTest, WhatCannotBeOpenedSaysSo) {
  EXPECT_EQ(bufio_async_writer_open("/no/such", nullptr, &writer_), -ENOENT);
  EXPECT_EQ(bufio_async_writer_attach(-1, nullptr, &writer_), -EBADF);
  EXPECT_EQ(bufio_async_writer_attach(9999, nullptr, &writer_), -EBADF);
  options_.queue_bytes = SIZE_MAX;
  EXPECT_EQ(bufio_async_writer_open(path_.c_str(), &options_, &writer_),
            -EINVAL);
  EXPECT_EQ(bufio_async_writer_close(nullptr), 0);
}

TEST_F(AsyncWriterTest, EverythingIsWrittenInOrder) {
  write_at_most = 1000;
  Open();
  std::string expected;
  std::mt19937_64 random(Seed());
  for (int i = 0; i < 1000; i++) {
    // Some records exceed the queue.
    size_t len = random() % (i % 20 == 0 ? 20000 : 300);
    std::string record = Pattern(expected.size(), len);
    ASSERT_EQ(bufio_async_writer_write(writer_, record.data(), len), 0);
    expected += record;
    if (i % 100 == 0) {
      ASSERT_EQ(bufio_async_writer_flush(writer_), 0);
      ASSERT_EQ(bufio_async_writer_queued(writer_), 0u);
      ASSERT_EQ(ReadFile(path_), expected);
    }
  }
  EXPECT_EQ(bufio_async_writer_sync(writer_), 0);
  EXPECT_EQ(Close(), 0);
  EXPECT_EQ(ReadFile(path_), expected);
}

TEST_F(AsyncWriterTest, FewBytesAreWrittenWithoutAFlush) {
  options_.delay_ms = 1;
  Open();
  ASSERT_EQ(bufio_async_writer_write(writer_, "hello", 5), 0);
  while (ReadFile(path_) != "hello") {
    std::this_thread::yield();
  }
}

TEST_F(AsyncWriterTest, FullBatchIsWrittenWithoutADelay) {
  options_.batch_bytes = 100;
  options_.delay_ms = 3600 * 1000;
  Open();
  for (int i = 0; i < 10; i++) {
    ASSERT_EQ(bufio_async_writer_write(writer_, "0123456789", 10), 0);
  }
  while (ReadFile(path_).size() < 100) {
    std::this_thread::yield();
  }
}

TEST_F(AsyncWriterTest, AttachedDescriptorStaysOpen) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_EQ(bufio_async_writer_attach(ends[1], &options_, &writer_), 0);
  ASSERT_EQ(bufio_async_writer_write(writer_, "hello", 5), 0);
  EXPECT_EQ(Close(), 0);
  char bytes[8];
  EXPECT_EQ(read(ends[0], bytes, 8), 5);
  EXPECT_EQ(write(ends[1], "x", 1), 1);
  close(ends[0]);
  close(ends[1]);
}

TEST_F(AsyncWriterTest, FullQueueMakesTryWriteSaySoAndWriteWait) {
  Open();
  Block();
  std::string rest = Pattern(1, 4095);
  ASSERT_EQ(bufio_async_writer_try_write(writer_, rest.data(), 4095), 0);
  EXPECT_EQ(bufio_async_writer_try_write(writer_, "y", 1), -EAGAIN);
  EXPECT_EQ(bufio_async_writer_try_write(writer_, rest.data(), 5000),
            -EMSGSIZE);
  EXPECT_EQ(bufio_async_writer_queued(writer_), 4096u);
  std::atomic<bool> has_begun{false};
  std::thread producer([&] {
    has_begun = true;
    EXPECT_EQ(bufio_async_writer_write(writer_, "y", 1), 0);
    EXPECT_FALSE(write_blocks) << "accepted without room";
  });
  while (!has_begun) {
    std::this_thread::yield();
  }
  write_blocks = false;
  producer.join();
  EXPECT_EQ(Close(), 0);
  EXPECT_EQ(ReadFile(path_), "x" + rest + "y");
}

// Somebody cancels a thread that waits for room.
TEST_F(AsyncWriterTest, CancelledProducerLeavesNobodyBehind) {
  options_.queue_bytes = 4096;
  Open();
  write_blocks = true;
  std::string record(4096, 'r');
  ASSERT_EQ(bufio_async_writer_write(writer_, record.data(), record.size()), 0);
  pthread_t producer;
  auto produce = [](void *writer) -> void * {
    std::string other(4096, 'p');
    (void)bufio_async_writer_write(static_cast<bufio_async_writer_t *>(writer),
                                   other.data(), other.size());
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&producer, nullptr, produce, writer_), 0);
  while (num_blocked == 0) {
    std::this_thread::yield();
  }
  ASSERT_EQ(pthread_cancel(producer), 0);
  write_blocks = false;
  ASSERT_EQ(pthread_join(producer, nullptr), 0);
  EXPECT_EQ(bufio_async_writer_write(writer_, "x", 1), 0);
  EXPECT_EQ(bufio_async_writer_close(writer_), 0);
  writer_ = nullptr;
  EXPECT_EQ(ReadFile(path_), record + std::string(4096, 'p') + "x");
}

TEST_F(AsyncWriterTest, ManyProducersKeepTheirOrderAndTheirRecordsWhole) {
  write_at_most = 777;
  Open();
  constexpr uint64_t kThreads = 4;
  constexpr uint64_t kRecords = 3000;
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < kThreads; thread++) {
    threads.emplace_back([&, thread] {
      for (uint64_t i = 0; i < kRecords; i++) {
        uint64_t len = (i * 37 + thread) % (i % 100 == 0 ? 6000 : 200);
        std::string record(24, '\0');
        memcpy(&record[0], &thread, 8);
        memcpy(&record[8], &i, 8);
        memcpy(&record[16], &len, 8);
        record += Pattern(i, len);
        if (i % 5 == 0 && record.size() < 4096) {
          while (bufio_async_writer_try_write(writer_, record.data(),
                                              record.size()) == -EAGAIN) {
            std::this_thread::yield();
          }
        } else {
          ASSERT_EQ(
              bufio_async_writer_write(writer_, record.data(), record.size()),
              0);
        }
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  EXPECT_EQ(Close(), 0);
  std::string file = ReadFile(path_);
  std::map<uint64_t, uint64_t> next;
  uint64_t total = 0;
  for (size_t at = 0; at < file.size(); total++) {
    uint64_t thread;
    uint64_t i;
    uint64_t len;
    memcpy(&thread, &file[at], 8);
    memcpy(&i, &file[at + 8], 8);
    memcpy(&len, &file[at + 16], 8);
    ASSERT_EQ(next[thread]++, i);
    ASSERT_TRUE(file.compare(at + 24, len, Pattern(i, len)) == 0);
    at += 24 + len;
  }
  EXPECT_EQ(total, kThreads * kRecords);
}

TEST_F(AsyncWriterTest, ErrorIsStickyWakesWhoWaitsAndIsCurable) {
  for (int error : {ENOSPC, EIO, EPIPE, EDQUOT}) {
    Open();
    Block();
    std::string rest = Pattern(1, 4095);
    ASSERT_EQ(bufio_async_writer_write(writer_, rest.data(), 4095), 0);
    std::thread producer([&] {
      EXPECT_EQ(bufio_async_writer_write(writer_, "more", 4), -error);
    });
    std::thread flusher(
        [&] { EXPECT_EQ(bufio_async_writer_flush(writer_), -error); });
    write_error = error;
    write_blocks = false;
    producer.join();
    flusher.join();
    EXPECT_EQ(bufio_async_writer_write(writer_, "y", 1), -error);
    EXPECT_EQ(bufio_async_writer_try_write(writer_, "y", 1), -error);
    EXPECT_EQ(bufio_async_writer_sync(writer_), -error);
    EXPECT_EQ(bufio_async_writer_queued(writer_), 4096u);
    EXPECT_EQ(bufio_async_writer_resume(writer_), -error);
    EXPECT_EQ(ReadFile(path_), "");
    write_error = 0;
    EXPECT_EQ(bufio_async_writer_resume(writer_), 0);
    EXPECT_EQ(bufio_async_writer_write(writer_, "more", 4), 0);
    EXPECT_EQ(Close(), 0);
    EXPECT_EQ(ReadFile(path_), "x" + rest + "more");
    num_blocked = 0;
  }
}

TEST_F(AsyncWriterTest, CloseReturnsTheStickyError) {
  Open();
  write_error = ENOSPC;
  EXPECT_EQ(bufio_async_writer_write(writer_, "hello", 5), 0);
  EXPECT_EQ(Close(), -ENOSPC);
}

TEST_F(AsyncWriterTest, FailedSyncIsFinal) {
  Open();
  EXPECT_EQ(bufio_async_writer_write(writer_, "hello", 5), 0);
  sync_fails = true;
  EXPECT_EQ(bufio_async_writer_sync(writer_), -EIO);
  sync_fails = false;
  EXPECT_EQ(bufio_async_writer_sync(writer_), -EIO);
  EXPECT_EQ(bufio_async_writer_resume(writer_), -EIO);
  EXPECT_EQ(Close(), -EIO);
  EXPECT_EQ(sync_calls, 1u);
}

TEST_F(AsyncWriterTest, FailedSyncIsToldToAllWhoSyncMeanwhile) {
  Open();
  EXPECT_EQ(bufio_async_writer_write(writer_, "hello", 5), 0);
  first_sync_fails = true;
  std::thread other([&] {
    while (sync_calls == 0) {
      std::this_thread::yield();
    }
    EXPECT_EQ(bufio_async_writer_sync(writer_), -EIO);
  });
  EXPECT_EQ(bufio_async_writer_sync(writer_), -EIO);
  other.join();
  EXPECT_EQ(Close(), -EIO);
  EXPECT_EQ(sync_calls, 1u);
}

TEST_F(AsyncWriterTest, ChildWritesNothingOfItsParents) {
  Open();
  Block();
  pid_t child = fork();
  if (child == 0) {
    bool good = bufio_async_writer_write(writer_, "child", 5) == -ECHILD &&
                bufio_async_writer_flush(writer_) == -ECHILD &&
                bufio_async_writer_close(writer_) == -ECHILD;
    _exit(good ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  write_blocks = false;
  EXPECT_EQ(Close(), 0);
  EXPECT_EQ(ReadFile(path_), "x");
}

}  // namespace
