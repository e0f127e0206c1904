// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Streams and threads: handing lanes on, fork, signals, and the order of what
// many threads write at once.

#include <errno.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "leakcheck/heaplog_test_util.h"
#include "leakcheck/heaplog_writer.h"

// The writer's inside, for injection of a kernel that does not wipe.
extern "C" {
#include "leakcheck/heaplog_system.h"
int heaplog_writer_open_on(const heaplog_system_t *system,
                           const heaplog_writer_options_t *options,
                           heaplog_writer_t **out_writer);
}

namespace {

using heaplog_test::kStartNs;
using heaplog_test::Log;
using heaplog_test::Options;
using heaplog_test::ReadFile;
using heaplog_test::ReadLog;
using heaplog_test::TempPath;

uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000000000u +
         static_cast<uint64_t>(now.tv_nsec);
}

class HeaplogLaneTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(heaplog_writer_open(&options_, &writer_), 0);
  }

  void TearDown() override {
    heaplog_writer_close(writer_);
    unlink(path_.c_str());
  }

  heaplog_stream_t *OpenStream(uint64_t time_ns = kStartNs) {
    heaplog_stream_t *stream = nullptr;
    EXPECT_EQ(heaplog_stream_open(writer_, time_ns, 1, "t", &stream), 0);
    return stream;
  }

  size_t ChunkCount() {
    return (ReadFile(path_).size() - 4096) / HEAPLOG_CHUNK_BYTES;
  }

  // Runs `body` in a forked child; returns its exit code.
  template <typename Body>
  int InChild(Body body) {
    pid_t child = fork();
    if (child == 0) {
      _exit(body());
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  std::string path_ = TempPath("lane.heaplog");
  heaplog_writer_options_t options_ = Options(path_);
  heaplog_writer_t *writer_ = nullptr;
};

TEST_F(HeaplogLaneTest, StreamWithoutEventsTakesNoSpace) {
  for (int i = 0; i < 1000; i++) {
    heaplog_stream_close(OpenStream(), kStartNs);
  }
  EXPECT_EQ(ChunkCount(), 0u);
  EXPECT_TRUE(ReadLog(path_).threads.empty());
}

TEST_F(HeaplogLaneTest, ShortThreadsShareChunks) {
  for (uint64_t i = 0; i < 10000; i++) {
    heaplog_stream_t *stream = OpenStream(kStartNs + i);
    ASSERT_TRUE(heaplog_append_free(stream, kStartNs + i, i, 0));
    heaplog_stream_close(stream, kStartNs + i);
  }
  Log log = ReadLog(path_);
  EXPECT_EQ(log.status, 0);
  EXPECT_LE(ChunkCount(), 6u);
  ASSERT_EQ(log.threads.size(), 10000u);
  ASSERT_EQ(log.events.size(), 10000u);
  for (uint64_t i = 0; i < 10000; i++) {
    ASSERT_EQ(log.events[i].address, i);
    ASSERT_EQ(log.events[i].thread_index, i);
    ASSERT_EQ(log.threads[i].start_time_ns, i);
    ASSERT_EQ(log.threads[i].end_time_ns, i);
  }
}

TEST_F(HeaplogLaneTest, ThousandStreamsAtOnceAndAgain) {
  std::vector<heaplog_stream_t *> streams;
  for (uint64_t round = 0; round < 3; round++) {
    for (uint64_t i = 0; i < 1000; i++) {
      streams.push_back(OpenStream());
      ASSERT_TRUE(heaplog_append_free(streams.back(), kStartNs + i, i, 0));
    }
    for (heaplog_stream_t *stream : streams) {
      heaplog_stream_close(stream, kStartNs);
    }
    streams.clear();
  }
  EXPECT_EQ(ChunkCount(), 1000u);
  Log log = ReadLog(path_);
  EXPECT_EQ(log.status, 0);
  EXPECT_EQ(log.events.size(), 3000u);
  EXPECT_EQ(log.threads.size(), 3000u);
}

TEST_F(HeaplogLaneTest, StreamsBeyondTheLimitAreRefused) {
  std::vector<heaplog_stream_t *> streams(HEAPLOG_LANES_MAX);
  for (heaplog_stream_t *&stream : streams) {
    stream = OpenStream();
    ASSERT_NE(stream, nullptr);
  }
  heaplog_stream_t *more = nullptr;
  EXPECT_EQ(heaplog_stream_open(writer_, kStartNs, 1, "t", &more), -EAGAIN);
  ASSERT_TRUE(heaplog_append_free(streams.back(), kStartNs, 16, 0));
  heaplog_stream_close(streams[5], kStartNs);
  EXPECT_EQ(heaplog_stream_open(writer_, kStartNs, 1, "t", &more), 0);
  EXPECT_EQ(more, streams[5]);
  EXPECT_EQ(ReadLog(path_).events.size(), 1u);
}

// Equal times: frees before maps before allocations, then by lane; in a lane
// as written.
TEST_F(HeaplogLaneTest, TiesAreOrderedByKindThenLane) {
  heaplog_stream_t *a = OpenStream();
  heaplog_stream_t *b = OpenStream();
  heaplog_stream_t *c = OpenStream();
  uint64_t t = kStartNs + 10;
  ASSERT_TRUE(heaplog_append_alloc(a, t, 1, 0, 0, 0));
  ASSERT_TRUE(heaplog_append_free(a, t, 2, 0));
  ASSERT_TRUE(heaplog_append_map(b, t, 3, 1));
  ASSERT_TRUE(heaplog_append_alloc(b, t, 4, 0, 0, 0));
  ASSERT_TRUE(heaplog_append_unmap(c, t, 5, 1));
  ASSERT_TRUE(heaplog_append_resize(c, t, 6, 0, 0, 0));
  ASSERT_TRUE(heaplog_append_sample(c, t, 7));
  Log log = ReadLog(path_);
  std::vector<uint64_t> order;
  for (const heaplog_event_t &event : log.events) {
    order.push_back(event.address + (event.kind == HEAPLOG_SAMPLE ? 7 : 0));
  }
  EXPECT_EQ(order, (std::vector<uint64_t>{5, 3, 6, 1, 2, 4, 7}));
}

TEST_F(HeaplogLaneTest, ChildCannotWriteEvenWithoutForget) {
  heaplog_stream_t *stream = OpenStream();
  ASSERT_TRUE(heaplog_append_free(stream, kStartNs, 1, 0));
  std::string before = ReadFile(path_);
  EXPECT_EQ(InChild([&] {
              heaplog_stream_t *other = nullptr;
              bool appended = heaplog_append_free(stream, kStartNs, 2, 0) ||
                              heaplog_append_stack(stream, 1, 0, 5) ||
                              heaplog_append_lost(stream, kStartNs, 5) ||
                              heaplog_append_alloc(stream, 9, 8, 9, 8, 1);
              heaplog_stream_close(stream, kStartNs);
              int status =
                  heaplog_stream_open(writer_, kStartNs, 1, "", &other);
              return appended || status != -ESTALE ||
                     heaplog_writer_lost_count(writer_) != 0;
            }),
            0);
  EXPECT_EQ(ReadFile(path_), before);
  ASSERT_TRUE(heaplog_append_free(stream, kStartNs, 3, 0));
  EXPECT_EQ(ReadLog(path_).events.size(), 2u);
}

// A kernel before 4.14: forget() alone has to do it.
TEST_F(HeaplogLaneTest, ForgetWorksWhereTheKernelDoesNotWipe) {
  static heaplog_system_t old_kernel;
  old_kernel = heaplog_system_kernel;
  old_kernel.advise = [](void *, size_t, int) {
    return -EINVAL;
  };
  std::string path = TempPath("old.heaplog");
  heaplog_writer_options_t options = Options(path);
  heaplog_writer_t *writer = nullptr;
  ASSERT_EQ(heaplog_writer_open_on(&old_kernel, &options, &writer), 0);
  heaplog_stream_t *stream = nullptr;
  ASSERT_EQ(heaplog_stream_open(writer, kStartNs, 1, "t", &stream), 0);
  for (int i = 0; i < 30000; i++) {
    ASSERT_TRUE(heaplog_append_free(stream, kStartNs, i * 1000, 0));
  }
  std::string before = ReadFile(path);
  EXPECT_EQ(InChild([&] {
              heaplog_writer_forget(writer);
              heaplog_writer_forget(writer);
              heaplog_stream_t *other = nullptr;
              bool appended = heaplog_append_free(stream, kStartNs, 2, 0);
              heaplog_stream_close(stream, kStartNs);
              int status = heaplog_stream_open(writer, kStartNs, 1, "", &other);
              heaplog_writer_close(writer);
              return appended || status != -ESTALE;
            }),
            0);
  EXPECT_EQ(ReadFile(path), before);
  EXPECT_TRUE(heaplog_append_free(stream, kStartNs, 2, 0));
  heaplog_writer_close(writer);
  EXPECT_EQ(ReadLog(path).events.size(), 30001u);
  unlink(path.c_str());
}

TEST_F(HeaplogLaneTest, ChildUnmapsAndClosesWhatItForgets) {
  heaplog_stream_t *a = OpenStream();
  heaplog_stream_t *b = OpenStream();
  ASSERT_TRUE(heaplog_append_free(a, kStartNs, 1, 0));
  ASSERT_TRUE(heaplog_append_free(b, kStartNs, 1, 0));
  EXPECT_EQ(InChild([&] {
              heaplog_writer_forget(writer_);
              std::string name = "lane.heaplog";
              int found =
                  ReadFile("/proc/self/maps").find(name) != std::string::npos;
              for (int fd = 0; fd < 2000; fd++) {
                char target[4096] = "";
                std::string link = "/proc/self/fd/" + std::to_string(fd);
                if (readlink(link.c_str(), target, sizeof(target) - 1) > 0 &&
                    std::string(target).find(name) != std::string::npos) {
                  found += 2;
                }
              }
              return found;
            }),
            0);
}

TEST_F(HeaplogLaneTest, ChildMayWriteItsOwnLog) {
  heaplog_stream_t *stream = OpenStream();
  ASSERT_TRUE(heaplog_append_free(stream, kStartNs, 1, 0));
  std::string child_path = TempPath("child.heaplog");
  heaplog_writer_options_t child_options = Options(child_path);
  EXPECT_EQ(InChild([&] {
              heaplog_writer_forget(writer_);
              heaplog_writer_t *writer = nullptr;
              heaplog_stream_t *own = nullptr;
              return heaplog_writer_open(&child_options, &writer) != 0 ||
                     heaplog_stream_open(writer, kStartNs, 1, "", &own) != 0 ||
                     !heaplog_append_free(own, kStartNs, 2, 0) ||
                     !heaplog_append_free(own, kStartNs, 3, 0);
            }),
            0);
  EXPECT_EQ(ReadLog(child_path).events.size(), 2u);
  EXPECT_EQ(ReadLog(path_).events.size(), 1u);
  unlink(child_path.c_str());
}

heaplog_stream_t *signal_stream;
std::atomic<uint64_t> signal_appended;
std::atomic<uint64_t> signal_refused;

// Timer signals that interrupt appends at random instructions and append too.
TEST_F(HeaplogLaneTest, SignalHandlersCannotTearRecords) {
  signal_stream = OpenStream();
  signal_appended = 0;
  signal_refused = 0;
  struct sigaction action = {};
  struct sigaction old_action = {};
  action.sa_handler = [](int) {
    if (heaplog_append_map(signal_stream, 0, 0x5000, 0x1000)) {
      signal_appended++;
    } else {
      signal_refused++;
    }
  };
  ASSERT_EQ(sigaction(SIGVTALRM, &action, &old_action), 0);
  itimerval interval = {{0, 100}, {0, 100}};
  ASSERT_EQ(setitimer(ITIMER_VIRTUAL, &interval, nullptr), 0);
  uint64_t appended = 0;
  uint64_t calls = 0;
  // Until signals have come in both places, or many calls have been made: the
  // kernel's timer may be too coarse to hit an append.
  while (calls < 3000000 && (signal_refused < 3 || signal_appended < 3)) {
    for (int i = 0; i < 10000; i++, calls++) {
      appended += heaplog_append_alloc(signal_stream, kStartNs + calls, calls,
                                       calls, calls, calls % 100);
    }
  }
  itimerval stop = {};
  ASSERT_EQ(setitimer(ITIMER_VIRTUAL, &stop, nullptr), 0);
  ASSERT_EQ(sigaction(SIGVTALRM, &old_action, nullptr), 0);
  EXPECT_EQ(appended, calls);
  heaplog_stream_close(signal_stream, kStartNs);
  Log log = ReadLog(path_);
  EXPECT_EQ(log.status, 0);
  EXPECT_EQ(heaplog_writer_lost_count(writer_), signal_refused);
  std::map<uint32_t, uint64_t> kinds;
  uint64_t lost = 0;
  for (const heaplog_event_t &event : log.events) {
    kinds[event.kind]++;
    lost += event.kind == HEAPLOG_LOST ? event.size_bytes : 0;
  }
  EXPECT_EQ(kinds[HEAPLOG_ALLOC], appended);
  EXPECT_EQ(kinds[HEAPLOG_MAP], signal_appended);
  EXPECT_EQ(lost, signal_refused);
}

// Threads pass blocks to each other through a pool. Whatever the interleaving,
// the merged log must show each block allocated and freed by turns.
TEST_F(HeaplogLaneTest, MergedOrderIsCausal) {
  constexpr int kThreads = 4;
  constexpr int kRounds = 6;
  constexpr uint64_t kEvents = 5000;
  options_.start_monotonic_ns = NowNs();
  heaplog_writer_close(writer_);
  ASSERT_EQ(heaplog_writer_open(&options_, &writer_), 0);
  std::mutex mutex;
  std::vector<uint64_t> pool;  // Guarded by mutex.
  for (uint64_t block = 1; block <= 20; block++) {
    pool.push_back(block * 64);
  }
  auto work = [&](uint64_t seed) {
    std::mt19937_64 random(seed);
    heaplog_stream_t *stream = nullptr;
    ASSERT_EQ(heaplog_stream_open(writer_, NowNs(), seed, "w", &stream), 0);
    std::vector<uint64_t> mine;
    for (uint64_t i = 0; i < kEvents || !mine.empty(); i++) {
      uint64_t block = 0;
      if (i < kEvents && random() % 2 == 0) {
        std::lock_guard<std::mutex> lock(mutex);
        if (!pool.empty()) {
          block = pool.back();
          pool.pop_back();
        }
      }
      if (block != 0) {
        ASSERT_TRUE(
            heaplog_append_alloc(stream, NowNs(), block, 40, 64, 1 + i % 50));
        mine.push_back(block);
      } else if (!mine.empty()) {
        block = mine.back();
        mine.pop_back();
        ASSERT_TRUE(heaplog_append_free(stream, NowNs(), block, 0));
        std::lock_guard<std::mutex> lock(mutex);
        pool.push_back(block);
      }
    }
    heaplog_stream_close(stream, NowNs());
  };
  for (int round = 0; round < kRounds; round++) {
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; i++) {
      threads.emplace_back(work, round * kThreads + i);
    }
    for (std::thread &thread : threads) {
      thread.join();
    }
  }
  EXPECT_EQ(heaplog_writer_lost_count(writer_), 0u);
  Log log = ReadLog(path_);
  EXPECT_EQ(log.status, 0);
  // A thread that found the pool empty has written nothing.
  EXPECT_LE(log.threads.size(), size_t{kThreads * kRounds});
  EXPECT_GT(log.events.size(), kEvents);
  std::map<uint64_t, bool> live;
  for (const heaplog_event_t &event : log.events) {
    ASSERT_NE(live[event.address], event.kind == HEAPLOG_ALLOC)
        << heaplog_test::ToString(event);
    live[event.address] = event.kind == HEAPLOG_ALLOC;
  }
}

// Streams opened and closed by many threads at once: each thread's events come
// back whole and in order, under the right thread.
TEST_F(HeaplogLaneTest, StreamsComeAndGoInManyThreads) {
  constexpr int kThreads = 4;
  constexpr uint64_t kStreams = 300;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kThreads; t++) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (uint64_t s = 0; s < kStreams; s++) {
        uint64_t tid = t * kStreams + s;
        heaplog_stream_t *stream = nullptr;
        ASSERT_EQ(heaplog_stream_open(writer_, kStartNs, tid, "x", &stream), 0);
        uint64_t count = random() % 200;
        for (uint64_t i = 0; i <= count; i++) {
          // The last has the count.
          ASSERT_TRUE(heaplog_append_map(stream, kStartNs + s, tid,
                                         i == count ? count + 1000000 : i));
        }
        heaplog_stream_close(stream, kStartNs + s);
      }
    });
  }
  for (std::thread &thread : threads) {
    thread.join();
  }
  Log log = ReadLog(path_);
  EXPECT_EQ(log.status, 0);
  ASSERT_EQ(log.threads.size(), kThreads * kStreams);
  std::vector<uint64_t> next(log.threads.size());
  for (const heaplog_event_t &event : log.events) {
    ASSERT_EQ(event.address, log.threads[event.thread_index].tid);
    uint64_t &expected = next[event.thread_index];
    if (event.size_bytes >= 1000000) {
      ASSERT_EQ(event.size_bytes, expected + 1000000);
    } else {
      ASSERT_EQ(event.size_bytes, expected);
    }
    expected++;
  }
}

}  // namespace
