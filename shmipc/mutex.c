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

int shmipc_mutex_lock(shmipc_region_t *region, shmipc_mutex_t *mutex,
                      int64_t timeout_ns) {
  shmipc_self_t *self;
  uint64_t offset;
  int status = shmipc_self_of(region, &self);
  if (status < 0) {
    return status;
  }
  if (!shmipc_offset_of(region, mutex, sizeof(*mutex), &offset)) {
    return -EINVAL;
  }
  uint32_t index = shmipc_hold(self, offset | SHMIPC_HOLD_LOCK);
  if (index == SHMIPC_NO_HOLD) {
    return -ENOLCK;
  }
  status = shmipc_word_lock(region, self, &mutex->word, timeout_ns);
  if (__builtin_expect(status != 0 && status != -EOWNERDEAD, 0)) {
    shmipc_drop(self, index);
  }
  return status;
}

int shmipc_mutex_consistent(shmipc_region_t *region, shmipc_mutex_t *mutex) {
  shmipc_self_t *self;
  uint64_t offset;
  int status = shmipc_self_of(region, &self);
  if (status < 0) {
    return status;
  }
  if (!shmipc_offset_of(region, mutex, sizeof(*mutex), &offset)) {
    return -EINVAL;
  }
  return shmipc_word_consistent(self, &mutex->word);
}

int shmipc_mutex_unlock(shmipc_region_t *region, shmipc_mutex_t *mutex) {
  shmipc_self_t *self;
  uint64_t offset;
  int status = shmipc_self_of(region, &self);
  if (status < 0) {
    return status;
  }
  if (!shmipc_offset_of(region, mutex, sizeof(*mutex), &offset)) {
    return -EINVAL;
  }
  uint32_t index = shmipc_hold_find(self, offset | SHMIPC_HOLD_LOCK);
  if (index == SHMIPC_NO_HOLD) {
    return -EPERM;
  }
  status = shmipc_word_unlock(self, &mutex->word);
  shmipc_drop(self, index);
  return status;
}
