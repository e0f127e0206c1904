// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Writers of level `exit` in processes that are not the one that opened them,
// and in the first process of a namespace, which signals do not kill.

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <string>

#include "bufio/bufio_testing.h"
#include "bufio/exit_flush.h"
#include "bufio/exit_testing.h"
#include "bufio/mapped_file.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Accept;
using bufio_testing::child_writer;
using bufio_testing::ExitTest;
using bufio_testing::ExpectKilledBy;
using bufio_testing::OpenInChild;
using bufio_testing::ReadFile;
using bufio_testing::RunChild;
using bufio_testing::StatusOf;
using bufio_testing::TempPath;

// What becomes of the child of a fork before any handler of bufio's runs there.
void (*in_child_of_fork)() = nullptr;

void RunInChildOfFork() {
  if (in_child_of_fork != nullptr) {
    in_child_of_fork();
  }
}

int installed = -1;

void Install() {
  installed = pthread_atfork(nullptr, nullptr, RunInChildOfFork);
}

// Before all constructors, so before bufio's handlers.
__attribute__((section(".preinit_array"),
               used)) void (*const install_first)() = Install;

class ExitForkTest : public ExitTest {
 protected:
  ExitForkTest() {
    EXPECT_EQ(installed, 0);
  }
};

// In a child: ends it unless that is so.
void Require(bool condition, int otherwise) {
  if (!condition) {
    _exit(otherwise);
  }
}

// Opens the writer of a child, and one of level `exit`, which installs the
// handlers of signals.
void OpenWithHandlers(const std::string &path, bufio_durability_t level) {
  static bufio_writer_t other;
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_EXIT;
  Require(bufio_writer_open(&other, "/dev/null", &options) == 0, 100);
  OpenInChild(path, level);
}

TEST_F(ExitForkTest, SignalBeforeTheHandlersOfForkWritesNothing) {
  for (bool is_exit : {false, true}) {
    int status = RunChild([&] {
      OpenInChild(path_, BUFIO_DURABILITY_EXIT);
      Accept("committed");
      in_child_of_fork = is_exit ? +[] { exit(8); } : +[] { raise(SIGTERM); };
      int ended = StatusOf(fork());
      Require(is_exit ? WEXITSTATUS(ended) == 8 : WTERMSIG(ended) == SIGTERM,
              1);
      Require(ReadFile(path_).empty(), 2);
      exit(7);
    });
    EXPECT_EQ(WEXITSTATUS(status), 7);
    EXPECT_EQ(ReadFile(path_), "committed");
  }
}

TEST_F(ExitForkTest, SignalInAChildOfVforkLeavesTheWritersToTheParent) {
  for (bufio_durability_t level :
       {BUFIO_DURABILITY_EXIT, BUFIO_DURABILITY_PROCESS}) {
    unlink(path_.c_str());
    int status = RunChild([&] {
      OpenWithHandlers(path_, level);
      Accept("committed");
      pid_t child = vfork();
      if (child == 0) {
        raise(SIGTERM);
        _exit(8);
      }
      int ended = StatusOf(child);
      Require(WIFSIGNALED(ended) && WTERMSIG(ended) == SIGTERM, 1);
      Require(ReadFile(path_).empty(), 2);
      Accept(" more");
      Require(bufio_writer_close(&child_writer) == 0, 3);
      _exit(7);
    });
    EXPECT_EQ(WEXITSTATUS(status), 7);
    EXPECT_EQ(ReadFile(path_), "committed more");
  }
}

TEST_F(ExitForkTest, LockThatAThreadHoldsAtAForkIsFreeInTheChild) {
  int status = RunChild([&] {
    OpenInChild(path_, BUFIO_DURABILITY_EXIT);
    Accept("committed");
    // As of a thread that is in the middle of an open.
    static bufio_writer_t half_open;
    half_open.descriptor = -1;
    bufio_exit_slot_t *slot = bufio_exit_add(&half_open, false);
    bufio_exit_hold_t hold;
    bufio_exit_lock(slot, &hold);
    pid_t child = fork();
    if (child == 0) {
      Accept("the child's");
      exit(8);
    }
    Require(WEXITSTATUS(StatusOf(child)) == 8, 1);
    bufio_exit_unlock(slot, &hold);
    bufio_exit_remove(slot);
    exit(7);
  });
  EXPECT_EQ(WEXITSTATUS(status), 7);
  EXPECT_EQ(ReadFile(path_), "the child'scommitted");
}

// ---- copies made past the handlers of fork ----

pid_t Copy(int flags) {
  return static_cast<pid_t>(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0));
}

TEST_F(ExitForkTest, CopyWritesItsOwnAndNothingOfItsParent) {
  const std::string own = TempPath("own");
  for (bool is_exit : {false, true}) {
    int status = RunChild([&] {
      OpenInChild(path_, BUFIO_DURABILITY_EXIT);
      Accept("committed");
      pid_t child = Copy(0);
      if (child == 0) {
        static bufio_writer_t writer;
        bufio_writer_options_t options = {};
        options.durability = BUFIO_DURABILITY_EXIT;
        Require(bufio_writer_open(&writer, own.c_str(), &options) == 0, 1);
        Require(bufio_writer_puts(&writer, "own") == 0, 1);
        is_exit ? exit(8) : static_cast<void>(raise(SIGTERM));
      }
      int ended = StatusOf(child);
      Require(is_exit ? WEXITSTATUS(ended) == 8 : WTERMSIG(ended) == SIGTERM,
              2);
      Require(ReadFile(path_).empty(), 3);
      Require(ReadFile(own) == "own", 4);
      exit(7);
    });
    EXPECT_EQ(WEXITSTATUS(status), 7);
    EXPECT_EQ(ReadFile(path_), "committed");
  }
  unlink(own.c_str());
}

// ---- process 1 of a namespace ----

constexpr int kNotAllowed = 77;

// Runs `body` as process 1. Returns its exit status, 128 and the number of the
// signal that killed it, or kNotAllowed.
int RunAsFirst(const std::function<void()> &body) {
  int status = RunChild([&] {
    Require(unshare(CLONE_NEWPID) == 0 ||
                unshare(CLONE_NEWUSER | CLONE_NEWPID) == 0,
            kNotAllowed);
    pid_t first = fork();
    if (first == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      Require(getpid() == 1, 100);
      body();
      _exit(101);
    }
    int ended = StatusOf(first);
    _exit(WIFSIGNALED(ended) ? 128 + WTERMSIG(ended) : WEXITSTATUS(ended));
  });
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

TEST_F(ExitForkTest, SignalThatFirstProcessIgnoresChangesNothing) {
  for (bufio_durability_t level :
       {BUFIO_DURABILITY_EXIT, BUFIO_DURABILITY_PROCESS}) {
    unlink(path_.c_str());
    int status = RunAsFirst([&] {
      OpenWithHandlers(path_, level);
      Accept("one ");
      errno = 12345;
      raise(SIGTERM);
      Require(errno == 12345, 1);
      Require(ReadFile(path_) == "one ", 2);
      Accept("two ");
      // The handler is there still.
      raise(SIGTERM);
      Require(ReadFile(path_) == "one two ", 3);
      sigset_t mask;
      sigprocmask(SIG_SETMASK, nullptr, &mask);
      Require(sigismember(&mask, SIGTERM) == 0, 4);
      Accept("three");
      Require(bufio_writer_close(&child_writer) == 0, 5);
      _exit(7);
    });
    if (status == kNotAllowed) {
      GTEST_SKIP() << "no namespace of processes may be made here";
    }
    EXPECT_EQ(status, 7);
    EXPECT_EQ(ReadFile(path_), "one two three");
  }
}

TEST_F(ExitForkTest, BusErrorThatFirstProcessIgnoresChangesNothing) {
  const std::string mapped = TempPath("mapped");
  bufio_testing::WriteFile(mapped, "mapped");
  int status = RunAsFirst([&] {
    bufio_mapped_file_t *file = nullptr;
    Require(bufio_mapped_file_open(mapped.c_str(), nullptr, &file) == 0, 1);
    OpenInChild(path_, BUFIO_DURABILITY_EXIT);
    Accept("one ");
    raise(SIGBUS);
    Accept("two ");
    raise(SIGBUS);
    Require(ReadFile(path_) == "one two ", 2);
    Accept("three");
    Require(bufio_writer_close(&child_writer) == 0, 3);
    _exit(7);
  });
  unlink(mapped.c_str());
  if (status == kNotAllowed) {
    GTEST_SKIP() << "no namespace of processes may be made here";
  }
  EXPECT_EQ(status, 7);
}

TEST_F(ExitForkTest, FaultKillsFirstProcessToo) {
  int status = RunAsFirst([&] {
    OpenInChild(path_, BUFIO_DURABILITY_EXIT);
    Accept("committed");
    void *page =
        mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *static_cast<volatile char *>(page) = 1;
  });
  if (status == kNotAllowed) {
    GTEST_SKIP() << "no namespace of processes may be made here";
  }
  EXPECT_EQ(status, 128 + SIGSEGV);
  EXPECT_EQ(ReadFile(path_), "committed");
}

#if defined(__x86_64__)
TEST_F(ExitForkTest, TrapKillsFirstProcessToo) {
  int status = RunAsFirst([&] {
    OpenInChild(path_, BUFIO_DURABILITY_EXIT);
    Accept("committed");
    __asm__ volatile("int3");
  });
  if (status == kNotAllowed) {
    GTEST_SKIP() << "no namespace of processes may be made here";
  }
  EXPECT_EQ(status, 128 + SIGTRAP);
  EXPECT_EQ(ReadFile(path_), "committed");
}
#endif

// Its number is that of its parent.
TEST_F(ExitForkTest, CopyThatIsFirstAsItsParentIsWritesNothing) {
  int status = RunAsFirst([&] {
    OpenInChild(path_, BUFIO_DURABILITY_EXIT);
    Accept("committed");
    pid_t child = Copy(CLONE_NEWPID);
    if (child == 0) {
      Require(getpid() == 1, 9);
      exit(8);
    }
    Require(child > 0, kNotAllowed);
    Require(WEXITSTATUS(StatusOf(child)) == 8, 1);
    Require(ReadFile(path_).empty(), 2);
    exit(7);
  });
  if (status == kNotAllowed) {
    GTEST_SKIP() << "no namespace of processes may be made here";
  }
  EXPECT_EQ(status, 7);
  EXPECT_EQ(ReadFile(path_), "committed");
}

}  // namespace
