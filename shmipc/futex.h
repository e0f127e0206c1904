// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Waiting for a word of shared memory to change, and deadlines. Internal.

#ifndef MY_ALLOC_SHMIPC_FUTEX_H_
#define MY_ALLOC_SHMIPC_FUTEX_H_

#include <errno.h>
#include <linux/futex.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shmipc/shmipc.h"

// No wait is longer: whoever was to wake us may have been killed before it did.
#define SHMIPC_SLICE_NS ((int64_t)2000000)
// Looks at a word before going to sleep.
#define SHMIPC_SPINS 100

static inline int64_t shmipc_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

// A point in time; SHMIPC_FOREVER stays so, and 0 is long ago.
static inline int64_t shmipc_deadline(int64_t timeout_ns) {
  int64_t deadline;
  if (timeout_ns == 0) {
    return 0;
  }
  if (timeout_ns < 0 ||
      __builtin_add_overflow(shmipc_now_ns(), timeout_ns, &deadline)) {
    return SHMIPC_FOREVER;
  }
  return deadline;
}

static inline bool shmipc_has_passed(int64_t deadline) {
  return deadline >= 0 && shmipc_now_ns() >= deadline;
}

// Waits for one slice of that length, or until the deadline, while the word is
// `expected`. Returns 0 when woken, -ETIMEDOUT, -EAGAIN (another value),
// -EINTR.
static inline int shmipc_futex_wait_slice(const uint32_t *word,
                                          uint32_t expected, int64_t deadline,
                                          int64_t slice) {
  if (deadline >= 0) {
    int64_t left = deadline - shmipc_now_ns();
    if (left <= 0) {
      return -ETIMEDOUT;
    }
    slice = left < slice ? left : slice;
  }
  struct timespec timeout = {.tv_sec = 0, .tv_nsec = slice};
  int saved = errno;
  long result = syscall(SYS_futex, word, FUTEX_WAIT, expected, &timeout, 0, 0);
  int status = result == 0 ? 0 : -errno;
  errno = saved;
  return status;
}

static inline int shmipc_futex_wait(const uint32_t *word, uint32_t expected,
                                    int64_t deadline) {
  return shmipc_futex_wait_slice(word, expected, deadline, SHMIPC_SLICE_NS);
}

// Returns how many were woken; 0 on any failure.
static inline int shmipc_futex_wake(const uint32_t *word, int count) {
  int saved = errno;
  long result = syscall(SYS_futex, word, FUTEX_WAKE, count, 0, 0, 0);
  errno = saved;
  return result > 0 ? (int)result : 0;
}

static inline void shmipc_pause(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

#endif  // MY_ALLOC_SHMIPC_FUTEX_H_
