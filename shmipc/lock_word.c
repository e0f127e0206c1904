// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A robust lock in 32 bits (region_layout.h has them):
//
//   0               free
//   owner           taken
//   owner W         taken, and somebody may be asleep
//   DIED [W]        free; the last owner died
//   owner DIED [W]  taken by one who was told so and has not repaired yet
//   given up        not recoverable
//
// 1. Only the owner takes its name out of the word, or whoever saw that the
//    kernel says it is dead, by a compare-and-swap from the very value.
// 2. Whoever goes to sleep has W in the word, which the kernel compares.
// Whoever
//    frees the word with W in it wakes one. The one that was woken puts W back
//    when it takes the word, since it does not know who else sleeps; and so
//    does one that gives up waiting, before it leaves.
// 3. (2) loses a wake-up when somebody is killed between two of its steps. So
// no
//    sleep is longer than a slice, after which the word is looked at again, and
//    its owner.
//
// A live owner is never robbed: a thread's name leaves the word before the
// thread leaves its record, and a record's generation is in the name. (14 bits
// of it: a waiter held up between its look at the owner and its
// compare-and-swap while the record changes hands 16,384 times could take the
// lock from the last of them.)

#include "shmipc/lock_word.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>

#include "shmipc/futex.h"

static inline uint32_t load(const uint32_t *word) {
  return __atomic_load_n(word, __ATOMIC_RELAXED);
}

// Acquire: pairs with the release of the last owner. Sequentially consistent
// for writers: see rwlock.c.
static inline bool change(uint32_t *word, uint32_t from, uint32_t to) {
  return __atomic_compare_exchange_n(word, &from, to, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_RELAXED);
}

static inline uint32_t index_of(uint32_t word) {
  return word & SHMIPC_WORD_INDEX;
}

// Tries once to take a word without an owner. 1 if it was not possible.
static int try_take(const shmipc_self_t *self, uint32_t *word, uint32_t seen,
                    uint32_t waiters) {
  assert(index_of(seen) == 0);
  uint32_t kept = seen & (SHMIPC_WORD_DIED | SHMIPC_WORD_WAITERS);
  if (!change(word, seen, self->id | kept | waiters)) {
    return 1;
  }
  return (seen & SHMIPC_WORD_DIED) != 0 ? -EOWNERDEAD : 0;
}

static int spin(const shmipc_self_t *self, uint32_t *word) {
  for (int i = 0; i < SHMIPC_SPINS; i++) {
    uint32_t seen = load(word);
    if (index_of(seen) == 0) {
      int status = try_take(self, word, seen, 0);
      if (status <= 0) {
        return status;
      }
    }
    // Somebody sleeps already: so it takes longer.
    if ((seen & (SHMIPC_WORD_WAITERS | SHMIPC_WORD_DIED)) != 0) {
      break;
    }
    shmipc_pause();
  }
  return 1;
}

// Sleeps while the word is `seen`, which has an owner. Returns 0 to look again,
// -ETIMEDOUT, or 1: the owner is dead.
static int sleep_on(const shmipc_region_t *region, uint32_t *word,
                    uint32_t *seen, int64_t deadline) {
  uint32_t marked = *seen | SHMIPC_WORD_WAITERS;
  if (*seen != marked && !change(word, *seen, marked)) {
    return 0;
  }
  *seen = marked;
  if (shmipc_futex_wait(word, marked, deadline) != -ETIMEDOUT ||
      load(word) != marked) {
    return 0;
  }
  if (!shmipc_owner_is_alive(region, marked)) {
    return 1;
  }
  return shmipc_has_passed(deadline) ? -ETIMEDOUT : 0;
}

int shmipc_word_lock_slow(shmipc_region_t *region, const shmipc_self_t *self,
                          uint32_t *word, int64_t deadline) {
  uint32_t waiters = 0;
  int status = spin(self, word);
  while (status == 1) {
    uint32_t seen = load(word);
    if (index_of(seen) == SHMIPC_WORD_GIVEN_UP) {
      return -ENOTRECOVERABLE;
    }
    if (index_of(seen) == 0) {
      status = try_take(self, word, seen, waiters);
      continue;
    }
    if ((seen & SHMIPC_WORD_OWNER) == self->id) {
      return -EDEADLK;
    }
    int slept = sleep_on(region, word, &seen, deadline);
    waiters = SHMIPC_WORD_WAITERS;
    if (slept < 0) {
      return slept;
    }
    if (slept == 1 &&
        change(word, seen, self->id | SHMIPC_WORD_DIED | SHMIPC_WORD_WAITERS)) {
      return -EOWNERDEAD;
    }
  }
  return status;
}

int shmipc_word_wait_free(shmipc_region_t *region, const shmipc_self_t *self,
                          uint32_t *word, int64_t deadline) {
  for (;;) {
    uint32_t seen = load(word);
    if (index_of(seen) == SHMIPC_WORD_GIVEN_UP) {
      return -ENOTRECOVERABLE;
    }
    if (index_of(seen) == 0) {
      return 0;
    }
    if ((seen & SHMIPC_WORD_OWNER) == self->id) {
      return -EDEADLK;
    }
    int slept = sleep_on(region, word, &seen, deadline);
    if (slept < 0) {
      return slept;
    }
    // The dead owner's word becomes free, for readers and for one writer.
    if (slept == 1 && change(word, seen, SHMIPC_WORD_DIED)) {
      shmipc_futex_wake(word, INT_MAX);
    }
  }
}

int shmipc_word_unlock_slow(const shmipc_self_t *self, uint32_t *word) {
  uint32_t seen = load(word);
  uint32_t next;
  do {
    if ((seen & SHMIPC_WORD_OWNER) != self->id) {
      return -EPERM;
    }
    next = (seen & SHMIPC_WORD_DIED) != 0 ? SHMIPC_WORD_GIVEN_UP : 0;
    // Release: pairs with the acquire of the next owner.
  } while (!__atomic_compare_exchange_n(word, &seen, next, false,
                                        __ATOMIC_RELEASE, __ATOMIC_RELAXED));
  if ((seen & SHMIPC_WORD_WAITERS) != 0) {
    shmipc_futex_wake(word, next == 0 ? 1 : INT_MAX);
  }
  return 0;
}

int shmipc_word_consistent(const shmipc_self_t *self, uint32_t *word) {
  uint32_t seen = load(word);
  do {
    if ((seen & SHMIPC_WORD_OWNER) != self->id) {
      return -EPERM;
    }
    if ((seen & SHMIPC_WORD_DIED) == 0) {
      return -EINVAL;
    }
    // Release: the repair comes before, for those that read.
  } while (!__atomic_compare_exchange_n(word, &seen, seen & ~SHMIPC_WORD_DIED,
                                        false, __ATOMIC_RELEASE,
                                        __ATOMIC_RELAXED));
  return 0;
}
