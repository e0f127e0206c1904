// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/heap_testing.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <set>

#include "gtest/gtest.h"
#include "heap/mapped.h"
#include "heap/size_class.h"

namespace heap_testing {

void RunInChild(const std::function<void()> &body) {
  std::fflush(stdout);
  std::fflush(stderr);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const testing::TestResult &result =
        *testing::UnitTest::GetInstance()->current_test_info()->result();
    const int old_count = result.total_part_count();
    body();
    std::fflush(stdout);
    std::fflush(stderr);
    _exit(result.total_part_count() > old_count ? 1 : 0);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
      << (WIFSIGNALED(status) ? "the child died of signal "
                              : "the child's wait status is ")
      << (WIFSIGNALED(status) ? WTERMSIG(status) : status);
}

CapturedStderr::CapturedStderr()
    : saved_fd_(dup(STDERR_FILENO)), memory_fd_(memfd_create("stderr", 0)) {
  if (saved_fd_ < 0 || memory_fd_ < 0 ||
      dup2(memory_fd_, STDERR_FILENO) != STDERR_FILENO) {
    std::perror("CapturedStderr");
    std::abort();
  }
}

CapturedStderr::~CapturedStderr() {
  dup2(saved_fd_, STDERR_FILENO);
  close(saved_fd_);
  close(memory_fd_);
}

std::string CapturedStderr::Take() {
  std::string text;
  char buffer[4096];
  lseek(memory_fd_, 0, SEEK_SET);
  for (ssize_t n; (n = read(memory_fd_, buffer, sizeof(buffer))) > 0;) {
    text.append(buffer, static_cast<size_t>(n));
  }
  EXPECT_EQ(ftruncate(memory_fd_, 0), 0);
  lseek(memory_fd_, 0, SEEK_SET);
  return text;
}

std::vector<size_t> EdgeSizes() {
  std::set<size_t> edges = {0,
                            2048,
                            4096,
                            16384,
                            65536,
                            1 << 20,
                            HEAP_MAPPED_GROWN_BYTES / 2,
                            HEAP_MAPPED_GROWN_BYTES,
                            9 << 20,
                            HEAP_MAPPED_MIN_BYTES};
  for (const heap_class_info_t &info : heap_class_info) {
    edges.insert(info.size_bytes);
  }
  edges.insert(HEAP_SMALL_MAX_BYTES + 1024);
  std::set<size_t> sizes;
  for (size_t edge : edges) {
    sizes.insert(edge == 0 ? 0 : edge - 1);
    sizes.insert(edge);
    sizes.insert(edge + 1);
  }
  return {sizes.begin(), sizes.end()};
}

}  // namespace heap_testing
