// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Slabs outside of the range: those of a cache whose memory comes from the
// caller's functions, of the debug variant, and those of a cache whose range is
// full or was refused.
//
// They are all of one size and lie at multiples of it, so the address of an
// object, shifted, is the number of its slab. The table is hashed by that, with
// linear probing, and has the number beside each slab: who looks for one
// touches no other.
//
// Writers hold the cache's lock, readers none. A slab that comes changes one
// slot. One that goes is followed by others that move up, lest searches end
// too early; the version is odd meanwhile, and a reader who has not seen one
// and the same even version before and after its search repeats it. A slab goes
// when none of its objects is live or cached, so only frees that are wrong ever
// look for it then.
//
// Invariants:
// 1. From the slot that a number hashes to, up to the one that has it, no slot
//    is free.
// 2. At most half of the slots are taken; so a search ends.
//
// A table that grows is replaced as a whole. A reader may still have the one
// before, so that stays, the sum of all being no more than the last. Slabs that
// went since are in it, and those that came are not; but the replacement
// changed the version.

#include "slab/slab_internal.h"

enum {
  SLOTS_MIN = 4,
};

static size_t table_bytes(size_t num_slots) {
  return sizeof(slab_table_t) + num_slots * sizeof(slab_slot_t);
}

static uintptr_t number_of(const slab_cache_t *cache, uintptr_t address) {
  return address >> cache->outside_shift;
}

// All orders are acquire here, and release in writers: what was read of a
// change brings the odd version with it.
static slab_t *search(const slab_table_t *table, uintptr_t number) {
  if (number == 0) {
    return NULL;  // No slab's.
  }
  for (size_t i = 0; table != NULL && i <= table->mask; ++i) {
    const slab_slot_t *slot = &table->slots[(number + i) & table->mask];
    uintptr_t found = __atomic_load_n(&slot->number, __ATOMIC_ACQUIRE);
    if (found == number) {
      return __atomic_load_n(&slot->slab, __ATOMIC_ACQUIRE);
    }
    if (found == 0) {
      return NULL;
    }
  }
  return NULL;
}

slab_t *slab_table_find(slab_cache_t *cache, uintptr_t address) {
  for (;;) {
    uint64_t version = __atomic_load_n(&cache->table_version, __ATOMIC_ACQUIRE);
    slab_t *slab = search(__atomic_load_n(&cache->table, __ATOMIC_ACQUIRE),
                          number_of(cache, address));
    if (version % 2 == 0 &&
        __atomic_load_n(&cache->table_version, __ATOMIC_RELAXED) == version) {
      return slab;
    }
    if (version % 2 != 0) {
      // Odd only while another thread has the lock: waits for it.
      pthread_mutex_lock(&cache->lock);
      pthread_mutex_unlock(&cache->lock);
    }
  }
}

// Between two of these, readers find nothing for certain. Lock held.
static void change_version(slab_cache_t *cache) {
  __atomic_store_n(&cache->table_version, cache->table_version + 1,
                   __ATOMIC_RELEASE);
}

static void fill_slot(slab_slot_t *slot, slab_slot_t with) {
  __atomic_store_n(&slot->slab, with.slab, __ATOMIC_RELEASE);
  __atomic_store_n(&slot->number, with.number, __ATOMIC_RELEASE);
}

static void insert(slab_table_t *table, slab_slot_t entry) {
  size_t i = entry.number & table->mask;
  while (table->slots[i].number != 0) {
    i = (i + 1) & table->mask;
  }
  fill_slot(&table->slots[i], entry);
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
    if (old->slots[i].number != 0) {
      insert(bigger, old->slots[i]);
    }
  }
  bigger->older = old;
  change_version(cache);
  __atomic_store_n(&cache->table, bigger, __ATOMIC_RELEASE);
  change_version(cache);
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
  insert(cache->table,
         (slab_slot_t){number_of(cache, (uintptr_t)slab->base), slab});
  ++cache->num_outside;
  return true;
}

void slab_table_remove(slab_cache_t *cache, const slab_t *slab) {
  slab_table_t *table = cache->table;
  size_t hole = number_of(cache, (uintptr_t)slab->base) & table->mask;
  while (table->slots[hole].slab != slab) {
    hole = (hole + 1) & table->mask;
  }
  change_version(cache);
  for (size_t i = (hole + 1) & table->mask; table->slots[i].number != 0;
       i = (i + 1) & table->mask) {
    // Those stay that hash to a slot behind the hole, up to their own.
    size_t way = (i - table->slots[i].number) & table->mask;
    if (way >= ((i - hole) & table->mask)) {
      fill_slot(&table->slots[hole], table->slots[i]);
      hole = i;
    }
  }
  fill_slot(&table->slots[hole], (slab_slot_t){0, NULL});
  change_version(cache);
  --cache->num_outside;
}

void slab_table_forget_lost(slab_cache_t *cache) {
  slab_table_t *table = cache->table;
  for (size_t i = 0; table != NULL && i <= table->mask;) {
    const slab_t *slab = table->slots[i].slab;
    if (slab != NULL && slab->list == SLAB_LIST_NONE &&
        !slab_is_retiring(slab)) {
      slab_table_remove(cache, slab);  // Another one may be in its slot now.
    } else {
      ++i;
    }
  }
}

void slab_table_destroy(slab_cache_t *cache) {
  slab_table_t *table = cache->table;
  while (table != NULL) {
    slab_table_t *older = table->older;
    slab_metadata_free(cache, table, table_bytes(table->mask + 1));
    table = older;
  }
}
