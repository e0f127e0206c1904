// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A count of notifications, and in bit 0 whether somebody may be asleep.
//
// A waiter sleeps only while the word is its key with bit 0, which it has set
// before; a notifier adds 2 first and wakes if it saw the bit. So a
// notification after the key was read either changes the word before the kernel
// compares it, or finds the sleeper.
//
// Whoever notifies clears the bit with the addition, and wakes. To wake one,
// two are woken: if there were not two, nobody else sleeps, and the bit may
// stay cleared; if there were, others may, and the bit is put back. A
// notification that came in between saw no bit: then all are woken if it is in
// the count; one more in any case, since ports that see no bit count nothing
// (shmipc_port_notify). So a bit without a sleeper costs one system call at
// most, also one that a dead waiter left.
//
// The count has 31 bits: a waiter that is held up between its key and its sleep
// for exactly 2^31 notifications misses them.

#include "shmipc/event.h"

#include <errno.h>
#include <limits.h>

#include "shmipc/futex.h"
#include "shmipc/region_internal.h"
#include "shmipc/thread_record.h"

#define WAITERS 1u

uint32_t shmipc_event_key(const shmipc_event_t *event) {
  // Acquire: pairs with the additions.
  return __atomic_load_n(&event->word, __ATOMIC_ACQUIRE) & ~WAITERS;
}

static inline int check(const shmipc_region_t *region,
                        const shmipc_event_t *event) {
  uint64_t offset;
  if (__builtin_expect(region->serial == 0 || region->read_only, 0)) {
    return region->serial == 0 ? region->status : -EROFS;
  }
  return shmipc_offset_of(region, event, sizeof(*event), &offset) ? 0 : -EINVAL;
}

static int wait_until(shmipc_event_t *event, uint32_t key, int64_t deadline) {
  for (int i = 0; i < SHMIPC_SPINS; i++) {
    if (shmipc_event_key(event) != key) {
      return 0;
    }
    shmipc_pause();
  }
  for (;;) {
    // Acquire: pairs with the additions.
    uint32_t seen = __atomic_load_n(&event->word, __ATOMIC_ACQUIRE);
    if ((seen & ~WAITERS) != key) {
      return 0;
    }
    if ((seen & WAITERS) == 0 &&
        !__atomic_compare_exchange_n(&event->word, &seen, seen | WAITERS, false,
                                     __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      continue;
    }
    if (shmipc_has_passed(deadline)) {
      return -ETIMEDOUT;
    }
    shmipc_futex_wait(&event->word, key | WAITERS, deadline);
  }
}

int shmipc_event_wait(shmipc_region_t *region, shmipc_event_t *event,
                      uint32_t key, int64_t timeout_ns) {
  int status = check(region, event);
  if (status < 0) {
    return status;
  }
  return wait_until(event, key & ~WAITERS, shmipc_deadline(timeout_ns));
}

// Returns the word before, and in `out_next` the one after.
static uint32_t add_and_clear(shmipc_event_t *event, uint32_t *out_next) {
  uint32_t seen = __atomic_load_n(&event->word, __ATOMIC_RELAXED);
  do {
    *out_next = (seen + 2) & ~WAITERS;
    // Release: pairs with the loads of those that wait.
  } while (!__atomic_compare_exchange_n(&event->word, &seen, *out_next, false,
                                        __ATOMIC_RELEASE, __ATOMIC_RELAXED));
  return seen;
}

int shmipc_event_notify_one(shmipc_region_t *region, shmipc_event_t *event) {
  int status = check(region, event);
  if (status < 0) {
    return status;
  }
  uint32_t next;
  uint32_t seen = add_and_clear(event, &next);
  if ((seen & WAITERS) == 0 || shmipc_futex_wake(&event->word, 2) < 2) {
    return 0;
  }
  uint32_t now =
      __atomic_fetch_or(&event->word, WAITERS, __ATOMIC_RELAXED) & ~WAITERS;
  shmipc_futex_wake(&event->word, now != next ? INT_MAX : 1);
  return 0;
}

int shmipc_event_notify_all(shmipc_region_t *region, shmipc_event_t *event) {
  int status = check(region, event);
  if (status < 0) {
    return status;
  }
  uint32_t next;
  if ((add_and_clear(event, &next) & WAITERS) != 0) {
    shmipc_futex_wake(&event->word, INT_MAX);
  }
  return 0;
}

int shmipc_condition_wait(shmipc_region_t *region,
                          shmipc_condition_t *condition, shmipc_mutex_t *mutex,
                          int64_t timeout_ns) {
  int status = check(region, &condition->event);
  if (status < 0) {
    return status;
  }
  int64_t deadline = shmipc_deadline(timeout_ns);
  // Under the mutex: whoever signals after we have left it has another count.
  uint32_t key = shmipc_event_key(&condition->event);
  status = shmipc_mutex_unlock(region, mutex);
  if (status < 0) {
    return status;
  }
  int waited = wait_until(&condition->event, key, deadline);
  status = shmipc_mutex_lock(region, mutex, SHMIPC_FOREVER);
  return status != 0 ? status : waited;
}

int shmipc_condition_signal(shmipc_region_t *region,
                            shmipc_condition_t *condition) {
  return shmipc_event_notify_one(region, &condition->event);
}

int shmipc_condition_broadcast(shmipc_region_t *region,
                               shmipc_condition_t *condition) {
  return shmipc_event_notify_all(region, &condition->event);
}
