// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A counter in one word, with a bit that says that somebody may be asleep.
//
// A waiter that finds 0 sets the bit and sleeps while the word is just that. A
// post that sees the bit clears it and wakes one, who puts the bit back when it
// takes a unit or gives up, because it does not know who else sleeps, and wakes
// the next if it leaves units behind. Killed in between: no sleep is longer
// than a slice.

#include "shmipc/semaphore.h"

#include <errno.h>
#include <stdbool.h>

#include "shmipc/futex.h"
#include "shmipc/region_internal.h"
#include "shmipc/thread_record.h"

#define VALUE SHMIPC_SEMAPHORE_VALUE_MAX
#define WAITERS (~SHMIPC_SEMAPHORE_VALUE_MAX)

int shmipc_semaphore_init(shmipc_semaphore_t *semaphore, uint32_t value) {
  if (value > SHMIPC_SEMAPHORE_VALUE_MAX) {
    return -EINVAL;
  }
  __atomic_store_n(&semaphore->word, value, __ATOMIC_RELEASE);
  return 0;
}

static inline int check(const shmipc_region_t *region,
                        const shmipc_semaphore_t *semaphore) {
  uint64_t offset;
  if (__builtin_expect(region->serial == 0 || region->read_only, 0)) {
    return region->serial == 0 ? region->status : -EROFS;
  }
  return shmipc_offset_of(region, semaphore, sizeof(*semaphore), &offset)
             ? 0
             : -EINVAL;
}

static bool try_take(uint32_t *word, bool has_slept) {
  uint32_t waiters = has_slept ? WAITERS : 0;
  uint32_t seen = __atomic_load_n(word, __ATOMIC_RELAXED);
  while ((seen & VALUE) != 0) {
    // Acquire: pairs with the release of the post.
    if (__atomic_compare_exchange_n(word, &seen, (seen - 1) | waiters, false,
                                    __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
      if (has_slept && ((seen - 1) & VALUE) != 0) {
        shmipc_futex_wake(word, 1);
      }
      return true;
    }
  }
  return false;
}

static int wait_slow(uint32_t *word, int64_t deadline) {
  for (int i = 0; i < SHMIPC_SPINS; i++) {
    if (try_take(word, false)) {
      return 0;
    }
    shmipc_pause();
  }
  bool has_slept = false;
  while (!try_take(word, has_slept)) {
    uint32_t seen = 0;
    // Also when the time is up: the wake-up that we got may have been meant for
    // another who sleeps.
    if (!__atomic_compare_exchange_n(word, &seen, WAITERS, false,
                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED) &&
        seen != WAITERS) {
      continue;
    }
    if (shmipc_has_passed(deadline)) {
      return -ETIMEDOUT;
    }
    shmipc_futex_wait(word, WAITERS, deadline);
    has_slept = true;
  }
  return 0;
}

int shmipc_semaphore_wait(shmipc_region_t *region,
                          shmipc_semaphore_t *semaphore, int64_t timeout_ns) {
  int status = check(region, semaphore);
  if (status < 0) {
    return status;
  }
  if (try_take(&semaphore->word, false)) {
    return 0;
  }
  return timeout_ns == 0
             ? -ETIMEDOUT
             : wait_slow(&semaphore->word, shmipc_deadline(timeout_ns));
}

int shmipc_semaphore_post(shmipc_region_t *region,
                          shmipc_semaphore_t *semaphore) {
  int status = check(region, semaphore);
  if (status < 0) {
    return status;
  }
  uint32_t seen = __atomic_load_n(&semaphore->word, __ATOMIC_RELAXED);
  do {
    if ((seen & VALUE) == VALUE) {
      return -EOVERFLOW;
    }
    // Release: pairs with the acquire of who takes it.
  } while (!__atomic_compare_exchange_n(&semaphore->word, &seen,
                                        (seen & VALUE) + 1, false,
                                        __ATOMIC_RELEASE, __ATOMIC_RELAXED));
  if ((seen & WAITERS) != 0) {
    shmipc_futex_wake(&semaphore->word, 1);
  }
  return 0;
}

uint32_t shmipc_semaphore_value(const shmipc_semaphore_t *semaphore) {
  return __atomic_load_n(&semaphore->word, __ATOMIC_RELAXED) & VALUE;
}
