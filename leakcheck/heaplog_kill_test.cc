// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// SIGKILL at any instruction: what was appended is in the log, and the log is
// whole.

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_reader.h"
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

// The events of the next test: all of one size, more or less.
bool AppendStepped(heaplog_stream_t *stream, uint64_t i) {
  return heaplog_append_map(stream, kStartNs + i, i + 1, 1000000 + i);
}

// How many of them fill a chunk.
uint64_t EventsOfAChunk() {
  std::string path = TempPath("dry.heaplog");
  heaplog_writer_options_t options = Options(path);
  heaplog_writer_t *writer = nullptr;
  heaplog_stream_t *stream = nullptr;
  EXPECT_EQ(heaplog_writer_open(&options, &writer), 0);
  EXPECT_EQ(heaplog_stream_open(writer, kStartNs, 1, "t", &stream), 0);
  struct stat stat = {};
  uint64_t i = 0;
  do {
    EXPECT_TRUE(AppendStepped(stream, i++));
    EXPECT_EQ(::stat(path.c_str(), &stat), 0);
  } while (stat.st_size <= 4096 + HEAPLOG_CHUNK_BYTES);
  heaplog_writer_close(writer);
  unlink(path.c_str());
  return i - 1;
}

// Appends `filled` events at full speed, stops itself, and goes on: over the
// end of a chunk, to the end of the thread, and with another thread.
[[noreturn]] void WriteStepped(const heaplog_writer_options_t &options,
                               uint64_t filled, Progress *progress) {
  heaplog_writer_t *writer = nullptr;
  heaplog_stream_t *stream = nullptr;
  uint64_t i = 0;
  auto append = [&](uint64_t end) {
    for (; i < end; i++) {
      if (!AppendStepped(stream, i)) {
        _exit(1);
      }
      progress->appended[0].store(i + 1, std::memory_order_release);
    }
  };
  ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
  if (filled == 0) {
    raise(SIGSTOP);
  }
  if (heaplog_writer_open(&options, &writer) != 0 ||
      heaplog_stream_open(writer, kStartNs, 1, "t", &stream) != 0) {
    _exit(2);
  }
  append(filled);
  if (filled != 0) {
    raise(SIGSTOP);
  }
  append(filled + 6);
  heaplog_stream_close(stream, kStartNs);
  if (heaplog_stream_open(writer, kStartNs, 2, "u", &stream) != 0) {
    _exit(3);
  }
  append(filled + 8);
  _exit(0);
}

// What a child leaves if it is killed at the instruction it has come to.
void ExpectWhole(const std::string &path, const Progress &progress) {
  uint64_t appended = progress.appended[0].load(std::memory_order_acquire);
  heaplog_reader_t *reader = nullptr;
  heaplog_error_t error;
  if (heaplog_reader_open(path.c_str(), &reader, &error) != 0) {
    // Not before its header is written.
    ASSERT_EQ(appended, 0u) << error.text;
    ASSERT_TRUE(error.status == -ENOENT ||
                error.code == HEAPLOG_ERROR_NOT_A_LOG)
        << error.text;
    return;
  }
  uint64_t count = 0;
  heaplog_event_t event;
  while (heaplog_reader_next(reader, &event)) {
    EXPECT_EQ(event.address, count + 1);
    EXPECT_EQ(event.size_bytes, 1000000 + count);
    count++;
  }
  EXPECT_EQ(heaplog_reader_status(reader, &error), 0) << error.text;
  EXPECT_GE(count, appended);
  EXPECT_LE(count, appended + 1);
  heaplog_reader_close(reader);
}

// Reads a file that may not exist, and says whether it is as it was last time.
class Watch {
 public:
  explicit Watch(const std::string &path) : path_(path) {
  }

  bool HasChanged() {
    int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    ssize_t count = fd < 0 ? -1 : read(fd, &now_[0], now_.size());
    close(fd);
    bool changed = count != last_count_ ||
                   (count > 0 && memcmp(&now_[0], &last_[0],
                                        static_cast<size_t>(count)) != 0);
    now_.swap(last_);
    last_count_ = count;
    return changed;
  }

 private:
  std::string path_;
  std::string now_ = std::string(4096 + 3 * HEAPLOG_CHUNK_BYTES, '\0');
  std::string last_ = now_;
  ssize_t last_count_ = -2;
};

// Instruction by instruction, rather than by chance.
TEST(HeaplogKillTest, LogIsWholeAfterEveryInstruction) {
  void *memory = mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  auto *progress = static_cast<Progress *>(memory);
  for (uint64_t filled : {uint64_t{0}, EventsOfAChunk() - 3}) {
    std::string path = TempPath("stepped.heaplog");
    heaplog_writer_options_t options = Options(path);
    progress->appended[0] = 0;
    pid_t child = fork();
    if (child == 0) {
      WriteStepped(options, filled, progress);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSTOPPED(status)) << status;
    uint64_t steps = 0;
    uint64_t changes = 0;
    Watch watch(path);
    uint64_t appended = 0;
    while (WIFSTOPPED(status) && !HasFailure()) {
      // Most instructions leave the file as it was.
      if (watch.HasChanged() || progress->appended[0] != appended) {
        ExpectWhole(path, *progress);
        appended = progress->appended[0];
        changes++;
      }
      steps++;
      ASSERT_EQ(ptrace(PTRACE_SINGLESTEP, child, nullptr, nullptr), 0);
      ASSERT_EQ(waitpid(child, &status, 0), child);
    }
    kill(child, SIGKILL);
    EXPECT_TRUE(WIFEXITED(status)) << steps;
    EXPECT_EQ(WEXITSTATUS(status), 0);
    EXPECT_EQ(progress->appended[0], filled + 8);
    EXPECT_GT(steps, 1000u);
    EXPECT_GT(changes, 50u);
    printf("%" PRIu64 " instructions, %" PRIu64 " states of the file\n", steps,
           changes);
    unlink(path.c_str());
  }
  munmap(memory, sizeof(Progress));
}

}  // namespace
