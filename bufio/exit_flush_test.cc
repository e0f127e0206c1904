// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What writers of level `exit` leave in the file, by the way the process ends.

#include "bufio/exit_flush.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "bufio/bufio_testing.h"
#include "bufio/exit_testing.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Accept;
using bufio_testing::child_writer;
using bufio_testing::ExitTest;
using bufio_testing::ExpectKillable;
using bufio_testing::ExpectKilledBy;
using bufio_testing::OpenInChild;
using bufio_testing::Pattern;
using bufio_testing::ReadFile;
using bufio_testing::RunChild;
using bufio_testing::Sign;
using bufio_testing::StartChild;
using bufio_testing::TempPath;

// Flushes all, as a handler would, just before the next lock is taken.
bool flushes_before_lock = false;

}  // namespace

// In place of libc's.
extern "C" int pthread_sigmask(int how, const sigset_t *set,
                               sigset_t *old) noexcept {
  static auto *const next = reinterpret_cast<decltype(&pthread_sigmask)>(
      dlsym(RTLD_NEXT, "pthread_sigmask"));
  if (how == SIG_BLOCK && flushes_before_lock) {
    flushes_before_lock = false;
    (void)bufio_exit_flush_all();
  }
  return next(how, set, old);
}

namespace {

class ExitFlushTest : public ExitTest {
 protected:
  // Runs `end` in a child that has accepted "committed" and reserved more.
  // Returns the status of waitpid.
  int Run(bufio_durability_t level, const std::function<void()> &end) {
    return RunChild([&] {
      OpenInChild(path_, level);
      Accept("committed");
      memcpy(bufio_writer_reserve(&child_writer, 8), "reserved", 8);
      end();
    });
  }
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
  ExpectKilledBy(status, SIGABRT);
  EXPECT_EQ(ReadFile(path_), "committed");
}

TEST_F(ExitFlushTest, FatalSignalsWriteWhatIsCommittedAndStillKill) {
  for (int number : {SIGHUP, SIGINT, SIGTERM, SIGSEGV, SIGBUS, SIGFPE, SIGILL,
                     SIGPIPE, SIGALRM, SIGUSR1, SIGXCPU, SIGSYS}) {
    int status = Run(BUFIO_DURABILITY_EXIT, [=] { raise(number); });
    ExpectKilledBy(status, number);
    EXPECT_EQ(ReadFile(path_), "committed") << number;
  }
}

TEST_F(ExitFlushTest, RealFaultWritesWhatIsCommittedAndStillKills) {
  int status = Run(BUFIO_DURABILITY_EXIT, [] {
    void *page =
        mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *static_cast<volatile char *>(page) = 1;
  });
  ExpectKilledBy(status, SIGSEGV);
  EXPECT_EQ(ReadFile(path_), "committed");
}

TEST_F(ExitFlushTest, UnderscoreExitDoesNot) {
  int status = Run(BUFIO_DURABILITY_EXIT, [] { _exit(7); });
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(ReadFile(path_), "");
}

TEST_F(ExitFlushTest, HandlersOfTheProgramAreLeftAlone) {
  int status = RunChild([&] {
    signal(SIGTERM, [](int) { _exit(bufio_exit_flush_all() == 0 ? 9 : 8); });
    OpenInChild(path_, BUFIO_DURABILITY_EXIT);
    Accept("committed");
    raise(SIGTERM);
  });
  EXPECT_EQ(WEXITSTATUS(status), 9);
  EXPECT_EQ(ReadFile(path_), "committed");
}

TEST_F(ExitFlushTest, FlushAllTwiceWritesOnce) {
  bufio_writer_t writer;
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_EXIT;
  ASSERT_EQ(bufio_writer_open(&writer, path_.c_str(), &options), 0);
  EXPECT_EQ(bufio_writer_puts(&writer, "one"), 0);
  EXPECT_EQ(bufio_exit_flush_all(), 0);
  EXPECT_EQ(bufio_exit_flush_all(), 0);
  EXPECT_EQ(ReadFile(path_), "one");
  EXPECT_EQ(bufio_writer_puts(&writer, "two"), 0);
  EXPECT_EQ(bufio_exit_flush_all(), 0);
  EXPECT_EQ(ReadFile(path_), "onetwo");
  EXPECT_EQ(bufio_writer_close(&writer), 0);
  EXPECT_EQ(ReadFile(path_), "onetwo");
}

TEST_F(ExitFlushTest, FlushAllOfAWriterThatLivesOnLeavesAReplayWhole) {
  int status = Run(BUFIO_DURABILITY_PROCESS, [] { _exit(0); });
  ASSERT_EQ(WEXITSTATUS(status), 0);
  status = RunChild([&] {
    OpenInChild(path_, BUFIO_DURABILITY_PROCESS);
    // To the brim, so that what comes next takes the place of what is flushed.
    for (int i = 0; i < 81; i++) {
      Accept(std::string(100, 'a'));
    }
    (void)bufio_exit_flush_all();
    for (int i = 0; i < 30; i++) {
      Accept(std::string(100, 'b'));
    }
    kill(getpid(), SIGKILL);
  });
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
      std::string record = Pattern(expected.size(), i % 40 == 39 ? 9000 : 100);
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
  EXPECT_EQ(bufio_exit_flush_all(), 0);
  for (int i = 0; i < kWriters; i++) {
    EXPECT_EQ(ReadFile(paths[i]), std::to_string(i));
    EXPECT_EQ(bufio_writer_close(&writers[i]), 0);
    unlink(paths[i].c_str());
  }
}

std::string NumberedRecord(unsigned i) {
  char record[9];
  snprintf(record, sizeof(record), "%07u\n", i % 10000000);
  return record;
}

// A signal at any instruction of a thread that writes: the file is a sequence
// of whole records, each of them once.
TEST_F(ExitFlushTest, RecordsAreWholeWhereverTheSignalComes) {
  for (unsigned round = 0; round < 30; round++) {
    Sign written;
    pid_t child = StartChild([&] {
      OpenInChild(path_, BUFIO_DURABILITY_EXIT);
      for (unsigned i = 0; i < (1u << 20); i++) {
        Accept(NumberedRecord(i));
        if (i == round * 37) {
          written.Give();
        }
      }
      pause();
    });
    written.Await();
    ExpectKillable(child);
    std::string file = ReadFile(path_);
    ASSERT_EQ(file.size() % 8, 0u);
    ASSERT_GE(file.size() / 8, size_t{round} * 37 + 1);
    for (unsigned i = 0; i < file.size() / 8; i++) {
      ASSERT_EQ(file.compare(i * 8, 8, NumberedRecord(i)), 0);
    }
  }
}

}  // namespace
