// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How long the end of a process waits for writers of level `exit`.

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>

#include "bufio/bufio_testing.h"
#include "bufio/exit_testing.h"
#include "bufio/io_system.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Accept;
using bufio_testing::AttachInChild;
using bufio_testing::ExitTest;
using bufio_testing::ExpectKilledBy;
using bufio_testing::MakeFullPipe;
using bufio_testing::OpenInChild;
using bufio_testing::ReadFile;
using bufio_testing::ReadToEnd;
using bufio_testing::RunChild;
using bufio_testing::StartChild;
using bufio_testing::StatusOf;
using bufio_testing::TempPath;

// Milliseconds that were waited, in place of waiting. NULL: time is what it is.
std::atomic<int64_t> *waited_ms = nullptr;
// Waits are real, and the clock stands still meanwhile.
bool waits_really = false;
// Called after each round of a wait.
void (*on_round)(int64_t waited) = nullptr;

void Wait(int64_t ms) {
  int64_t waited = *waited_ms += ms;
  if (on_round != nullptr) {
    on_round(waited);
  }
}

}  // namespace

// In place of libc's.
extern "C" int poll(struct pollfd *requests, nfds_t count, int timeout_ms) {
  static auto *const next =
      reinterpret_cast<decltype(&poll)>(dlsym(RTLD_NEXT, "poll"));
  if (waited_ms != nullptr && !waits_really && timeout_ms > 0) {
    Wait(timeout_ms);
    return 0;
  }
  return next(requests, count, timeout_ms);
}

extern "C" int nanosleep(const struct timespec *wanted, struct timespec *left) {
  static auto *const next =
      reinterpret_cast<decltype(&nanosleep)>(dlsym(RTLD_NEXT, "nanosleep"));
  if (waited_ms != nullptr && !waits_really) {
    Wait(wanted->tv_sec * 1000 + wanted->tv_nsec / 1000000);
    return sched_yield();
  }
  return next(wanted, left);
}

extern "C" int clock_gettime(clockid_t clock, struct timespec *now) noexcept {
  static auto *const next = reinterpret_cast<decltype(&clock_gettime)>(
      dlsym(RTLD_NEXT, "clock_gettime"));
  if (waited_ms != nullptr) {
    int64_t ms = *waited_ms;
    *now = {static_cast<time_t>(ms / 1000),
            static_cast<long>(ms % 1000 * 1000000)};
    return 0;
  }
  return next(clock, now);
}

namespace {

class ExitWaitTest : public ExitTest {};

// ---- threads that are in the middle of a write ----

std::atomic<int> num_stuck{0};
std::atomic<bool> may_write{false};

int64_t WriteWhenTold(int descriptor, const void *bytes, size_t len) {
  num_stuck++;
  while (!may_write) {
    sched_yield();
  }
  return bufio_system_kernel.write(descriptor, bytes, len);
}

// In a child: from now on writes to files wait until they may go on.
void StopWrites() {
  static bufio_system_t table;
  table = bufio_system_kernel;
  table.write = WriteWhenTold;
  bufio_system = &table;
}

// A writer, and a thread that is in the middle of a write of it.
void StartStuckWriter(const std::string &path, const std::string &bytes,
                      int serial) {
  auto *writer = new bufio_writer_t;
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_EXIT;
  if (bufio_writer_open(writer, path.c_str(), &options) != 0 ||
      bufio_writer_write(writer, bytes.data(), bytes.size()) != 0) {
    _exit(100);
  }
  std::thread([writer] { (void)bufio_writer_flush(writer); }).detach();
  while (num_stuck < serial) {
    sched_yield();
  }
}

// Where a child counts the time that it waited; its parent looks.
class SharedClock {
 public:
  SharedClock() {
    void *memory = mmap(nullptr, sizeof(*ms_), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(memory, MAP_FAILED);
    ms_ = new (memory) std::atomic<int64_t>{0};
  }
  ~SharedClock() {
    munmap(ms_, sizeof(*ms_));
  }
  SharedClock(const SharedClock &) = delete;
  SharedClock &operator=(const SharedClock &) = delete;

  std::atomic<int64_t> *ms() const {
    return ms_;
  }

 private:
  std::atomic<int64_t> *ms_;
};

TEST_F(ExitWaitTest, FatalSignalWaitsForASecondInAll) {
  const std::string stuck[] = {TempPath("a"), TempPath("b"), TempPath("c")};
  int ends[2];
  MakeFullPipe(0, ends);
  SharedClock clock;
  pid_t child = StartChild([&] {
    StopWrites();
    for (int i = 0; i < 3; i++) {
      StartStuckWriter(stuck[i], "stuck", i + 1);
    }
    bufio_system = &bufio_system_kernel;
    static bufio_writer_t pipe_writer;
    bufio_writer_options_t options = {};
    options.durability = BUFIO_DURABILITY_EXIT;
    if (bufio_writer_attach(&pipe_writer, ends[1], &options) != 0 ||
        bufio_writer_puts(&pipe_writer, "waits") != 0) {
      _exit(100);
    }
    OpenInChild(path_, BUFIO_DURABILITY_EXIT);
    Accept("committed");
    waited_ms = clock.ms();
    raise(SIGTERM);
  });
  ExpectKilledBy(StatusOf(child), SIGTERM);
  EXPECT_GE(*clock.ms(), 1000);
  EXPECT_LE(*clock.ms(), 1001);
  // There is no time left for this one, but it does not need any.
  EXPECT_EQ(ReadFile(path_), "committed");
  close(ends[0]);
  close(ends[1]);
  for (const std::string &path : stuck) {
    unlink(path.c_str());
  }
}

TEST_F(ExitWaitTest, FatalSignalWaitsForAReaderForASecond) {
  int ends[2];
  MakeFullPipe(0, ends);
  SharedClock clock;
  pid_t child = StartChild([&] {
    AttachInChild(ends[1]);
    Accept("committed");
    waited_ms = clock.ms();
    raise(SIGTERM);
  });
  ExpectKilledBy(StatusOf(child), SIGTERM);
  EXPECT_EQ(*clock.ms(), 1000);
  close(ends[0]);
  close(ends[1]);
}

TEST_F(ExitWaitTest, ExitWaitsForAThreadThatWritesAsLongAsItTakes) {
  for (bool is_quick : {false, true}) {
    SharedClock clock;
    may_write = false;
    num_stuck = 0;
    pid_t child = StartChild([&] {
      StopWrites();
      StartStuckWriter(path_, "committed", 1);
      on_round = [](int64_t waited) {
        may_write = may_write || waited > 5000;
      };
      waited_ms = clock.ms();
      is_quick ? quick_exit(7) : exit(7);
    });
    EXPECT_EQ(WEXITSTATUS(StatusOf(child)), 7);
    EXPECT_GT(*clock.ms(), 5000);
    EXPECT_EQ(ReadFile(path_), "committed");
  }
}

TEST_F(ExitWaitTest, FlushAllGivesUpAfterASecondInAll) {
  int ends[2];
  MakeFullPipe(SOCK_STREAM, ends);
  bufio_writer_t writers[3];
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_EXIT;
  for (bufio_writer_t &writer : writers) {
    ASSERT_EQ(bufio_writer_attach(&writer, ends[1], &options), 0);
    ASSERT_EQ(bufio_writer_puts(&writer, "text"), 0);
  }
  std::atomic<int64_t> waited{0};
  waited_ms = &waited;
  EXPECT_EQ(bufio_exit_flush_all(), -ETIMEDOUT);
  EXPECT_EQ(waited, 1000);
  std::thread reader([&] {
    std::string got = ReadToEnd(ends[0]);
    EXPECT_EQ(got.substr(got.size() - 12), "texttexttext");
  });
  // However slow the reader is.
  waits_really = true;
  EXPECT_EQ(bufio_exit_flush_all(), 0);
  waits_really = false;
  waited_ms = nullptr;
  for (bufio_writer_t &writer : writers) {
    EXPECT_EQ(bufio_writer_close(&writer), 0);
  }
  close(ends[1]);
  reader.join();
  close(ends[0]);
}

TEST_F(ExitWaitTest, FlushAllGivesUpOnAThreadThatWrites) {
  SharedClock clock;
  int status = RunChild([&] {
    may_write = false;
    num_stuck = 0;
    StopWrites();
    StartStuckWriter(path_, "committed", 1);
    waited_ms = clock.ms();
    _exit(bufio_exit_flush_all() == -ETIMEDOUT ? 0 : 1);
  });
  EXPECT_EQ(status, 0);
  EXPECT_EQ(*clock.ms(), 1000);
}

}  // namespace
