// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Slabs outside of the range: those of a cache whose memory comes from the
// caller's functions, of the debug variant, and those of a cache whose range is
// full or was refused.
//
// They are all of one size and lie at multiples of it, so the address of an
// object, shifted, names its slab. The table is hashed by that number, with
// linear probing. A slab that is in it stays, retired or not, until the cache
// goes, and if the source returns its memory again it is the same slab; so what
// a reader finds is true for ever, and readers take no lock. The price is that
// the states of memory that went back stay.
//
// Invariants:
// 1. A slot changes once, from NULL to a slab.
// 2. At most half of the slots are taken; so a search ends.
//
// A table that grows is replaced as a whole. A reader may still have the one
// before, which knows all objects that are live since; it stays, the sum of all
// being no more than the last.

#include "slab/slab_internal.h"

enum {
  SLOTS_MIN = 4,
};

static size_t table_bytes(size_t num_slots) {
  return sizeof(slab_table_t) + num_slots * sizeof(slab_t *);
}

// Acquire: with the release in `replace`.
static slab_table_t *table_of(const slab_cache_t *cache) {
  return __atomic_load_n(&cache->table, __ATOMIC_ACQUIRE);
}

static uintptr_t number_of(const slab_cache_t *cache, uintptr_t address) {
  return address >> cache->outside_shift;
}

slab_t *slab_table_find(const slab_cache_t *cache, uintptr_t address) {
  slab_table_t *table = table_of(cache);
  if (table == NULL) {
    return NULL;
  }
  uintptr_t number = number_of(cache, address);
  for (size_t i = number & table->mask;; i = (i + 1) & table->mask) {
    // Acquire: with the release in `insert`.
    slab_t *slab = __atomic_load_n(&table->slots[i], __ATOMIC_ACQUIRE);
    if (slab == NULL || number_of(cache, (uintptr_t)slab->base) == number) {
      return slab;
    }
  }
}

static void insert(const slab_cache_t *cache, slab_table_t *table,
                   slab_t *slab) {
  size_t i = number_of(cache, (uintptr_t)slab->base) & table->mask;
  while (table->slots[i] != NULL) {
    i = (i + 1) & table->mask;
  }
  __atomic_store_n(&table->slots[i], slab, __ATOMIC_RELEASE);
}

// Returns how many slots a table needs that has room for a slab more, 0 if the
// present one has. Cache's lock held.
static size_t needed_slots(const slab_cache_t *cache) {
  size_t num_slots = cache->table == NULL ? 0 : cache->table->mask + 1;
  if (2 * (cache->num_outside + 1) <= num_slots) {
    return 0;
  }
  return num_slots == 0 ? SLOTS_MIN : 2 * num_slots;
}

// Cache's lock held.
static void replace(slab_cache_t *cache, slab_table_t *bigger) {
  slab_table_t *old = cache->table;
  for (size_t i = 0; old != NULL && i <= old->mask; ++i) {
    if (old->slots[i] != NULL) {
      insert(cache, bigger, old->slots[i]);
    }
  }
  bigger->older = old;
  __atomic_store_n(&cache->table, bigger, __ATOMIC_RELEASE);
}

bool slab_table_make_room(slab_cache_t *cache) {
  pthread_mutex_lock(&cache->lock);
  size_t num_slots = needed_slots(cache);
  pthread_mutex_unlock(&cache->lock);
  if (num_slots == 0) {
    return true;
  }
  slab_table_t *bigger = slab_metadata_alloc(cache, table_bytes(num_slots));
  if (bigger == NULL) {
    return false;
  }
  bigger->mask = num_slots - 1;
  pthread_mutex_lock(&cache->lock);
  if (needed_slots(cache) == num_slots) {
    replace(cache, bigger);
    bigger = NULL;
  }
  pthread_mutex_unlock(&cache->lock);
  // Another thread was faster.
  slab_metadata_free(cache, bigger, table_bytes(num_slots));
  return true;
}

bool slab_table_insert(slab_cache_t *cache, slab_t *slab) {
  if (needed_slots(cache) != 0) {
    return false;
  }
  insert(cache, cache->table, slab);
  ++cache->num_outside;
  return true;
}

void slab_table_destroy(slab_cache_t *cache) {
  slab_table_t *table = cache->table;
  while (table != NULL) {
    slab_table_t *older = table->older;
    slab_metadata_free(cache, table, table_bytes(table->mask + 1));
    table = older;
  }
}
