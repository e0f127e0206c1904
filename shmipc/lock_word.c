// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A robust lock in 32 bits (region_layout.h has them). S is SHARED:
//
//   0                 free, and nobody has had it; or S
//   S                 free
//   owner             biased to a thread, which may have it or not
//   owner W           the same, and another thread wants it
//   owner S           taken
//   owner S W         taken, and somebody may be asleep
//   S DIED [W]        free; the last owner died
//   owner S DIED [W]  taken by one who was told so and has not repaired yet
//   given up          not recoverable
//
// 1. Only the owner takes its name out of the word, or whoever saw that the
//    kernel says it is dead, by a compare-and-swap from the very value.
// 2. Whoever goes to sleep has W in the word, which the kernel compares.
//    Whoever frees the word with W in it wakes one. The one that was woken puts
//    W back when it takes the word, since it does not know who else sleeps; and
//    so does one that gives up waiting, before it leaves.
// 3. (2) loses a wake-up when somebody is killed between two of its steps. So
//    no sleep is longer than a slice, after which the word is looked at again,
//    and its owner.
//
// A live owner is never robbed: a thread's name leaves the word before the
// thread leaves its record, and a record's generation is in the name. (13 bits
// of it: a waiter held up between its look at the owner and its
// compare-and-swap while the record changes hands 8,192 times could take the
// lock from the last of them.)
//
// Most mutexes are one thread's for long, and a compare-and-swap is most of
// what they cost. So the first to take one biases it to itself (mutex.c), and
// from then on has it as long as it has a note of it, which is a plain store:
//
//   the thread that is named      another that wants it
//   store or clear the note       put W into the word
//   load the word                 barrier in the first one: membarrier(2)
//   as it was: locked, unlocked   load the notes
//
// 4. At least one of them sees the other, as each stores before it looks, and
//    the barrier falls before the load of the one or after its store (barrier.h
//    has more about that call). One that may not call it sleeps for 1 ms
//    instead: no store waits so long.
// 5. Both then go on with a compare-and-swap from the very word with W. The
//    other, if it saw the note, makes the word the first one's, S; otherwise
//    its own. The first, if it wants the lock, makes the word its own, S, or
//    finds that the other has done so; if it wants to be rid of it, S.
// 6. S stays: a word is never biased again. To take turns with a bias would be
//    16 us a turn.
// 7. A thread that ends with a note leaves the word with DIED, before its
//    record's generation changes. So a biased word whose record is another's
//    by now was not held.
//
// K. Kawachiya and others, "Lock Reservation" (OOPSLA 2002), and D. Dice and
// others, "Quickly Reacquirable Locks" (2003), do this in a virtual machine.

#include "shmipc/lock_word.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "shmipc/barrier.h"
#include "shmipc/futex.h"

// Instead of a barrier in others.
#define SETTLE_NS ((int64_t)1000000)

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
  if (!change(word, seen, self->id | SHMIPC_WORD_SHARED | kept | waiters)) {
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
    // Somebody sleeps already: so it takes longer. Or nobody has it.
    if ((seen & (SHMIPC_WORD_WAITERS | SHMIPC_WORD_DIED)) != 0 ||
        shmipc_word_is_biased(seen)) {
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

// Whether the thread that a biased word names has it, or is about to.
static bool is_noted(const shmipc_region_t *region, const uint32_t *word,
                     uint32_t seen) {
  uint32_t index = index_of(seen) - 1;
  if (index >= region->num_records) {
    return false;
  }
  const shmipc_record_t *record = shmipc_record_of(region, index);
  uint64_t note =
      (uint64_t)((uintptr_t)word - (uintptr_t)region->base) | SHMIPC_HOLD_LOCK;
  bool is_there = false;
  for (int i = 0; i < SHMIPC_HOLDS_MAX && !is_there; i++) {
    // Acquire: pairs with the release when it was cleared.
    is_there = __atomic_load_n(&record->holds[i], __ATOMIC_ACQUIRE) == note;
  }
  // After the notes: otherwise it may be the next thread's. Acquire: (7).
  uint32_t generation = __atomic_load_n(&record->generation, __ATOMIC_ACQUIRE);
  return is_there &&
         SHMIPC_WORD_OF(index, generation) == (seen & SHMIPC_WORD_OWNER);
}

// Waits until no store of another thread that was before this can be unseen;
// whatever signals come. (No cancellation point.)
static void settle(const uint32_t *word, uint32_t marked) {
  int64_t end = shmipc_now_ns() + SETTLE_NS;
  struct timespec until = {.tv_sec = end / 1000000000,
                           .tv_nsec = end % 1000000000};
  int saved = errno;
  while (load(word) == marked && shmipc_now_ns() < end) {
    (void)syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &until,
                  NULL);
  }
  errno = saved;
}

// Makes a word that is biased to another thread a shared one: this thread's, or
// the other's if it has it. 0: this thread's. 1: look again.
static int end_bias(const shmipc_region_t *region, const shmipc_self_t *self,
                    uint32_t *word, uint32_t seen) {
  uint32_t marked = seen | SHMIPC_WORD_WAITERS;
  if (seen != marked && !change(word, seen, marked)) {
    return 1;
  }
  if (!shmipc_barrier_in_all()) {
    settle(word, marked);
  }
  uint32_t owner =
      is_noted(region, word, marked) ? marked & SHMIPC_WORD_OWNER : self->id;
  bool is_changed =
      change(word, marked, owner | SHMIPC_WORD_SHARED | SHMIPC_WORD_WAITERS);
  return is_changed && owner == self->id ? 0 : 1;
}

// A word that is biased to this thread, which has noted it. As above.
static int take_own(const shmipc_self_t *self, uint32_t *word, uint32_t seen) {
  // Somebody may have looked before we noted it: (5).
  return seen == self->bias || change(word, seen, seen | SHMIPC_WORD_SHARED)
             ? 0
             : 1;
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
    bool is_mine = (seen & SHMIPC_WORD_OWNER) == self->id;
    if (shmipc_word_is_biased(seen)) {
      status = is_mine ? take_own(self, word, seen)
                       : end_bias(region, self, word, seen);
      continue;
    }
    if (is_mine) {
      return -EDEADLK;
    }
    int slept = sleep_on(region, word, &seen, deadline);
    waiters = SHMIPC_WORD_WAITERS;
    if (slept < 0) {
      return slept;
    }
    if (slept == 1 && change(word, seen,
                             self->id | SHMIPC_WORD_SHARED | SHMIPC_WORD_DIED |
                                 SHMIPC_WORD_WAITERS)) {
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
    if (slept == 1 &&
        change(word, seen, SHMIPC_WORD_SHARED | SHMIPC_WORD_DIED)) {
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
    next = (seen & SHMIPC_WORD_DIED) != 0 ? SHMIPC_WORD_GIVEN_UP
                                          : SHMIPC_WORD_SHARED;
    // Release: pairs with the acquire of the next owner.
  } while (!__atomic_compare_exchange_n(word, &seen, next, false,
                                        __ATOMIC_RELEASE, __ATOMIC_RELAXED));
  if ((seen & SHMIPC_WORD_WAITERS) != 0) {
    shmipc_futex_wake(word, next == SHMIPC_WORD_SHARED ? 1 : INT_MAX);
  }
  return 0;
}

void shmipc_word_hand_over(const shmipc_self_t *self, uint32_t *word) {
  uint32_t seen = load(word);
  uint32_t wanted = self->id | SHMIPC_WORD_WAITERS;
  while ((seen | SHMIPC_WORD_SHARED) == (wanted | SHMIPC_WORD_SHARED)) {
    // Release: pairs with the acquire of the next owner.
    if (__atomic_compare_exchange_n(word, &seen, SHMIPC_WORD_SHARED, false,
                                    __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
      shmipc_futex_wake(word, 1);
      return;
    }
  }
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
