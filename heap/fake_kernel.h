// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The kernel as the heap sees it in tests: it refuses what it is told to,
// counts, and lets others take addresses that the heap gave up.

#ifndef MY_ALLOC_HEAP_FAKE_KERNEL_H_
#define MY_ALLOC_HEAP_FAKE_KERNEL_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace heap_testing {

// Memory that is not the heap's, filled.
struct StrangersMemory {
  unsigned char *ptr;
  size_t size_bytes;
};

// What the heap calls in these tests. All state is of one process and thread.
struct FakeKernel {
  // Fails call number `fail_from` (from 1 on) and the `fail_count - 1` after.
  int fail_from = 0;
  int fail_count = 0;
  int calls = 0;
  int failures = 0;  // Of these.
  // Fails these calls always.
  bool refuse_break = false;
  bool refuse_commit = false;
  bool refuse_discard = false;
  bool refuse_unmap = false;
  bool refuse_guard = false;  // To make one; the removal of none succeeds.
  size_t most_forbidden_pages = SIZE_MAX;
  size_t forbidden_pages = 0;
  size_t largest_map_bytes = SIZE_MAX;
  int refusals = 0;  // Of these.
  size_t page_bytes = 4096;
  size_t discarded_bytes = 0;  // In all.
  int break_moves = 0;
  size_t mapped_bytes = 0;  // Now, reservations included.
  size_t lost_bytes = 0;    // Of these, that were to be unmapped and were not.
  std::vector<StrangersMemory> strangers;  // Where moves failed.
  // Runs before the break is raised.
  std::function<void()> before_break_rise;

  bool Fails(bool is_refused) {
    ++calls;
    refusals += is_refused;
    const bool is_chosen = calls >= fail_from && calls - fail_from < fail_count;
    failures += is_chosen;
    return is_refused || is_chosen;
  }
};

extern FakeKernel fake;

// Puts a new fake in the kernel's place, for good: in a child process.
void UseFakeKernel();

}  // namespace heap_testing

#endif  // MY_ALLOC_HEAP_FAKE_KERNEL_H_
