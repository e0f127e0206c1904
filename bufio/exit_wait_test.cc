// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How long writers of level `exit` wait for readers and for each other, and
// that whoever waits can be killed or cancelled.

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "bufio/bufio_testing.h"
#include "bufio/exit_testing.h"
#include "bufio/io_system.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Accept;
using bufio_testing::AttachInChild;
using bufio_testing::child_writer;
using bufio_testing::ExitTest;
using bufio_testing::ExpectKillable;
using bufio_testing::ExpectKilledBy;
using bufio_testing::IsCancelledAt;
using bufio_testing::OpenInChild;
using bufio_testing::Pattern;
using bufio_testing::ReadFile;
using bufio_testing::RunChild;
using bufio_testing::Sign;
using bufio_testing::StartChild;
using bufio_testing::StatusOf;
using bufio_testing::TempPath;
using bufio_testing::Terminal;

// Given when somebody waits for a reader without a bound; and what poll says
// then: that there is room although another writer was faster.
const Sign *sign_of_wait = nullptr;
bool poll_lies = false;

// Milliseconds that were waited, in place of waiting. NULL: time is what it is.
std::atomic<int64_t> *waited_ms = nullptr;
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
  if (sign_of_wait != nullptr && timeout_ms < 0) {
    sign_of_wait->Give();
    sign_of_wait = nullptr;
    if (poll_lies) {
      return 1;
    }
  }
  if (waited_ms != nullptr && timeout_ms > 0) {
    Wait(timeout_ms);
    return 0;
  }
  return next(requests, count, timeout_ms);
}

extern "C" int nanosleep(const struct timespec *wanted, struct timespec *left) {
  static auto *const next =
      reinterpret_cast<decltype(&nanosleep)>(dlsym(RTLD_NEXT, "nanosleep"));
  if (waited_ms != nullptr) {
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

TEST_F(ExitWaitTest, WriterThatBlocksOnAFullPipeCanBeKilled) {
  for (int flags : {0, O_NONBLOCK}) {
    int ends[2];
    ASSERT_EQ(pipe2(ends, flags), 0);
    pid_t child = StartChild([&] {
      AttachInChild(ends[1], flags != 0);
      std::string bytes(100000, 'x');
      for (int i = 0; i < 3; i++) {
        (void)bufio_writer_write(&child_writer, bytes.data(), bytes.size());
      }
      pause();
    });
    // Until the pipe is full.
    int filled = 0;
    while (filled < 65536) {
      ASSERT_EQ(ioctl(ends[0], FIONREAD, &filled), 0);
      ASSERT_EQ(waitpid(child, nullptr, WNOHANG), 0);
    }
    ExpectKillable(child);
    close(ends[0]);
    close(ends[1]);
  }
}

void Fill(int descriptor) {
  int flags = fcntl(descriptor, F_GETFL);
  ASSERT_EQ(fcntl(descriptor, F_SETFL, flags | O_NONBLOCK), 0);
  char bytes[512] = {};
  while (write(descriptor, bytes, sizeof(bytes)) > 0) {
  }
  ASSERT_EQ(errno, EAGAIN);
  ASSERT_EQ(fcntl(descriptor, F_SETFL, flags), 0);
}

// Full, so that a write to it waits; the ends of it.
void MakeFullPipe(int type, int ends[2]) {
  ASSERT_EQ(type == 0 ? pipe(ends) : socketpair(AF_UNIX, type, 0, ends), 0);
  Fill(ends[1]);
}

// Whether the kernel can be asked not to wait. Not for pipes before Linux 6.5.
bool CanWriteWithoutWaiting(int full_pipe) {
  char byte = 0;
  iovec part = {&byte, 1};
  EXPECT_LT(pwritev2(full_pipe, &part, 1, -1, RWF_NOWAIT), 0);
  return errno == EAGAIN;
}

std::string ReadToEnd(int descriptor) {
  std::string got;
  char piece[1000];
  ssize_t count;
  while ((count = read(descriptor, piece, sizeof(piece))) > 0) {
    got.append(piece, static_cast<size_t>(count));
  }
  return got;
}

// The state of a process, as ps(1) shows it.
char StateOf(pid_t process) {
  std::string stat = ReadFile("/proc/" + std::to_string(process) + "/stat");
  return stat[stat.rfind(')') + 2];
}

TEST_F(ExitWaitTest, ExitThatWaitsForAReaderCanBeKilled) {
  for (int type : {0, int{SOCK_STREAM}, int{SOCK_DGRAM}}) {
    int ends[2];
    Sign waiting;
    MakeFullPipe(type, ends);
    pid_t child = StartChild([&] {
      AttachInChild(ends[1]);
      Accept("committed");
      sign_of_wait = &waiting;
      exit(0);
    });
    waiting.Await();
    ExpectKillable(child);
    close(ends[0]);
    close(ends[1]);
  }
}

TEST_F(ExitWaitTest, ExitWaitsForAReaderAndLosesNothing) {
  int ends[2];
  Sign waiting;
  MakeFullPipe(0, ends);
  pid_t child = StartChild([&] {
    close(ends[0]);
    AttachInChild(ends[1]);
    Accept(Pattern(0, 100000));
    sign_of_wait = &waiting;
    exit(7);
  });
  close(ends[1]);
  waiting.Await();
  std::string got = ReadToEnd(ends[0]);
  EXPECT_EQ(WEXITSTATUS(StatusOf(child)), 7);
  ASSERT_GT(got.size(), 100000u);
  EXPECT_EQ(got.substr(got.size() - 100000), Pattern(0, 100000));
  close(ends[0]);
}

// Another writer fills the pipe between our poll(2) and our write(2).
void ExpectKillableWhenOvertaken(const std::function<void()> &begin) {
  Sign waiting;
  pid_t child = StartChild([&] {
    begin();
    Accept("committed");
    sign_of_wait = &waiting;
    poll_lies = true;
    (void)bufio_writer_flush(&child_writer);
  });
  waiting.Await();
  char state;
  while ((state = StateOf(child)) != 'S') {
    ASSERT_NE(state, 'Z') << "it did not wait";
  }
  ExpectKillable(child);
}

TEST_F(ExitWaitTest, WriterThatWasOvertakenCanBeKilled) {
  for (int type : {0, int{SOCK_STREAM}}) {
    int ends[2];
    MakeFullPipe(type, ends);
    if (type == 0 && !CanWriteWithoutWaiting(ends[1])) {
      std::printf("pipes are left out: this kernel cannot but wait for them\n");
    } else {
      ExpectKillableWhenOvertaken([&] { AttachInChild(ends[1]); });
    }
    close(ends[0]);
    close(ends[1]);
  }
}

// Pipes that the kernel cannot be asked not to wait for: those with a name, and
// those opened by the name of a descriptor.
TEST_F(ExitWaitTest, WriterOfANamedPipeThatWasOvertakenCanBeKilled) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  int ends[2] = {open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC),
                 open(path_.c_str(), O_WRONLY | O_CLOEXEC)};
  Fill(ends[1]);
  ExpectKillableWhenOvertaken(
      [&] { OpenInChild(path_, BUFIO_DURABILITY_EXIT); });
  ExpectKillableWhenOvertaken([&] { AttachInChild(ends[1]); });
  // The caller's open file stays as it was.
  EXPECT_EQ(fcntl(ends[1], F_GETFL) & O_NONBLOCK, 0);
  close(ends[0]);
  close(ends[1]);
}

TEST_F(ExitWaitTest, WriterOfAPipeOpenedAnewThatWasOvertakenCanBeKilled) {
  int ends[2];
  MakeFullPipe(0, ends);
  ExpectKillableWhenOvertaken([&] {
    OpenInChild("/proc/self/fd/" + std::to_string(ends[1]),
                BUFIO_DURABILITY_EXIT);
  });
  ExpectKillableWhenOvertaken([&] {
    dup2(ends[1], STDOUT_FILENO);
    OpenInChild("/dev/stdout", BUFIO_DURABILITY_EXIT);
  });
  EXPECT_EQ(fcntl(ends[1], F_GETFL) & O_NONBLOCK, 0);
  close(ends[0]);
  close(ends[1]);
}

TEST_F(ExitWaitTest, WriterOfATerminalThatWasOvertakenCanBeKilled) {
  Terminal terminal;
  int descriptor = terminal.Open();
  Fill(descriptor);
  ExpectKillableWhenOvertaken(
      [&] { OpenInChild(terminal.name(), BUFIO_DURABILITY_EXIT); });
  ExpectKillableWhenOvertaken([&] { AttachInChild(descriptor); });
  EXPECT_EQ(fcntl(descriptor, F_GETFL) & O_NONBLOCK, 0);
  close(descriptor);
}

TEST_F(ExitWaitTest, NamedPipeGetsEverythingAndEndsWithItsWriters) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  for (bool attach : {false, true}) {
    int reader = open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    int given = open(path_.c_str(), O_WRONLY | O_CLOEXEC);
    ASSERT_EQ(fcntl(reader, F_SETFL, 0), 0);
    int is_over[2];
    ASSERT_EQ(pipe(is_over), 0);
    pid_t child = StartChild([&] {
      if (attach) {
        AttachInChild(given);
      } else {
        OpenInChild(path_, BUFIO_DURABILITY_EXIT);
      }
      Accept(Pattern(0, 300000));
      // A process that knows of what it was given only, and closes that.
      close(is_over[1]);
      if (attach && fork() == 0) {
        close(given);
        char byte;
        _exit(read(is_over[0], &byte, 1) == 0 ? 0 : 1);
      }
      close(given);
      Accept("end");
      exit(7);
    });
    close(given);
    EXPECT_EQ(ReadToEnd(reader), Pattern(0, 300000) + "end");
    EXPECT_EQ(WEXITSTATUS(StatusOf(child)), 7);
    close(is_over[0]);
    close(is_over[1]);
    close(reader);
  }
}

// Whose descriptor has no O_NONBLOCK has not asked for -EAGAIN.
TEST_F(ExitWaitTest, ReturnWouldBlockIsOfDescriptorsThatWouldNotBlock) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  for (int type : {-1, 0, int{SOCK_STREAM}}) {
    int ends[2];
    if (type < 0) {
      ends[0] = open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
      ends[1] = open(path_.c_str(), O_WRONLY | O_CLOEXEC);
      Fill(ends[1]);
    } else {
      MakeFullPipe(type, ends);
    }
    int flags = fcntl(ends[1], F_GETFL);
    Sign waiting;
    pid_t child = StartChild([&] {
      close(ends[0]);
      AttachInChild(ends[1], true);
      fcntl(ends[1], F_SETFL, flags | O_NONBLOCK);
      Accept("committed");
      if (bufio_writer_flush(&child_writer) != -EAGAIN) {
        _exit(1);
      }
      fcntl(ends[1], F_SETFL, flags);
      sign_of_wait = &waiting;
      _exit(bufio_writer_flush(&child_writer) == 0 ? 0 : 2);
    });
    close(ends[1]);
    waiting.Await();
    ASSERT_EQ(fcntl(ends[0], F_SETFL, 0), 0);
    std::string got = ReadToEnd(ends[0]);
    EXPECT_EQ(StatusOf(child), 0);
    EXPECT_EQ(got.substr(got.size() - 9), "committed");
    close(ends[0]);
  }
}

// Each is overtaken by the other all the time.
TEST_F(ExitWaitTest, TwoWritersOfOnePipeLoseNothing) {
  for (int type : {0, int{SOCK_STREAM}}) {
    int ends[2];
    ASSERT_EQ(type == 0 ? pipe(ends) : socketpair(AF_UNIX, type, 0, ends), 0);
    constexpr size_t kBytes = 1 << 20;
    std::vector<std::thread> threads;
    for (unsigned char letter : {'a', 'b'}) {
      threads.emplace_back([=] {
        bufio_writer_t writer;
        bufio_writer_options_t options = {};
        options.durability = BUFIO_DURABILITY_EXIT;
        options.buffer_bytes = 4096;
        ASSERT_EQ(bufio_writer_attach(&writer, ends[1], &options), 0);
        std::string record;
        // Small ones, and some that exceed the buffer.
        for (size_t left = kBytes, i = 0; left != 0; i++) {
          size_t len =
              std::min(left, i % 50 == 49 ? size_t{20000} : 1 + i % 99);
          record.assign(len, static_cast<char>(letter));
          ASSERT_EQ(bufio_writer_write(&writer, record.data(), len), 0);
          left -= len;
        }
        ASSERT_EQ(bufio_writer_close(&writer), 0);
      });
    }
    size_t counts[2] = {0, 0};
    char piece[7000];
    while (counts[0] + counts[1] < 2 * kBytes) {
      ssize_t count = read(ends[0], piece, sizeof(piece));
      ASSERT_GT(count, 0);
      for (ssize_t i = 0; i < count; i++) {
        counts[piece[i] == 'b']++;
      }
    }
    for (std::thread &thread : threads) {
      thread.join();
    }
    EXPECT_EQ(counts[0], kBytes);
    EXPECT_EQ(counts[1], kBytes);
    close(ends[0]);
    close(ends[1]);
  }
}

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

TEST_F(ExitWaitTest, ThreadCancelledInTheMiddleOfAWriteFinishesIt) {
  static const std::function<void()> *in_write;
  bufio_system_t table = bufio_system_kernel;
  table.write = [](int descriptor, const void *bytes, size_t len) {
    (*in_write)();
    return bufio_system_kernel.write(descriptor, bytes, len);
  };
  bufio_writer_t writer;
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_EXIT;
  ASSERT_EQ(bufio_writer_open(&writer, path_.c_str(), &options), 0);
  ASSERT_EQ(bufio_writer_puts(&writer, "one"), 0);
  bufio_system = &table;
  bool is_cancelled = IsCancelledAt([&](const std::function<void()> &place) {
    in_write = &place;
    int state;
    (void)bufio_writer_flush(&writer);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    EXPECT_EQ(state, PTHREAD_CANCEL_ENABLE);
  });
  bufio_system = &bufio_system_kernel;
  // Else close would wait for ever.
  ASSERT_FALSE(is_cancelled);
  EXPECT_EQ(bufio_writer_puts(&writer, "two"), 0);
  EXPECT_EQ(bufio_writer_close(&writer), 0);
  EXPECT_EQ(ReadFile(path_), "onetwo");
}

// It may be cancelled where it waits for a reader, and closed then.
TEST_F(ExitWaitTest, ThreadCancelledWhileItWaitsForAReaderLeavesNoLock) {
  static const std::function<void()> *in_wait;
  int ends[2];
  MakeFullPipe(SOCK_STREAM, ends);
  bufio_system_t table = bufio_system_kernel;
  table.wait = [](int, short) {
    (*in_wait)();
    return 0;
  };
  bufio_writer_t writer;
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_EXIT;
  ASSERT_EQ(bufio_writer_attach(&writer, ends[1], &options), 0);
  ASSERT_EQ(bufio_writer_puts(&writer, "one"), 0);
  bufio_system = &table;
  EXPECT_TRUE(IsCancelledAt([&](const std::function<void()> &place) {
    in_wait = &place;
    (void)bufio_writer_flush(&writer);
  }));
  bufio_system = &bufio_system_kernel;
  std::thread reader([&] { EXPECT_NE(ReadToEnd(ends[0]).find("one"), 0u); });
  EXPECT_EQ(bufio_writer_close(&writer), 0);
  close(ends[1]);
  reader.join();
  close(ends[0]);
}

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
  waited_ms = nullptr;
  EXPECT_EQ(waited, 1000);
  std::thread reader([&] {
    std::string got = ReadToEnd(ends[0]);
    EXPECT_EQ(got.substr(got.size() - 12), "texttexttext");
  });
  EXPECT_EQ(bufio_exit_flush_all(), 0);
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
