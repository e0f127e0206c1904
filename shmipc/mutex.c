// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A mutex is a lock word (lock_word.c), noted in the thread's record while it
// is held (slot.c). As long as only one thread has ever had it, the note is all
// that locking and unlocking store. Then it is a note and a compare-and-swap.

#include "shmipc/mutex.h"

#include <errno.h>

#include "shmipc/barrier.h"
#include "shmipc/lock_word.h"

void shmipc_mutex_init(shmipc_mutex_t *mutex) {
  __atomic_store_n(&mutex->word, 0, __ATOMIC_RELEASE);
}

// Finds the thread's record and where the mutex is.
static int find(shmipc_region_t *region, const shmipc_mutex_t *mutex,
                shmipc_self_t **out_self, uint64_t *out_offset) {
  int status = shmipc_self_of(region, out_self);
  if (status < 0) {
    return status;
  }
  return shmipc_offset_of(region, mutex, sizeof(*mutex), out_offset) ? 0
                                                                     : -EINVAL;
}

static inline uint32_t look(const shmipc_mutex_t *mutex) {
  // Acquire: pairs with the release by whoever made the word ours (end_bias).
  return __atomic_load_n(&mutex->word, __ATOMIC_ACQUIRE);
}

// Takes what is noted. The first that ever does has the word biased to it.
static int take(shmipc_region_t *region, const shmipc_self_t *self,
                shmipc_mutex_t *mutex, int64_t timeout_ns) {
  uint32_t never = 0;
  if (self->bias != SHMIPC_WORD_NO_BIAS && look(mutex) == 0 &&
      __atomic_compare_exchange_n(&mutex->word, &never, self->bias, false,
                                  __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
    return 0;
  }
  int status = shmipc_word_lock(region, self, &mutex->word, timeout_ns);
  // We had not noted it before: somebody saw the note, and has given the word
  // our name.
  return status == -EDEADLK ? 0 : status;
}

// Everything that the short way below leaves out.
static __attribute__((noinline)) int lock_any(shmipc_region_t *region,
                                              shmipc_mutex_t *mutex,
                                              int64_t timeout_ns) {
  shmipc_self_t *self;
  uint64_t offset;
  int status = find(region, mutex, &self, &offset);
  if (status < 0) {
    return status;
  }
  uint64_t note = offset | SHMIPC_HOLD_LOCK;
  if (shmipc_hold_find(self, note) != SHMIPC_NO_HOLD) {
    return -EDEADLK;
  }
  uint32_t index = shmipc_hold(self, note);
  if (index == SHMIPC_NO_HOLD) {
    return -ENOLCK;
  }
  status = take(region, self, mutex, timeout_ns);
  if (status != 0 && status != -EOWNERDEAD) {
    shmipc_drop(self, index);
  }
  return status;
}

// Notes it at `index`, behind all others, and takes it if it is biased to this
// thread or free. Otherwise the note stays where the long way puts it again.
static inline bool lock_at(shmipc_self_t *self, shmipc_mutex_t *mutex,
                           uint32_t index, uint64_t note) {
  // Release: as in shmipc_hold.
  __atomic_store_n(&self->record->holds[index], note, __ATOMIC_RELEASE);
  shmipc_barrier_by_others();
  uint32_t word = look(mutex);
  // Free: as in shmipc_word_lock.
  if (word == self->bias ||
      (word == SHMIPC_WORD_SHARED &&
       __atomic_compare_exchange_n(&mutex->word, &word,
                                   self->id | SHMIPC_WORD_SHARED, false,
                                   __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))) {
    self->num_holds = index + 1;
    return true;
  }
  return false;
}

// The short way: the thread has its record and room for a note. In a function
// that calls nothing the registers need not be saved. The first note is apart:
// a number that is known need not wait for the last store of `num_holds`.
int shmipc_mutex_lock(shmipc_region_t *region, shmipc_mutex_t *mutex,
                      int64_t timeout_ns) {
  shmipc_self_t *self = shmipc_self_cached;
  // (What is mapped ends with a page, so a word that begins in it is in it.)
  uint64_t offset = (uint64_t)((uintptr_t)mutex - (uintptr_t)region->base);
  if (__builtin_expect(self->serial == region->serial &&
                           offset >= region->data_offset &&
                           offset % sizeof(uint32_t) == 0 &&
                           offset < shmipc_mapped_bytes(region),
                       1)) {
    uint32_t index = self->num_holds;
    uint64_t note = offset | SHMIPC_HOLD_LOCK;
    if (__builtin_expect(index == 0, 1)) {
      if (lock_at(self, mutex, 0, note)) {
        return 0;
      }
    } else if (index < SHMIPC_HOLDS_MAX &&
               shmipc_hold_find(self, note) == SHMIPC_NO_HOLD &&
               lock_at(self, mutex, index, note)) {
      return 0;
    }
  }
  return lock_any(region, mutex, timeout_ns);
}

int shmipc_mutex_consistent(shmipc_region_t *region, shmipc_mutex_t *mutex) {
  shmipc_self_t *self;
  uint64_t offset;
  int status = find(region, mutex, &self, &offset);
  if (status < 0) {
    return status;
  }
  return shmipc_hold_find(self, offset | SHMIPC_HOLD_LOCK) != SHMIPC_NO_HOLD
             ? shmipc_word_consistent(self, &mutex->word)
             : -EPERM;
}

// Others want a biased mutex whose note we have just cleared. If it has another
// name by now, they saw that it is free.
static __attribute__((noinline)) int hand_over(const shmipc_self_t *self,
                                               shmipc_mutex_t *mutex) {
  shmipc_word_hand_over(self, &mutex->word);
  return 0;
}

static inline int finish_biased(const shmipc_self_t *self,
                                shmipc_mutex_t *mutex) {
  shmipc_barrier_by_others();
  return __builtin_expect(look(mutex) == self->bias, 1)
             ? 0
             : hand_over(self, mutex);
}

static __attribute__((noinline)) int unlock_any(shmipc_region_t *region,
                                                shmipc_mutex_t *mutex) {
  shmipc_self_t *self;
  uint64_t offset;
  int status = find(region, mutex, &self, &offset);
  if (status < 0) {
    return status;
  }
  uint32_t index = shmipc_hold_find(self, offset | SHMIPC_HOLD_LOCK);
  if (index == SHMIPC_NO_HOLD) {
    return -EPERM;
  }
  if (look(mutex) == self->bias) {
    shmipc_drop(self, index);
    return finish_biased(self, mutex);
  }
  status = shmipc_word_unlock(self, &mutex->word);
  shmipc_drop(self, index);
  return status;
}

// Unlocks what is noted at `index`, behind all others.
static inline int unlock_at(shmipc_region_t *region, shmipc_self_t *self,
                            shmipc_mutex_t *mutex, uint32_t index) {
  uint64_t *hold = &self->record->holds[index];
  uint32_t expected = self->id | SHMIPC_WORD_SHARED;
  if (__builtin_expect(look(mutex) == self->bias, 1)) {
    __atomic_store_n(hold, 0, __ATOMIC_RELEASE);
    self->num_holds = index;
    return finish_biased(self, mutex);
  }
  if (__atomic_compare_exchange_n(&mutex->word, &expected, SHMIPC_WORD_SHARED,
                                  false, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
    __atomic_store_n(hold, 0, __ATOMIC_RELEASE);
    self->num_holds = index;
    return 0;
  }
  return unlock_any(region, mutex);
}

// The short way: it was the last to be locked, has no holes before it, and
// nobody waits.
int shmipc_mutex_unlock(shmipc_region_t *region, shmipc_mutex_t *mutex) {
  shmipc_self_t *self = shmipc_self_cached;
  uint32_t count = self->num_holds;
  uint64_t offset = (uint64_t)((uintptr_t)mutex - (uintptr_t)region->base);
  // What was noted was checked then; and what somebody else wrote over a note
  // is no offset of a word that has our name.
  if (__builtin_expect(self->serial == region->serial &&
                           offset % sizeof(uint32_t) == 0 &&
                           offset < shmipc_mapped_bytes(region),
                       1)) {
    const uint64_t *holds = self->record->holds;
    uint64_t note = offset | SHMIPC_HOLD_LOCK;
    if (__builtin_expect(count == 1, 1)) {
      if (__atomic_load_n(&holds[0], __ATOMIC_RELAXED) == note) {
        return unlock_at(region, self, mutex, 0);
      }
    } else if (count != 0 &&
               __atomic_load_n(&holds[count - 1], __ATOMIC_RELAXED) == note &&
               __atomic_load_n(&holds[count - 2], __ATOMIC_RELAXED) != 0) {
      return unlock_at(region, self, mutex, count - 1);
    }
  }
  return unlock_any(region, mutex);
}
