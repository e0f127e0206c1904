// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The robust lock in one word, of which mutexes and writers are made. Internal.

#ifndef MY_ALLOC_SHMIPC_LOCK_WORD_H_
#define MY_ALLOC_SHMIPC_LOCK_WORD_H_

#include <stdbool.h>
#include <stdint.h>

#include "shmipc/futex.h"
#include "shmipc/thread_record.h"

#ifdef __cplusplus
extern "C" {
#endif

// Takes a word that was not free at the first look; the caller has noted it.
// Results as of shmipc_mutex_lock. -EDEADLK if the word names this thread.
int shmipc_word_lock_slow(shmipc_region_t *region, const shmipc_self_t *self,
                          uint32_t *word, int64_t deadline);

// Waits until the word has no owner. Returns 0, -ETIMEDOUT, -EDEADLK (this
// thread is the owner) or -ENOTRECOVERABLE.
int shmipc_word_wait_free(shmipc_region_t *region, const shmipc_self_t *self,
                          uint32_t *word, int64_t deadline);

// Frees a word that has other bits than the owner's. -EPERM.
int shmipc_word_unlock_slow(const shmipc_self_t *self, uint32_t *word);

// Frees a word that was biased to this thread, which has cleared its note, if
// another that wants it has not taken it yet.
void shmipc_word_hand_over(const shmipc_self_t *self, uint32_t *word);

int shmipc_word_consistent(const shmipc_self_t *self, uint32_t *word);

// Whether it is the named thread's note that says who has the word.
static inline bool shmipc_word_is_biased(uint32_t word) {
  uint32_t index = word & SHMIPC_WORD_INDEX;
  return index != 0 && index != SHMIPC_WORD_GIVEN_UP &&
         (word & (SHMIPC_WORD_SHARED | SHMIPC_WORD_DIED)) == 0;
}

// Takes a word that is noted already. The fast path, and then the slow one.
static inline int shmipc_word_lock(shmipc_region_t *region,
                                   const shmipc_self_t *self, uint32_t *word,
                                   int64_t timeout_ns) {
  uint32_t expected = SHMIPC_WORD_SHARED;
  // Acquire: pairs with the release of the last owner. Release: the note is
  // there before. Sequentially consistent for writers: see rwlock.c.
  if (__builtin_expect(__atomic_compare_exchange_n(
                           word, &expected, self->id | SHMIPC_WORD_SHARED,
                           false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED),
                       1)) {
    return 0;
  }
  return shmipc_word_lock_slow(region, self, word, shmipc_deadline(timeout_ns));
}

static inline int shmipc_word_unlock(const shmipc_self_t *self,
                                     uint32_t *word) {
  uint32_t expected = self->id | SHMIPC_WORD_SHARED;
  if (__builtin_expect(__atomic_compare_exchange_n(
                           word, &expected, SHMIPC_WORD_SHARED, false,
                           __ATOMIC_RELEASE, __ATOMIC_RELAXED),
                       1)) {
    return 0;
  }
  return shmipc_word_unlock_slow(self, word);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_LOCK_WORD_H_
