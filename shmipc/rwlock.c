// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A reader-writer lock without a count of readers, since nobody could say
// whether a process that died had been counted. That a thread reads is the note
// of it in the thread's own record:
//
//   reader                           writer
//   note "reads L" in own record     take L's word (lock_word.c)
//   look at L's word                 look at the notes of all records
//   no owner: reads                  no "reads L": writes
//
// 1. Both sides store, then look at what the other side stores; all four are
//    sequentially consistent, so at least one sees the other. The reader gives
//    way: it takes its note out and waits for the word.
// 2. A writer that sees a note waits until it is gone, or its process.
// 3. A reader that takes its note out and then sees an owner in the word counts
//    `drain` up and wakes the writer, which has read `drain` before it looked
//    at the note.
// 4. `records_used` is raised before a record can have a note, so a writer that
//    looks only as far misses none.
//
// 5. A thread that reads twice has its later note behind the earlier one and
//    takes the later one out first; notes do not move. So a writer that goes
//    through them from the front cannot miss the thread.
//
// Recovery takes out the notes of the dead; that is all there is to do for a
// reader. A dead writer is what a dead owner of a mutex is.

#include "shmipc/rwlock.h"

#include <errno.h>
#include <limits.h>

#include "shmipc/lock_word.h"

void shmipc_rwlock_init(shmipc_rwlock_t *lock) {
  __atomic_store_n(&lock->drain, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&lock->word, 0, __ATOMIC_RELEASE);
}

static int prepare(shmipc_region_t *region, const shmipc_rwlock_t *lock,
                   shmipc_self_t **out_self, uint64_t *out_offset) {
  int status = shmipc_self_of(region, out_self);
  if (status < 0) {
    return status;
  }
  return shmipc_offset_of(region, lock, sizeof(*lock), out_offset) ? 0
                                                                   : -EINVAL;
}

static inline uint32_t look(const shmipc_rwlock_t *lock) {
  // Sequentially consistent: (1), (3).
  return __atomic_load_n(&lock->word, __ATOMIC_SEQ_CST);
}

static inline bool has_owner(uint32_t word) {
  return (word & SHMIPC_WORD_INDEX) != 0;
}

// Takes a reader's note out, and tells a writer that may have seen it.
static void stop_reading(shmipc_self_t *self, shmipc_rwlock_t *lock,
                         uint32_t index) {
  // Sequentially consistent: (3).
  __atomic_store_n(&self->record->holds[index], 0, __ATOMIC_SEQ_CST);
  shmipc_drop(self, index);
  if (has_owner(look(lock))) {
    __atomic_fetch_add(&lock->drain, 1, __ATOMIC_SEQ_CST);
    shmipc_futex_wake(&lock->drain, INT_MAX);
  }
}

// 1: a writer is in the way; nothing is noted.
static int try_read(shmipc_self_t *self, shmipc_rwlock_t *lock, uint64_t note) {
  uint32_t word = look(lock);
  if (!has_owner(word)) {
    uint32_t index = shmipc_hold(self, note);
    if (index == SHMIPC_NO_HOLD) {
      return -ENOLCK;
    }
    // Once more, sequentially consistent: (1).
    __atomic_store_n(&self->record->holds[index], note, __ATOMIC_SEQ_CST);
    word = look(lock);
    if (!has_owner(word)) {
      return (word & SHMIPC_WORD_DIED) != 0 ? -EOWNERDEAD : 0;
    }
    stop_reading(self, lock, index);
  }
  return 1;
}

// No writer has it, and none gets it before our first note is gone: (5).
static int read_again(shmipc_self_t *self, uint64_t note, uint32_t first) {
  uint32_t index = shmipc_hold(self, note);
  if (index != SHMIPC_NO_HOLD && index < first) {
    shmipc_drop(self, index);
    index = SHMIPC_NO_HOLD;
  }
  return index != SHMIPC_NO_HOLD ? 0 : -ENOLCK;
}

int shmipc_rwlock_read_lock(shmipc_region_t *region, shmipc_rwlock_t *lock,
                            int64_t timeout_ns) {
  shmipc_self_t *self;
  uint64_t offset;
  int status = prepare(region, lock, &self, &offset);
  if (status < 0) {
    return status;
  }
  uint64_t note = offset | SHMIPC_HOLD_READ;
  uint32_t first = shmipc_hold_find(self, note);
  if (first != SHMIPC_NO_HOLD) {
    return read_again(self, note, first);
  }
  status = try_read(self, lock, note);
  if (status != 1) {
    return status;
  }
  int64_t deadline = shmipc_deadline(timeout_ns);
  do {
    status = shmipc_word_wait_free(region, self, &lock->word, deadline);
    if (status == 0) {
      status = try_read(self, lock, note);
    }
  } while (status == 1);
  return status;
}

// Waits until a note is gone or its process is dead.
static int wait_for_reader(shmipc_region_t *region, shmipc_rwlock_t *lock,
                           shmipc_record_t *record, uint64_t *hold,
                           uint64_t note, int64_t deadline) {
  for (;;) {
    uint32_t drain = __atomic_load_n(&lock->drain, __ATOMIC_SEQ_CST);
    // Sequentially consistent: (1).
    if (__atomic_load_n(hold, __ATOMIC_SEQ_CST) != note) {
      return 0;
    }
    if (shmipc_futex_wait(&lock->drain, drain, deadline) != -ETIMEDOUT) {
      continue;
    }
    // A record whose process is dead is nobody's until it is recovered; should
    // that happen meanwhile, and a live thread have noted the same, it sees
    // that we own the word and takes its note out anyway.
    uint32_t owner = __atomic_load_n(&record->owner, __ATOMIC_ACQUIRE);
    uint64_t expected = note;
    if (!shmipc_record_is_alive(region, owner)) {
      __atomic_compare_exchange_n(hold, &expected, 0, false, __ATOMIC_SEQ_CST,
                                  __ATOMIC_SEQ_CST);
    } else if (shmipc_has_passed(deadline)) {
      return -ETIMEDOUT;
    }
  }
}

static int wait_for_readers(shmipc_region_t *region, shmipc_rwlock_t *lock,
                            uint64_t note, int64_t timeout_ns) {
  int64_t deadline = SHMIPC_FOREVER;
  bool has_waited = false;
  uint32_t used = shmipc_records_used(region);
  for (uint32_t i = 0; i < used; i++) {
    shmipc_record_t *record = shmipc_record_of(region, i);
    for (int j = 0; j < SHMIPC_HOLDS_MAX; j++) {
      // Sequentially consistent: (1).
      if (__atomic_load_n(&record->holds[j], __ATOMIC_SEQ_CST) != note) {
        continue;
      }
      // The clock is not asked before there is something to wait for.
      deadline = has_waited ? deadline : shmipc_deadline(timeout_ns);
      has_waited = true;
      int status = wait_for_reader(region, lock, record, &record->holds[j],
                                   note, deadline);
      if (status < 0) {
        return status;
      }
    }
  }
  return 0;
}

// Takes the writer's word back out, as if it had never been there.
static void back_out(const shmipc_self_t *self, shmipc_rwlock_t *lock) {
  uint32_t seen = __atomic_load_n(&lock->word, __ATOMIC_RELAXED);
  while ((seen & SHMIPC_WORD_OWNER) == self->id &&
         !__atomic_compare_exchange_n(
             &lock->word, &seen, SHMIPC_WORD_SHARED | (seen & SHMIPC_WORD_DIED),
             false, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
  }
  shmipc_futex_wake(&lock->word, INT_MAX);
}

static int64_t left_until(int64_t deadline) {
  if (deadline < 0) {
    return SHMIPC_FOREVER;
  }
  int64_t left = deadline - shmipc_now_ns();
  return left > 0 ? left : 0;
}

int shmipc_rwlock_write_lock(shmipc_region_t *region, shmipc_rwlock_t *lock,
                             int64_t timeout_ns) {
  shmipc_self_t *self;
  uint64_t offset;
  int status = prepare(region, lock, &self, &offset);
  if (status < 0) {
    return status;
  }
  uint64_t note = offset | SHMIPC_HOLD_READ;
  if (shmipc_hold_find(self, note) != SHMIPC_NO_HOLD) {
    return -EDEADLK;
  }
  uint32_t index = shmipc_hold(self, offset | SHMIPC_HOLD_LOCK);
  if (index == SHMIPC_NO_HOLD) {
    return -ENOLCK;
  }
  uint32_t expected = SHMIPC_WORD_SHARED;
  // Sequentially consistent: (1).
  if (!__atomic_compare_exchange_n(&lock->word, &expected,
                                   self->id | SHMIPC_WORD_SHARED, false,
                                   __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
    int64_t deadline = shmipc_deadline(timeout_ns);
    status = shmipc_word_lock_slow(region, self, &lock->word, deadline);
    timeout_ns = left_until(deadline);
  }
  if (status == 0 || status == -EOWNERDEAD) {
    int waited = wait_for_readers(region, lock, note, timeout_ns);
    if (waited == 0) {
      return status;
    }
    back_out(self, lock);
    status = waited;
  }
  shmipc_drop(self, index);
  return status;
}

int shmipc_rwlock_consistent(shmipc_region_t *region, shmipc_rwlock_t *lock) {
  shmipc_self_t *self;
  uint64_t offset;
  int status = prepare(region, lock, &self, &offset);
  return status < 0 ? status : shmipc_word_consistent(self, &lock->word);
}

// Frees the word and wakes all: readers sleep there, too.
static int stop_writing(const shmipc_self_t *self, shmipc_rwlock_t *lock) {
  uint32_t seen = __atomic_load_n(&lock->word, __ATOMIC_RELAXED);
  uint32_t next;
  do {
    if ((seen & SHMIPC_WORD_OWNER) != self->id) {
      return -EPERM;
    }
    next = (seen & SHMIPC_WORD_DIED) != 0 ? SHMIPC_WORD_GIVEN_UP
                                          : SHMIPC_WORD_SHARED;
    // Release: pairs with the acquire of the next owner, or reader.
  } while (!__atomic_compare_exchange_n(&lock->word, &seen, next, false,
                                        __ATOMIC_RELEASE, __ATOMIC_RELAXED));
  if ((seen & SHMIPC_WORD_WAITERS) != 0) {
    shmipc_futex_wake(&lock->word, INT_MAX);
  }
  return 0;
}

int shmipc_rwlock_unlock(shmipc_region_t *region, shmipc_rwlock_t *lock) {
  shmipc_self_t *self;
  uint64_t offset;
  int status = prepare(region, lock, &self, &offset);
  if (status < 0) {
    return status;
  }
  uint32_t index = shmipc_hold_find(self, offset | SHMIPC_HOLD_READ);
  if (index != SHMIPC_NO_HOLD) {
    stop_reading(self, lock, index);
    return 0;
  }
  index = shmipc_hold_find(self, offset | SHMIPC_HOLD_LOCK);
  if (index == SHMIPC_NO_HOLD) {
    return -EPERM;
  }
  status = stop_writing(self, lock);
  shmipc_drop(self, index);
  return status;
}
