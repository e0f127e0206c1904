// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A mutex is a lock word (lock_word.c), noted in the thread's record while it
// is held (slot.c). Uncontended, locking is one store and one compare-and-swap,
// unlocking the same the other way round.

#include "shmipc/mutex.h"

#include <errno.h>

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
  uint32_t index = shmipc_hold(self, offset | SHMIPC_HOLD_LOCK);
  if (index == SHMIPC_NO_HOLD) {
    return -ENOLCK;
  }
  status = shmipc_word_lock(region, self, &mutex->word, timeout_ns);
  if (status != 0 && status != -EOWNERDEAD) {
    shmipc_drop(self, index);
  }
  return status;
}

// The short way: the thread has its record, room for a note, and the mutex is
// free. In a function that calls nothing the registers need not be saved.
int shmipc_mutex_lock(shmipc_region_t *region, shmipc_mutex_t *mutex,
                      int64_t timeout_ns) {
  shmipc_self_t *self = shmipc_self_cached;
  uint64_t offset;
  if (__builtin_expect(
          self->serial == region->serial &&
              self->num_holds < SHMIPC_HOLDS_MAX &&
              shmipc_offset_of(region, mutex, sizeof(*mutex), &offset),
          1)) {
    uint32_t index = self->num_holds;
    uint32_t expected = 0;
    // Release: as in shmipc_hold.
    __atomic_store_n(&self->record->holds[index], offset | SHMIPC_HOLD_LOCK,
                     __ATOMIC_RELEASE);
    // As in shmipc_word_lock.
    if (__atomic_compare_exchange_n(&mutex->word, &expected, self->id, false,
                                    __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
      self->num_holds = index + 1;
      return 0;
    }
    // The note stays where the long way puts it again.
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
  return shmipc_word_consistent(self, &mutex->word);
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
  status = shmipc_word_unlock(self, &mutex->word);
  shmipc_drop(self, index);
  return status;
}

// The short way: it was the last to be locked, has no holes before it, and
// nobody waits.
int shmipc_mutex_unlock(shmipc_region_t *region, shmipc_mutex_t *mutex) {
  shmipc_self_t *self = shmipc_self_cached;
  if (__builtin_expect(self->serial == region->serial && self->num_holds != 0,
                       1)) {
    uint64_t *holds = self->record->holds;
    uint32_t index = self->num_holds - 1;
    uint64_t offset = (uint64_t)((uintptr_t)mutex - (uintptr_t)region->base);
    uint32_t expected = self->id;
    // What was noted was checked then; and what somebody else wrote over a note
    // is no offset of a word that has our name.
    if (__atomic_load_n(&holds[index], __ATOMIC_RELAXED) ==
            (offset | SHMIPC_HOLD_LOCK) &&
        offset % sizeof(uint32_t) == 0 &&
        (index == 0 ||
         __atomic_load_n(&holds[index - 1], __ATOMIC_RELAXED) != 0) &&
        offset < shmipc_mapped_bytes(region) &&
        __atomic_compare_exchange_n(&mutex->word, &expected, 0, false,
                                    __ATOMIC_RELEASE, __ATOMIC_RELAXED)) {
      __atomic_store_n(&holds[index], 0, __ATOMIC_RELEASE);
      self->num_holds = index;
      return 0;
    }
  }
  return unlock_any(region, mutex);
}
