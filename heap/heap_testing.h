// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the tests of heap share beside heap_patterns.h: a child process for
// tests that need a heap nobody has used, or leave one nobody should use.

#ifndef MY_ALLOC_HEAP_HEAP_TESTING_H_
#define MY_ALLOC_HEAP_HEAP_TESTING_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "heap/heap_patterns.h"

namespace heap_testing {

// Runs `body` in a child process. Failed expectations in it, a crash or an
// early exit fail the test that called.
void RunInChild(const std::function<void()> &body);

// While it lives, what the process writes to stderr goes to memory.
class CapturedStderr {
 public:
  CapturedStderr();
  ~CapturedStderr();
  CapturedStderr(const CapturedStderr &) = delete;
  CapturedStderr &operator=(const CapturedStderr &) = delete;

  // Returns what was written since the last call.
  std::string Take();

 private:
  int saved_fd_;
  int memory_fd_;
};

// Returns sizes around every edge at which the heap changes its ways: classes,
// small to medium, units, heap pages, medium to mapped.
std::vector<size_t> EdgeSizes();

}  // namespace heap_testing

#endif  // MY_ALLOC_HEAP_HEAP_TESTING_H_
