// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the tests of level `exit` share: children whose end is looked at.

#ifndef MY_ALLOC_BUFIO_EXIT_TESTING_H_
#define MY_ALLOC_BUFIO_EXIT_TESTING_H_

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "bufio/bufio_testing.h"
#include "bufio/writer.h"
#include "gtest/gtest.h"

namespace bufio_testing {

// ---- in a child, which ends if it cannot ----

// Outlives `main`, as what is flushed by exit must.
inline bufio_writer_t child_writer;

inline void OpenInChild(const std::string &path, bufio_durability_t level) {
  bufio_writer_options_t options = {};
  options.durability = level;
  options.append = level == BUFIO_DURABILITY_PROCESS;
  options.buffer_bytes = 4096;
  if (bufio_writer_open(&child_writer, path.c_str(), &options) != 0) {
    _exit(100);
  }
}

inline void AttachInChild(int descriptor, bool return_would_block = false) {
  bufio_writer_options_t options = {};
  options.durability = BUFIO_DURABILITY_EXIT;
  options.return_would_block = return_would_block;
  if (bufio_writer_attach(&child_writer, descriptor, &options) != 0) {
    _exit(100);
  }
}

inline void Accept(const std::string &bytes) {
  if (bufio_writer_write(&child_writer, bytes.data(), bytes.size()) != 0) {
    _exit(102);
  }
}

// ---- and its parent ----

// How a child says that it has got somewhere.
class Sign {
 public:
  Sign() {
    EXPECT_EQ(pipe(ends_), 0);
  }
  ~Sign() {
    close(ends_[0]);
    close(ends_[1]);
  }
  Sign(const Sign &) = delete;
  Sign &operator=(const Sign &) = delete;

  // In the child, async-signal-safe.
  void Give() const {
    (void)!write(ends_[1], "w", 1);
  }
  void Await() const {
    char byte;
    ASSERT_TRUE(IsReadable(ends_[0])) << "no sign of the child";
    ASSERT_EQ(read(ends_[0], &byte, 1), 1);
  }

 private:
  int ends_[2];
};

inline void ExpectKilledBy(int status, int signal) {
  EXPECT_TRUE(WIFSIGNALED(status)) << status;
  EXPECT_EQ(WTERMSIG(status), signal);
}

inline void ExpectKillable(pid_t child) {
  ASSERT_EQ(kill(child, SIGTERM), 0);
  ExpectKilledBy(StatusOf(child), SIGTERM);
}

// ---- readers that do not read ----

// Until a write would wait.
inline void Fill(int descriptor) {
  int flags = fcntl(descriptor, F_GETFL);
  ASSERT_EQ(fcntl(descriptor, F_SETFL, flags | O_NONBLOCK), 0);
  char bytes[512] = {};
  while (write(descriptor, bytes, sizeof(bytes)) > 0) {
  }
  ASSERT_EQ(errno, EAGAIN);
  ASSERT_EQ(fcntl(descriptor, F_SETFL, flags), 0);
}

// Full, so that a write to it waits; the ends of it.
inline void MakeFullPipe(int type, int ends[2]) {
  ASSERT_EQ(type == 0 ? pipe(ends) : socketpair(AF_UNIX, type, 0, ends), 0);
  Fill(ends[1]);
}

inline std::string ReadToEnd(int descriptor) {
  std::string got;
  char piece[1000];
  ssize_t count;
  while ((count = read(descriptor, piece, sizeof(piece))) > 0) {
    got.append(piece, static_cast<size_t>(count));
  }
  return got;
}

class ExitTest : public testing::Test {
 protected:
  // Sanitizers and the test's runner have handlers of their own.
  static void SetUpTestSuite() {
    for (int number = 1; number < 32; number++) {
      signal(number, SIG_DFL);
    }
  }

  ~ExitTest() override {
    unlink(path_.c_str());
    unlink((path_ + ".bufio-journal").c_str());
  }

  std::string path_ = TempPath("exit");
};

}  // namespace bufio_testing

#endif  // MY_ALLOC_BUFIO_EXIT_TESTING_H_
