// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What writers of level `exit` leave in the file, by the way the process ends.

#include "bufio/exit_flush.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
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
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::ReadFile;
using bufio_testing::TempPath;

// Flushes all, as a handler would, just before the next lock is taken.
bool flushes_before_lock = false;

// Where to say that somebody waits for a reader; and what poll says then: that
// there is room although another writer was faster.
int waiting_pipe = -1;
bool poll_lies = false;

}  // namespace

// In place of libc's.
extern "C" int pthread_sigmask(int how, const sigset_t *set,
                               sigset_t *old) noexcept {
  static auto *const next = reinterpret_cast<decltype(&pthread_sigmask)>(
      dlsym(RTLD_NEXT, "pthread_sigmask"));
  if (how == SIG_BLOCK && flushes_before_lock) {
    flushes_before_lock = false;
    bufio_exit_flush_all();
  }
  return next(how, set, old);
}

extern "C" int poll(struct pollfd *requests, nfds_t count, int timeout_ms) {
  static auto *const next =
      reinterpret_cast<decltype(&poll)>(dlsym(RTLD_NEXT, "poll"));
  if (waiting_pipe >= 0 && timeout_ms < 0) {
    (void)!write(waiting_pipe, "w", 1);
    waiting_pipe = -1;
    if (poll_lies) {
      return 1;
    }
  }
  return next(requests, count, timeout_ms);
}

namespace {

class ExitFlushTest : public testing::Test {
 protected:
  // Sanitizers and the test's runner have handlers of their own.
  static void SetUpTestSuite() {
    for (int number = 1; number < 32; number++) {
      signal(number, SIG_DFL);
    }
  }

  ~ExitFlushTest() override {
    unlink(path_.c_str());
  }

  // Runs `end` in a child that has accepted "committed" and reserved more.
  // Returns the status of waitpid.
  int Run(bufio_durability_t level, const std::function<void()> &end) {
    pid_t child = fork();
    if (child == 0) {
      struct rlimit no_core = {0, 0};
      setrlimit(RLIMIT_CORE, &no_core);
      static bufio_writer_t writer;
      bufio_writer_options_t options = {};
      options.durability = level;
      if (bufio_writer_open(&writer, path_.c_str(), &options) != 0 ||
          bufio_writer_puts(&writer, "committed") != 0) {
        _exit(100);
      }
      unsigned char *room = bufio_writer_reserve(&writer, 8);
      memcpy(room, "reserved", 8);
      end();
      _exit(101);
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return status;
  }

  std::string path_ = TempPath("exit");
};

TEST_F(ExitFlushTest, ExitWritesWhatIsCommitted) {
  int status = Run(BUFIO_DURABILITY_EXIT, [] { exit(7); });
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(ReadFile(path_), "committed");
}

TEST_F(ExitFlushTest, LevelNoneDoesNot) {
  int status = Run(BUFIO_DURABILITY_NONE, [] { exit(7); });
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(ReadFile(path_), "");
}

TEST_F(ExitFlushTest, LevelProcessLeavesTheFileWholeAtExit) {
  int status = Run(BUFIO_DURABILITY_PROCESS, [] { exit(7); });
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(ReadFile(path_), "committed");
  EXPECT_TRUE(bufio_testing::Exists(path_ + ".bufio-journal"));
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_PROCESS;
  options.append = true;
  bufio_writer_t writer;
  ASSERT_EQ(bufio_writer_open(&writer, path_.c_str(), &options), 0);
  EXPECT_EQ(bufio_writer_close(&writer), 0);
  EXPECT_EQ(ReadFile(path_), "committed");
}

TEST_F(ExitFlushTest, QuickExitWritesWhatIsCommitted) {
  int status = Run(BUFIO_DURABILITY_EXIT, [] { quick_exit(7); });
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(ReadFile(path_), "committed");
}

TEST_F(ExitFlushTest, AbortWritesWhatIsCommitted) {
  int status = Run(BUFIO_DURABILITY_EXIT, [] { abort(); });
  EXPECT_EQ(WTERMSIG(status), SIGABRT);
  EXPECT_EQ(ReadFile(path_), "committed");
}

TEST_F(ExitFlushTest, FatalSignalsWriteWhatIsCommittedAndStillKill) {
  for (int number : {SIGHUP, SIGINT, SIGTERM, SIGSEGV, SIGBUS, SIGFPE, SIGILL,
                     SIGPIPE, SIGALRM, SIGUSR1, SIGXCPU, SIGSYS}) {
    int status = Run(BUFIO_DURABILITY_EXIT, [=] { raise(number); });
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(WTERMSIG(status), number);
    EXPECT_EQ(ReadFile(path_), "committed") << number;
  }
}

TEST_F(ExitFlushTest, RealFaultWritesWhatIsCommittedAndStillKills) {
  int status = Run(BUFIO_DURABILITY_EXIT, [] {
    void *page =
        mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *static_cast<volatile char *>(page) = 1;
  });
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGSEGV);
  EXPECT_EQ(ReadFile(path_), "committed");
}

TEST_F(ExitFlushTest, UnderscoreExitDoesNot) {
  int status = Run(BUFIO_DURABILITY_EXIT, [] { _exit(7); });
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(ReadFile(path_), "");
}

TEST_F(ExitFlushTest, HandlersOfTheProgramAreLeftAlone) {
  pid_t child = fork();
  if (child == 0) {
    signal(SIGTERM, [](int) {
      bufio_exit_flush_all();
      _exit(9);
    });
    bufio_writer_t writer;
    bufio_writer_options_t options = {};
    options.durability = BUFIO_DURABILITY_EXIT;
    if (bufio_writer_open(&writer, path_.c_str(), &options) != 0 ||
        bufio_writer_puts(&writer, "committed") != 0) {
      _exit(100);
    }
    raise(SIGTERM);
    _exit(101);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 9);
  EXPECT_EQ(ReadFile(path_), "committed");
}

TEST_F(ExitFlushTest, FlushAllTwiceWritesOnce) {
  bufio_writer_t writer;
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_EXIT;
  ASSERT_EQ(bufio_writer_open(&writer, path_.c_str(), &options), 0);
  EXPECT_EQ(bufio_writer_puts(&writer, "one"), 0);
  bufio_exit_flush_all();
  bufio_exit_flush_all();
  EXPECT_EQ(ReadFile(path_), "one");
  EXPECT_EQ(bufio_writer_puts(&writer, "two"), 0);
  bufio_exit_flush_all();
  EXPECT_EQ(ReadFile(path_), "onetwo");
  EXPECT_EQ(bufio_writer_close(&writer), 0);
  EXPECT_EQ(ReadFile(path_), "onetwo");
}

TEST_F(ExitFlushTest, FlushAllOfAWriterThatLivesOnLeavesAReplayWhole) {
  int status = Run(BUFIO_DURABILITY_PROCESS, [] { _exit(0); });
  ASSERT_EQ(WEXITSTATUS(status), 0);
  pid_t child = fork();
  if (child == 0) {
    bufio_writer_t writer;
    bufio_writer_options_t options = {};
    options.durability = BUFIO_DURABILITY_PROCESS;
    options.append = true;
    options.buffer_bytes = 4096;
    if (bufio_writer_open(&writer, path_.c_str(), &options) != 0) {
      _exit(100);
    }
    // To the brim, so that what comes next takes the place of what is flushed.
    std::string record(100, 'a');
    for (int i = 0; i < 81; i++) {
      if (bufio_writer_write(&writer, record.data(), 100) != 0) {
        _exit(101);
      }
    }
    bufio_exit_flush_all();
    std::string other(100, 'b');
    for (int i = 0; i < 30; i++) {
      if (bufio_writer_write(&writer, other.data(), 100) != 0) {
        _exit(102);
      }
    }
    kill(getpid(), SIGKILL);
  }
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status)) << status;
  bufio_writer_options_t options = {};
  options.append = true;
  bufio_writer_t writer;
  ASSERT_EQ(bufio_writer_open(&writer, path_.c_str(), &options), 0);
  EXPECT_EQ(bufio_writer_close(&writer), 0);
  EXPECT_EQ(ReadFile(path_),
            "committed" + std::string(8100, 'a') + std::string(3000, 'b'));
}

TEST_F(ExitFlushTest, FlushAllJustBeforeAFlushLocksIsNoError) {
  for (bufio_durability_t level :
       {BUFIO_DURABILITY_EXIT, BUFIO_DURABILITY_PROCESS}) {
    bufio_writer_t writer;
    bufio_writer_options_t options = {};
    options.durability = level;
    options.buffer_bytes = 4096;
    ASSERT_EQ(bufio_writer_open(&writer, path_.c_str(), &options), 0);
    EXPECT_EQ(bufio_writer_puts(&writer, "hello"), 0);
    flushes_before_lock = true;
    EXPECT_EQ(bufio_writer_flush(&writer), 0);
    EXPECT_FALSE(flushes_before_lock);
    EXPECT_EQ(bufio_writer_error(&writer), 0);
    EXPECT_EQ(bufio_writer_close(&writer), 0);
    EXPECT_EQ(ReadFile(path_), "hello");
  }
}

TEST_F(ExitFlushTest, FlushAllJustBeforeAFullBufferLocksLosesNothing) {
  for (bufio_durability_t level :
       {BUFIO_DURABILITY_EXIT, BUFIO_DURABILITY_PROCESS}) {
    bufio_writer_t writer;
    bufio_writer_options_t options = {};
    options.durability = level;
    options.buffer_bytes = 4096;
    ASSERT_EQ(bufio_writer_open(&writer, path_.c_str(), &options), 0);
    std::string expected;
    for (int i = 0; i < 400; i++) {
      // More than the buffer now and then.
      std::string record =
          bufio_testing::Pattern(expected.size(), i % 40 == 39 ? 9000 : 100);
      flushes_before_lock = true;
      ASSERT_EQ(bufio_writer_write(&writer, record.data(), record.size()), 0);
      expected += record;
    }
    EXPECT_EQ(bufio_writer_close(&writer), 0);
    flushes_before_lock = false;
    EXPECT_EQ(ReadFile(path_), expected);
  }
}

TEST_F(ExitFlushTest, MoreWritersThanAChunkHasSlots) {
  constexpr int kWriters = 200;
  static bufio_writer_t writers[kWriters];
  std::string paths[kWriters];
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_EXIT;
  options.buffer_bytes = 4096;
  for (int i = 0; i < kWriters; i++) {
    paths[i] = TempPath("many");
    ASSERT_EQ(bufio_writer_open(&writers[i], paths[i].c_str(), &options), 0);
    EXPECT_EQ(bufio_writer_printf(&writers[i], "%d", i), 0);
  }
  bufio_exit_flush_all();
  for (int i = 0; i < kWriters; i++) {
    EXPECT_EQ(ReadFile(paths[i]), std::to_string(i));
    EXPECT_EQ(bufio_writer_close(&writers[i]), 0);
    unlink(paths[i].c_str());
  }
}

TEST_F(ExitFlushTest, WriterThatBlocksOnAFullPipeCanBeKilled) {
  for (int flags : {0, O_NONBLOCK}) {
    int ends[2];
    ASSERT_EQ(pipe2(ends, flags), 0);
    pid_t child = fork();
    if (child == 0) {
      bufio_writer_t writer;
      bufio_writer_options_t options = {};
      options.durability = BUFIO_DURABILITY_EXIT;
      options.return_would_block = flags != 0;
      std::string bytes(100000, 'x');
      if (bufio_writer_attach(&writer, ends[1], &options) != 0) {
        _exit(100);
      }
      for (int i = 0; i < 3; i++) {
        (void)bufio_writer_write(&writer, bytes.data(), bytes.size());
      }
      pause();
    }
    // Until the pipe is full.
    int filled = 0;
    while (filled < 65536) {
      ASSERT_EQ(ioctl(ends[0], FIONREAD, &filled), 0);
      ASSERT_EQ(waitpid(child, nullptr, WNOHANG), 0);
    }
    ASSERT_EQ(kill(child, SIGTERM), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(WTERMSIG(status), SIGTERM);
    close(ends[0]);
    close(ends[1]);
  }
}

// Full, so that a write to it waits; the ends of it.
void MakeFullPipe(int type, int ends[2]) {
  if (type == 0) {
    ASSERT_EQ(pipe(ends), 0);
  } else {
    ASSERT_EQ(socketpair(AF_UNIX, type, 0, ends), 0);
  }
  ASSERT_EQ(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
  char bytes[512] = {};
  while (write(ends[1], bytes, sizeof(bytes)) > 0) {
  }
  ASSERT_EQ(errno, EAGAIN);
  ASSERT_EQ(fcntl(ends[1], F_SETFL, 0), 0);
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

TEST_F(ExitFlushTest, ExitThatWaitsForAReaderCanBeKilled) {
  for (int type : {0, int{SOCK_STREAM}, int{SOCK_DGRAM}}) {
    int ends[2];
    int waiting[2];
    MakeFullPipe(type, ends);
    ASSERT_EQ(pipe(waiting), 0);
    pid_t child = fork();
    if (child == 0) {
      bufio_writer_t writer;
      bufio_writer_options_t options = {};
      options.durability = BUFIO_DURABILITY_EXIT;
      if (bufio_writer_attach(&writer, ends[1], &options) != 0 ||
          bufio_writer_puts(&writer, "committed") != 0) {
        _exit(100);
      }
      waiting_pipe = waiting[1];
      exit(0);
    }
    close(waiting[1]);
    char byte;
    ASSERT_EQ(read(waiting[0], &byte, 1), 1);
    ASSERT_EQ(kill(child, SIGTERM), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(WTERMSIG(status), SIGTERM);
    close(waiting[0]);
    close(ends[0]);
    close(ends[1]);
  }
}

TEST_F(ExitFlushTest, ExitWaitsForAReaderAndLosesNothing) {
  int ends[2];
  int waiting[2];
  MakeFullPipe(0, ends);
  ASSERT_EQ(pipe(waiting), 0);
  pid_t child = fork();
  if (child == 0) {
    close(ends[0]);
    bufio_writer_t writer;
    bufio_writer_options_t options = {};
    options.durability = BUFIO_DURABILITY_EXIT;
    std::string bytes = bufio_testing::Pattern(0, 100000);
    if (bufio_writer_attach(&writer, ends[1], &options) != 0 ||
        bufio_writer_write(&writer, bytes.data(), bytes.size()) != 0) {
      _exit(100);
    }
    waiting_pipe = waiting[1];
    exit(7);
  }
  close(ends[1]);
  close(waiting[1]);
  char byte;
  ASSERT_EQ(read(waiting[0], &byte, 1), 1);
  std::string got;
  char piece[1000];
  ssize_t count;
  while ((count = read(ends[0], piece, sizeof(piece))) > 0) {
    got.append(piece, static_cast<size_t>(count));
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 7);
  ASSERT_GT(got.size(), 100000u);
  EXPECT_EQ(got.substr(got.size() - 100000), bufio_testing::Pattern(0, 100000));
  close(waiting[0]);
  close(ends[0]);
}

// Another writer fills the pipe between our poll(2) and our write(2).
TEST_F(ExitFlushTest, WriterThatWasOvertakenCanBeKilled) {
  for (int type : {0, int{SOCK_STREAM}}) {
    int ends[2];
    int waiting[2];
    MakeFullPipe(type, ends);
    if (type == 0 && !CanWriteWithoutWaiting(ends[1])) {
      std::printf("pipes are left out: this kernel cannot but wait for them\n");
      close(ends[0]);
      close(ends[1]);
      continue;
    }
    ASSERT_EQ(pipe(waiting), 0);
    pid_t child = fork();
    if (child == 0) {
      bufio_writer_t writer;
      bufio_writer_options_t options = {};
      options.durability = BUFIO_DURABILITY_EXIT;
      if (bufio_writer_attach(&writer, ends[1], &options) != 0 ||
          bufio_writer_puts(&writer, "committed") != 0) {
        _exit(100);
      }
      waiting_pipe = waiting[1];
      poll_lies = true;
      (void)bufio_writer_flush(&writer);
      _exit(101);
    }
    close(waiting[1]);
    char byte;
    ASSERT_EQ(read(waiting[0], &byte, 1), 1);
    char state;
    while ((state = StateOf(child)) != 'S') {
      ASSERT_NE(state, 'Z') << "it did not wait";
    }
    ASSERT_EQ(kill(child, SIGTERM), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(WTERMSIG(status), SIGTERM);
    close(waiting[0]);
    close(ends[0]);
    close(ends[1]);
  }
}

// Each is overtaken by the other all the time.
TEST_F(ExitFlushTest, TwoWritersOfOnePipeLoseNothing) {
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

// A signal at any instruction of a thread that writes: the file is a sequence
// of whole records, each of them once.
TEST_F(ExitFlushTest, RecordsAreWholeWhereverTheSignalComes) {
  for (int round = 0; round < 30; round++) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
      bufio_writer_t writer;
      bufio_writer_options_t options = {};
      options.durability = BUFIO_DURABILITY_EXIT;
      options.buffer_bytes = 4096;
      if (bufio_writer_open(&writer, path_.c_str(), &options) != 0) {
        _exit(100);
      }
      for (uint64_t i = 0; i < (1u << 20); i++) {
        char record[9];
        snprintf(record, sizeof(record), "%07u\n",
                 static_cast<unsigned>(i % 10000000));
        if (bufio_writer_write(&writer, record, 8) != 0) {
          _exit(101);
        }
        if (i == static_cast<uint64_t>(round) * 37) {
          (void)!write(ends[1], "x", 1);
        }
      }
      pause();
    }
    char byte;
    ASSERT_EQ(read(ends[0], &byte, 1), 1);
    ASSERT_EQ(kill(child, SIGTERM), 0);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(WTERMSIG(status), SIGTERM);
    std::string file = ReadFile(path_);
    ASSERT_EQ(file.size() % 8, 0u);
    ASSERT_GE(file.size() / 8, static_cast<size_t>(round) * 37 + 1);
    for (size_t i = 0; i < file.size() / 8; i++) {
      char record[9];
      snprintf(record, sizeof(record), "%07u\n",
               static_cast<unsigned>(i % 10000000));
      ASSERT_EQ(file.compare(i * 8, 8, record), 0);
    }
    close(ends[0]);
    close(ends[1]);
  }
}

}  // namespace
