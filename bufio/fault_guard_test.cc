// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Mapped files and writers of level `exit` both handle SIGBUS; each case runs
// in a child, because handlers are installed once a process.

#include "bufio/fault_guard.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>

#include "bufio/bufio_testing.h"
#include "bufio/mapped_file.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace {

using bufio_testing::ReadFile;
using bufio_testing::TempPath;

class FaultGuardTest : public testing::Test {
 protected:
  FaultGuardTest() {
    bufio_testing::WriteFile(mapped_path_, "mapped");
  }

  ~FaultGuardTest() override {
    unlink(path_.c_str());
    unlink(mapped_path_.c_str());
  }

  int InChild(const std::function<void()> &body) {
    pid_t child = fork();
    if (child == 0) {
      struct rlimit no_core = {0, 0};
      setrlimit(RLIMIT_CORE, &no_core);
      // Sanitizers and the test's runner have handlers of their own.
      signal(SIGBUS, SIG_DFL);
      body();
      _exit(0);
    }
    int status = 0;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return status;
  }

  void OpenMapped() {
    bufio_mapped_file_t *file = nullptr;
    if (bufio_mapped_file_open(mapped_path_.c_str(), nullptr, &file) != 0) {
      _exit(100);
    }
  }

  void OpenWriter() {
    static bufio_writer_t writer;
    bufio_writer_options_t options = {};
    options.durability = BUFIO_DURABILITY_EXIT;
    if (bufio_writer_open(&writer, path_.c_str(), &options) != 0 ||
        bufio_writer_puts(&writer, "accepted") != 0) {
      _exit(101);
    }
  }

  std::string path_ = TempPath("guarded");
  std::string mapped_path_ = TempPath("guard");
};

TEST_F(FaultGuardTest, BusErrorFlushesWhenTheMappedFileWasFirst) {
  int status = InChild([&] {
    OpenMapped();
    OpenWriter();
    raise(SIGBUS);
  });
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGBUS);
  EXPECT_EQ(ReadFile(path_), "accepted");
}

TEST_F(FaultGuardTest, BusErrorFlushesWhenTheWriterWasFirst) {
  int status = InChild([&] {
    OpenWriter();
    OpenMapped();
    raise(SIGBUS);
  });
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGBUS);
  EXPECT_EQ(ReadFile(path_), "accepted");
}

TEST_F(FaultGuardTest, IgnoredSignalStaysIgnored) {
  int status = InChild([&] {
    signal(SIGBUS, SIG_IGN);
    OpenMapped();
    raise(SIGBUS);
    _exit(7);
  });
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 7);
}

TEST_F(FaultGuardTest, RealTimeSignalsFlushAndStillKill) {
  for (int number : {SIGRTMIN, SIGRTMAX}) {
    int status = InChild([&] {
      OpenWriter();
      raise(number);
    });
    EXPECT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(WTERMSIG(status), number);
    EXPECT_EQ(ReadFile(path_), "accepted");
  }
}

}  // namespace
