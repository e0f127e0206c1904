// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The calling thread's record in a region. Internal.

#ifndef MY_ALLOC_SHMIPC_THREAD_RECORD_H_
#define MY_ALLOC_SHMIPC_THREAD_RECORD_H_

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>

#include "shmipc/block_layout.h"
#include "shmipc/region_internal.h"

#ifdef __cplusplus
extern "C" {
#endif

// One for each thread and attachment. Used by that thread only.
typedef struct shmipc_self {
  uint64_t serial;  // Of the attachment.
  shmipc_record_t *record;
  uint32_t index;              // Of the record.
  uint32_t id;                 // What lock words say while they are ours.
  uint32_t num_holds;          // Places up to the last that is in use.
  uint32_t bias;               // What words say that are biased to us.
  uint64_t page_id;            // What heads of pages say that are ours.
  struct shmipc_cache *cache;  // Of blocks; NULL before the first.
  struct shmipc_self *next;
} shmipc_self_t;

// The one last used, or one of no attachment. Never NULL.
extern __thread shmipc_self_t *shmipc_self_cached;

// Finds or makes this thread's. -ENFILE, -ENOMEM, -EROFS, -ECHILD.
int shmipc_self_find(shmipc_region_t *region, shmipc_self_t **out_self);

static inline int shmipc_self_of(shmipc_region_t *region,
                                 shmipc_self_t **out_self) {
  shmipc_self_t *self = shmipc_self_cached;
  // A serial is never used again, so a stale one matches nothing.
  if (__builtin_expect(self->serial == region->serial, 1)) {
    *out_self = self;
    return 0;
  }
  return shmipc_self_find(region, out_self);
}

// Stores the offset of a caller's word if `len` bytes there are in the region.
static inline bool shmipc_offset_of(const shmipc_region_t *region,
                                    const void *memory, size_t len,
                                    uint64_t *out_offset) {
  uint64_t offset = (uint64_t)((uintptr_t)memory - (uintptr_t)region->base);
  *out_offset = offset;
  return offset >= region->data_offset && offset % sizeof(uint32_t) == 0 &&
         offset < shmipc_mapped_bytes(region) &&
         shmipc_mapped_bytes(region) - offset >= len;
}

// The place of a note; none.
#define SHMIPC_NO_HOLD SHMIPC_HOLDS_MAX

// Notes what is about to be taken. Returns the place, behind all others that
// are in use if that can be.
static inline uint32_t shmipc_hold(shmipc_self_t *self, uint64_t hold) {
  uint64_t *holds = self->record->holds;
  uint32_t index = self->num_holds;
  if (__builtin_expect(index < SHMIPC_HOLDS_MAX, 1)) {
    self->num_holds++;
  } else {
    for (index = 0; index < SHMIPC_HOLDS_MAX; index++) {
      if (__atomic_load_n(&holds[index], __ATOMIC_RELAXED) == 0) {
        break;
      }
    }
    if (index == SHMIPC_HOLDS_MAX) {
      return SHMIPC_NO_HOLD;
    }
  }
  // Release, and a barrier for the compiler: it is there before the lock's word
  // is changed. Nobody else looks until we are dead, or for reading (rwlock.c).
  __atomic_store_n(&holds[index], hold, __ATOMIC_RELEASE);
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  return index;
}

// The last place that has this note.
static inline uint32_t shmipc_hold_find(const shmipc_self_t *self,
                                        uint64_t hold) {
  for (uint32_t i = self->num_holds; i-- > 0;) {
    if (__atomic_load_n(&self->record->holds[i], __ATOMIC_RELAXED) == hold) {
      return i;
    }
  }
  return SHMIPC_NO_HOLD;
}

// Takes a note out, after the word was changed. The others stay where they are:
// a writer may be looking through them (rwlock.c).
static inline void shmipc_drop(shmipc_self_t *self, uint32_t index) {
  assert(index < SHMIPC_HOLDS_MAX);
  const uint64_t *holds = self->record->holds;
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
  __atomic_store_n(&self->record->holds[index], 0, __ATOMIC_RELEASE);
  while (self->num_holds > 0 &&
         __atomic_load_n(&holds[self->num_holds - 1], __ATOMIC_RELAXED) == 0) {
    self->num_holds--;
  }
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_THREAD_RECORD_H_
