// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Which record of a region is the calling thread's.
//
// A thread takes a record with its first lock and frees it when it ends: the
// destructor of a pthread key releases what it still holds, as if its process
// had died. (A thread that takes locks in such destructors of others gets a new
// record; the C library calls the destructors a few times over. What is left
// after that stays until the region is closed.)
//
// A `self` outlives the attachment that it is for; its serial then matches
// none. It goes when the thread makes the next one.
//
// Killed at any point: a record that has our slot as its owner is found by who
// recovers the slot.

#include "shmipc/thread_record.h"

#include <pthread.h>
#include <stdlib.h>

#include "shmipc/block_internal.h"
#include "shmipc/region_internal.h"

static shmipc_self_t no_self = {.serial = UINT64_MAX};
__thread shmipc_self_t *shmipc_self_cached = &no_self;
static __thread shmipc_self_t *all;  // Of this thread.

static pthread_key_t key;
static int key_status = -ENOMEM;  // Written once, by `once`.
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void release(shmipc_region_t *region, uint32_t index) {
  shmipc_record_release(region, index);
}

static void thread_ends(void *unused) {
  (void)unused;
  while (all != NULL) {
    shmipc_self_t *self = all;
    all = self->next;
    (void)shmipc_attachment_with(self->serial, release, self->index);
    shmipc_cache_delete(self->cache);
    free(self);
  }
  shmipc_self_cached = &no_self;
}

// Frees what was for attachments that are no more.
static void forget_closed(void) {
  shmipc_self_t **link = &all;
  while (*link != NULL) {
    shmipc_self_t *self = *link;
    if (shmipc_attachment_with(self->serial, NULL, 0)) {
      link = &self->next;
      continue;
    }
    *link = self->next;
    if (shmipc_self_cached == self) {
      shmipc_self_cached = &no_self;
    }
    shmipc_cache_delete(self->cache);
    free(self);
  }
}

static void make_key(void) {
  key_status = -pthread_key_create(&key, thread_ends);
}

// Raises the hint before the record may be in use: whoever sees a note in it
// has seen the hint (rwlock.c).
static void raise_used(const shmipc_region_t *region, uint32_t used) {
  uint32_t *word = &shmipc_header_of(region)->records_used;
  uint32_t seen = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (seen < used &&
         !__atomic_compare_exchange_n(word, &seen, used, false,
                                      __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
  }
}

static int take_record(shmipc_region_t *region, shmipc_self_t *self) {
  uint32_t owner = SHMIPC_OWNER(region->slot, region->slot_generation);
  for (uint32_t i = 0; i < region->num_records; i++) {
    shmipc_record_t *record = shmipc_record_of(region, i);
    uint32_t none = __atomic_load_n(&record->owner, __ATOMIC_RELAXED);
    if (none != 0) {
      continue;
    }
    raise_used(region, i + 1);
    // Acquire: pairs with the release by whom it was freed.
    if (__atomic_compare_exchange_n(&record->owner, &none, owner, false,
                                    __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
      // A free record holds nothing; but it is others who say so.
      for (int j = 0; j < SHMIPC_HOLDS_MAX; j++) {
        __atomic_store_n(&record->holds[j], 0, __ATOMIC_RELAXED);
      }
      self->record = record;
      self->index = i;
      uint32_t generation =
          __atomic_load_n(&record->generation, __ATOMIC_RELAXED);
      self->id = SHMIPC_WORD_OF(i, generation);
      self->page_id = SHMIPC_PAGE_ID(i, generation);
      return 0;
    }
  }
  return -ENFILE;
}

int shmipc_self_find(shmipc_region_t *region, shmipc_self_t **out_self) {
  if (region->serial == 0) {
    return region->status;
  }
  if (region->read_only) {
    return -EROFS;
  }
  for (shmipc_self_t *self = all; self != NULL; self = self->next) {
    if (self->serial == region->serial) {
      shmipc_self_cached = self;
      *out_self = self;
      return 0;
    }
  }
  forget_closed();
  pthread_once(&once, make_key);
  if (key_status < 0) {
    return key_status;
  }
  shmipc_self_t *self = calloc(1, sizeof(*self));
  // Any value but NULL makes the destructor run.
  if (self == NULL || pthread_setspecific(key, self) != 0) {
    free(self);
    return -ENOMEM;
  }
  int status = take_record(region, self);
  // Dead processes may have them.
  if (status == -ENFILE && shmipc_region_recover(region) > 0) {
    status = take_record(region, self);
  }
  if (status < 0) {
    free(self);
    return status;
  }
  self->serial = region->serial;
  // Of a record that has been used for long a word may have the very name.
  self->bias = region->is_registered ? self->id : SHMIPC_WORD_NO_BIAS;
  self->next = all;
  all = self;
  shmipc_self_cached = self;
  *out_self = self;
  return 0;
}
