// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Children that are forked while a file is opened or replayed, and what
// handlers of fork may do.

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "bufio/bufio_testing.h"
#include "bufio/journal.h"
#include "bufio/writer.h"
#include "bufio/writer_testing.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::Call;
using bufio_testing::FaultyKernel;
using bufio_testing::ReadFile;
using bufio_testing::RunChild;
using bufio_testing::StatusOf;
using bufio_testing::WriteFile;

// A child that lives on with a copy of all that is open, as of a thread that
// forks while another one opens.
class LastingChild {
 public:
  ~LastingChild() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      EXPECT_EQ(waitpid(pid_, nullptr, 0), pid_);
    }
  }

  // Before the `number`th call, and fails that with `error`, unless it is 0, or
  // the call is flock(2), which does not fail to let go.
  void ForkAt(FaultyKernel *kernel, uint64_t number, int64_t error) {
    kernel->decide = [=](Call call, size_t) -> int64_t {
      if (kernel->calls() != number || pid_ >= 0) {
        return 0;
      }
      pid_ = fork();
      if (pid_ == 0) {
        pause();
      }
      return call == Call::kLock ? 0 : error;
    };
  }

  bool is_there() const {
    return pid_ > 0;
  }

 private:
  pid_t pid_ = -1;
};

class WriterForkTest : public bufio_testing::WriterOpenTest {};

TEST_F(WriterForkTest, ChildForkedDuringAReplayDoesNotKeepTheLock) {
  for (int64_t error : {0, -EIO}) {
    bool is_over = false;
    for (uint64_t number = 1; !is_over; number++) {
      unlink(path_.c_str());
      unlink(side_.c_str());
      KillAWriterOf("accepted");
      LastingChild child;
      {
        FaultyKernel kernel;
        child.ForkAt(&kernel, number, error);
        (void)!bufio_journal_replay(path_.c_str(), nullptr, nullptr);
      }
      is_over = !child.is_there();
      ASSERT_EQ(Open(process_), 0) << number << ", error " << error;
      EXPECT_EQ(bufio_writer_close(&writer_), 0);
      EXPECT_EQ(ReadFile(path_), "accepted");
    }
  }
}

TEST_F(WriterForkTest, ChildForkedDuringAnOpenThatFailsDoesNotKeepTheLock) {
  for (int level = 0; level < 4; level++) {
    for (bool append : {false, true}) {
      bool is_over = false;
      for (uint64_t number = 1; !is_over; number++) {
        WriteFile(path_, "");
        LastingChild child;
        {
          FaultyKernel kernel;
          child.ForkAt(&kernel, number, -EIO);
          bufio_writer_options_t options = {};
          options.durability = static_cast<bufio_durability_t>(level);
          options.append = append;
          if (Open(options) == 0) {
            (void)bufio_writer_close(&writer_);
          }
        }
        is_over = !child.is_there();
        ASSERT_EQ(Open(process_), 0) << number << ", level " << level;
        EXPECT_EQ(bufio_writer_close(&writer_), 0);
      }
    }
  }
}

// ---- handlers of the program ----

bufio_writer_t *closed_in_handler = nullptr;

void CloseInHandler() {
  if (closed_in_handler != nullptr) {
    (void)!bufio_writer_close(closed_in_handler);
    closed_in_handler = nullptr;
  }
}

// Before `main`, so before any writer is opened.
const int is_installed = pthread_atfork(nullptr, nullptr, CloseInHandler);

TEST_F(WriterForkTest, CloseInAHandlerOfForkWritesNothingOfTheParents) {
  ASSERT_EQ(is_installed, 0);
  for (int level = 0; level < 4; level++) {
    unlink(path_.c_str());
    bufio_writer_options_t options = {};
    options.durability = static_cast<bufio_durability_t>(level);
    int status = RunChild([&] {
      if (Open(options) != 0 || bufio_writer_puts(&writer_, "parent's") != 0) {
        _exit(1);
      }
      closed_in_handler = &writer_;
      pid_t child = fork();
      if (child == 0) {
        _exit(8);
      }
      closed_in_handler = nullptr;
      if (WEXITSTATUS(StatusOf(child)) != 8) {
        _exit(2);
      }
      _exit(bufio_writer_close(&writer_) == 0 ? 7 : 3);
    });
    EXPECT_EQ(WEXITSTATUS(status), 7) << "level " << level;
    EXPECT_EQ(ReadFile(path_), "parent's");
  }
}

}  // namespace
