// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// That writers of level `exit` wait for the readers of pipes, sockets and
// terminals, lose nothing, and can be killed meanwhile.

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "bufio/bufio_testing.h"
#include "bufio/exit_flush.h"
#include "bufio/exit_testing.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Accept;
using bufio_testing::AttachInChild;
using bufio_testing::child_writer;
using bufio_testing::ExitTest;
using bufio_testing::ExpectKillable;
using bufio_testing::Fill;
using bufio_testing::MakeFullPipe;
using bufio_testing::OpenInChild;
using bufio_testing::Pattern;
using bufio_testing::ReadFile;
using bufio_testing::ReadToEnd;
using bufio_testing::RunChild;
using bufio_testing::Sign;
using bufio_testing::StartChild;
using bufio_testing::StatusOf;
using bufio_testing::TempPath;
using bufio_testing::Terminal;

// Given when somebody waits for a reader; and what poll says then: that there
// is room although another writer was faster.
const Sign *sign_of_wait = nullptr;
bool poll_lies = false;
// What happens just before the first wait.
std::function<void()> before_wait;

}  // namespace

// In place of libc's.
extern "C" int poll(struct pollfd *requests, nfds_t count, int timeout_ms) {
  static auto *const next =
      reinterpret_cast<decltype(&poll)>(dlsym(RTLD_NEXT, "poll"));
  if (sign_of_wait != nullptr && timeout_ms != 0) {
    sign_of_wait->Give();
    sign_of_wait = nullptr;
    if (poll_lies) {
      return 1;
    }
  }
  if (before_wait && timeout_ms != 0) {
    std::function<void()> happens;
    happens.swap(before_wait);
    happens();
  }
  return next(requests, count, timeout_ms);
}

namespace {

class ExitPipeTest : public ExitTest {};

// Nobody reads: what fits must not wait for more room than it needs.
TEST_F(ExitPipeTest, FlushThatFillsAPipeReturns) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const int capacity = fcntl(ends[1], F_SETPIPE_SZ, 4096);
  ASSERT_GE(capacity, 4096);
  bufio_writer_t writer;
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_EXIT;
  ASSERT_EQ(bufio_writer_attach(&writer, ends[1], &options), 0);
  const std::string bytes(static_cast<size_t>(capacity), 'x');
  ASSERT_EQ(bufio_writer_write(&writer, bytes.data(), bytes.size()), 0);
  EXPECT_EQ(bufio_writer_flush(&writer), 0);
  EXPECT_EQ(bufio_writer_close(&writer), 0);
  close(ends[1]);
  EXPECT_EQ(ReadToEnd(ends[0]), bytes);
  close(ends[0]);
}

TEST_F(ExitPipeTest, FlushAllSaysWhyBytesWereRefused) {
  bufio_writer_t writer;
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_EXIT;
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  if (full < 0) {
    GTEST_SKIP() << "no /dev/full";
  }
  ASSERT_EQ(bufio_writer_attach(&writer, full, &options), 0);
  ASSERT_EQ(bufio_writer_puts(&writer, "refused"), 0);
  EXPECT_EQ(bufio_exit_flush_all(), -ENOSPC);
  EXPECT_EQ(bufio_writer_flush(&writer), -ENOSPC);
  EXPECT_EQ(bufio_exit_flush_all(), -ENOSPC) << "the sticky error";
  EXPECT_EQ(bufio_writer_close(&writer), -ENOSPC);
  EXPECT_EQ(bufio_exit_flush_all(), 0);
  close(full);
}

// Opening a named pipe anew must not give what the descriptor has not.
TEST_F(ExitPipeTest, EndForReadingCannotBeWritten) {
  const std::string path = TempPath("pipe");
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const int reader = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  ASSERT_GE(reader, 0);
  bufio_writer_t writer;
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_EXIT;
  EXPECT_EQ(bufio_writer_attach(&writer, reader, &options), -EBADF);
  close(reader);
}

TEST_F(ExitPipeTest, WriterThatBlocksOnAFullPipeCanBeKilled) {
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

// Whether the kernel can be asked not to wait. Not for pipes before Linux 6.5.
bool CanWriteWithoutWaiting(int full_pipe) {
  char byte = 0;
  iovec part = {&byte, 1};
  EXPECT_LT(pwritev2(full_pipe, &part, 1, -1, RWF_NOWAIT), 0);
  return errno == EAGAIN;
}

// The state of a process, as ps(1) shows it.
char StateOf(pid_t process) {
  std::string stat = ReadFile("/proc/" + std::to_string(process) + "/stat");
  return stat[stat.rfind(')') + 2];
}

TEST_F(ExitPipeTest, ExitThatWaitsForAReaderCanBeKilled) {
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

// Another thread has written the bytes, and filled the pipe again, before the
// one that exits has begun to wait for room.
TEST_F(ExitPipeTest, ExitNoticesThatThereIsNothingLeftToWaitFor) {
  int ends[2];
  MakeFullPipe(0, ends);
  pid_t child = StartChild([&] {
    AttachInChild(ends[1]);
    Accept("committed");
    before_wait = [&] {
      char bytes[65536];
      (void)!read(ends[0], bytes, sizeof(bytes));
      (void)bufio_exit_flush_all();
      Fill(ends[1]);
    };
    exit(7);
  });
  EXPECT_EQ(StatusOf(child), 7 << 8);
  close(ends[0]);
  close(ends[1]);
}

TEST_F(ExitPipeTest, ExitWaitsForAReaderAndLosesNothing) {
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

TEST_F(ExitPipeTest, WriterThatWasOvertakenCanBeKilled) {
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
TEST_F(ExitPipeTest, WriterOfANamedPipeThatWasOvertakenCanBeKilled) {
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

TEST_F(ExitPipeTest, WriterOfAPipeOpenedAnewThatWasOvertakenCanBeKilled) {
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

TEST_F(ExitPipeTest, WriterOfATerminalThatWasOvertakenCanBeKilled) {
  Terminal terminal;
  int descriptor = terminal.Open();
  ASSERT_EQ(tcflow(descriptor, TCOOFF), 0);  // As ^S does.
  ExpectKillableWhenOvertaken(
      [&] { OpenInChild(terminal.name(), BUFIO_DURABILITY_EXIT); });
  ExpectKillableWhenOvertaken([&] { AttachInChild(descriptor); });
  EXPECT_EQ(fcntl(descriptor, F_GETFL) & O_NONBLOCK, 0);
  close(descriptor);
}

// The child of a fork has the caller's descriptor only, which may wait.
TEST_F(ExitPipeTest, ChildThatWritesWhatItsParentAttachedCanBeKilled) {
  Terminal terminal;
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  const int reader = open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  const int pipe = open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  Fill(pipe);
  const int screen = terminal.Open();
  ASSERT_EQ(tcflow(screen, TCOOFF), 0);  // As ^S does.
  for (int descriptor : {pipe, screen}) {
    AttachInChild(descriptor);
    ExpectKillableWhenOvertaken([] {});
    EXPECT_EQ(bufio_writer_close(&child_writer), 0);
    EXPECT_EQ(fcntl(descriptor, F_GETFL) & O_NONBLOCK, 0);
    close(descriptor);
  }
  close(reader);
}

TEST_F(ExitPipeTest, ChildThatRedirectsWhatItsParentAttachedWritesThere) {
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);
  const int reader = open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  const int pipe = open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  const std::string other = TempPath("other");
  AttachInChild(pipe);
  const int status = RunChild([&] {
    int file = open(other.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (dup2(file, pipe) != pipe) {
      _exit(1);
    }
    Accept(Pattern(0, 10000));
    // A file is not written as what may block.
    exit(bufio_exit_may_block(child_writer.exit_slot) ? 2 : 7);
  });
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(ReadFile(other), Pattern(0, 10000));
  EXPECT_EQ(bufio_writer_close(&child_writer), 0);
  unlink(other.c_str());
  close(pipe);
  EXPECT_EQ(ReadToEnd(reader), "");
  close(reader);
}

TEST_F(ExitPipeTest, NamedPipeGetsEverythingAndEndsWithItsWriters) {
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
TEST_F(ExitPipeTest, ReturnWouldBlockIsOfDescriptorsThatWouldNotBlock) {
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
TEST_F(ExitPipeTest, TwoWritersOfOnePipeLoseNothing) {
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

}  // namespace
