// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/hardened_testing.h"

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "gtest/gtest.h"
#include "heap/heap.h"
#include "heap/heap_testing.h"

namespace heap_testing {

void RunHardened(const char *list, const std::function<void()> &body) {
  RunInChild([&] {
    setenv("HEAP_HARDEN", list, 1);
    body();
    EXPECT_STREQ(heap_check(), nullptr);
  });
}

void ReportSilently() {
  setenv("HEAP_ON_ERROR", "report", 1);
  EXPECT_NE(freopen("/dev/null", "w", stderr), nullptr);
}

void ExpectFault(uintptr_t address) {
  EXPECT_EXIT((void)*reinterpret_cast<volatile char *>(address),
              testing::KilledBySignal(SIGSEGV), "");
}

bool WriteByte(void *ptr) {
  static int fds[2] = {-1, -1};
  if (fds[0] < 0) {
    EXPECT_EQ(pipe(fds), 0);
  }
  const char byte = 0x5a;
  EXPECT_EQ(write(fds[1], &byte, 1), 1);
  const bool is_done = read(fds[0], ptr, 1) == 1;
  char rest;
  EXPECT_TRUE(is_done || read(fds[0], &rest, 1) == 1);
  return is_done;
}

}  // namespace heap_testing
