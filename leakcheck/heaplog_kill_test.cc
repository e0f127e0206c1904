// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// SIGKILL at any instruction: what was appended is in the log, and the log is
// whole.

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_test_util.h"
#include "leakcheck/heaplog_writer.h"

namespace {

using heaplog_test::kStartNs;
using heaplog_test::Log;
using heaplog_test::Options;
using heaplog_test::ReadLog;
using heaplog_test::TempPath;

constexpr int kThreads = 3;

// Seen by the parent while the child runs, and after it.
struct Progress {
  std::atomic<uint64_t> appended[kThreads];
};

heaplog_event_t Generated(uint64_t thread, uint64_t i) {
  uint64_t hash = (i * kThreads + thread + 1) * 0x9e3779b97f4a7c15u;
  heaplog_event_t event = {};
  event.address = hash >> 20;
  event.kind = HEAPLOG_FREE;
  if (hash % 2 == 0) {
    event.kind = HEAPLOG_ALLOC;
    event.size_bytes = hash >> 50;
    event.usable_bytes = event.size_bytes + hash % 16;
  }
  return event;
}

void WriteUntilKilled(heaplog_writer_t *writer, uint64_t thread,
                      Progress *progress) {
  heaplog_stream_t *stream = nullptr;
  if (heaplog_stream_open(writer, kStartNs, thread, "t", &stream) != 0) {
    _exit(1);
  }
  for (uint64_t i = 0;; i++) {
    heaplog_event_t event = Generated(thread, i);
    bool appended =
        event.kind == HEAPLOG_ALLOC
            ? heaplog_append_alloc(stream, kStartNs + i, event.address,
                                   event.size_bytes, event.usable_bytes, 0)
            : heaplog_append_free(stream, kStartNs + i, event.address, 0);
    if (!appended) {
      _exit(2);
    }
    progress->appended[thread].store(i + 1, std::memory_order_release);
  }
}

// A child that writes; returns its pid.
pid_t StartWriter(const std::string &path, Progress *progress) {
  heaplog_writer_options_t options = Options(path);
  pid_t child = fork();
  if (child != 0) {
    return child;
  }
  heaplog_writer_t *writer = nullptr;
  if (heaplog_writer_open(&options, &writer) != 0) {
    _exit(3);
  }
  std::vector<std::thread> threads;
  for (uint64_t thread = 1; thread < kThreads; thread++) {
    threads.emplace_back(WriteUntilKilled, writer, thread, progress);
  }
  WriteUntilKilled(writer, 0, progress);
  _exit(4);
}

TEST(HeaplogKillTest, EverythingAppendedIsReadBack) {
  std::random_device device;
  const uint64_t seed = device();
  std::mt19937_64 random(seed);
  SCOPED_TRACE("seed " + std::to_string(seed));
  void *memory = mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto *progress = static_cast<Progress *>(memory);
  for (int round = 0; round < 40; round++) {
    std::string path = TempPath("kill.heaplog");
    for (std::atomic<uint64_t> &appended : progress->appended) {
      appended = 0;
    }
    // From the first events to some chunks, in a thread taken by lot.
    uint64_t target = random() % (uint64_t{1} << (random() % 16));
    uint64_t watched = random() % kThreads;
    uint64_t spins = random() % 3000;
    pid_t child = StartWriter(path, progress);
    ASSERT_GT(child, 0);
    while (progress->appended[watched].load(std::memory_order_acquire) <
           target) {
      ASSERT_EQ(waitpid(child, nullptr, WNOHANG), 0) << "the writer gave up";
      std::this_thread::yield();
    }
    // On to an instruction nobody chose.
    for (std::atomic<uint64_t> spin = 0; spin < spins; spin++) {
    }
    ASSERT_EQ(kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << status;
    if (access(path.c_str(), F_OK) != 0) {
      continue;  // Killed before it opened its log.
    }
    Log log = ReadLog(path);
    if (log.error.code == HEAPLOG_ERROR_NOT_A_LOG) {
      // Killed before it wrote the header.
      for (std::atomic<uint64_t> &appended : progress->appended) {
        ASSERT_EQ(appended, 0u);
      }
      continue;
    }
    ASSERT_EQ(log.open_status, 0) << log.error.text;
    ASSERT_EQ(log.status, 0) << log.error.text;
    EXPECT_FALSE(log.info.clean_end);
    EXPECT_EQ(log.info.lost_count, 0u);
    uint64_t read[kThreads] = {};
    for (const heaplog_event_t &event : log.events) {
      uint64_t thread = log.threads[event.thread_index].tid;
      heaplog_event_t expected = Generated(thread, read[thread]++);
      ASSERT_EQ(event.address, expected.address);
      ASSERT_EQ(event.kind, expected.kind);
      ASSERT_EQ(event.size_bytes, expected.size_bytes);
      ASSERT_EQ(event.usable_bytes, expected.usable_bytes);
    }
    for (uint64_t thread = 0; thread < kThreads; thread++) {
      ASSERT_GE(read[thread], progress->appended[thread]);
      ASSERT_LE(read[thread], progress->appended[thread] + 1);
    }
    unlink(path.c_str());
  }
  munmap(memory, sizeof(Progress));
}

}  // namespace
