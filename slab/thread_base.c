// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The magazines of each thread, found by one addition, and the list of caches.
//
//   slab_thread_base --> | links | nothing | cache 1 | cache 2 | ... | 4095 |
//                                  128 bytes each, touched when used
//
// A cache's number times 128 is where its magazine is in every thread. Threads
// that have none yet share a region that is never written, in which every
// magazine is empty and full at once, so the fast paths need no test for that;
// number 0 is never given out and serves caches without magazines. The first
// thread's region is static, so a program with one thread asks the kernel for
// nothing here. Other regions are mapped: 512 KiB of addresses, of which only
// the pages with magazines in use become memory.
//
// A thread that exits gives all its objects to the slabs. If a destructor of
// another thread-specific value uses a cache afterwards, the thread does
// without magazines: nobody would come to empty them.
//
// fork takes every lock there is, in order, so the child finds what they guard
// whole. Magazines have no lock: another thread's may have been between any two
// stores, so the child believes nothing of them but where their slots are.
// What other threads had is found by the states of the objects alone: CACHED by
// another's tag or SHARED means free and constructed, and goes into its slab.
// An object whose constructor was not through (RAW) can be neither used nor
// destroyed, and stays as it is. A slab that was not published yet is gone.

#include "slab/slab_internal.h"

#include <assert.h>
#include <string.h>

typedef struct region {
  struct region *next;
  struct region *prev;
  __attribute__((aligned(64))) slab_magazine_t magazines[SLAB_MAGAZINE_IDS];
} region_t;

// Never written.
static region_t empty_region;
static region_t static_region;

__thread unsigned char *slab_thread_base SLAB_TLS_MODEL =
    (unsigned char *)&empty_region;

static pthread_mutex_t process_lock = PTHREAD_MUTEX_INITIALIZER;
// Guarded by process_lock.
static region_t *regions;
static slab_cache_t *caches;
static bool static_region_used;
static bool fork_handled;
static bool exit_key_created;
static pthread_key_t exit_key;
static uint64_t ids_used[SLAB_MAGAZINE_IDS / 64] = {1};

// This thread's magazines were emptied for ever.
static __thread bool has_exited SLAB_TLS_MODEL;

void slab_process_lock(void) {
  pthread_mutex_lock(&process_lock);
}

void slab_process_unlock(void) {
  pthread_mutex_unlock(&process_lock);
}

slab_cache_t *slab_first_cache(void) {
  return caches;
}

void slab_for_each_magazine(slab_cache_t *cache,
                            void (*visit)(void *context,
                                          slab_magazine_t *magazine),
                            void *context) {
  if (cache->magazine_id == 0) {
    return;
  }
  for (region_t *region = regions; region != NULL; region = region->next) {
    slab_magazine_t *magazine = &region->magazines[cache->magazine_id];
    if (magazine->cache != NULL) {
      visit(context, magazine);
    }
  }
}

// ---- threads ----

static void drain_region(region_t *region) {
  for (slab_cache_t *cache = caches; cache != NULL; cache = cache->next) {
    slab_magazine_t *magazine = &region->magazines[cache->magazine_id];
    if (magazine->cache != NULL) {
      slab_magazine_drain(magazine);
    }
  }
}

// Process's lock held. Its magazines are drained.
static void destroy_region(region_t *region) {
  if (region->prev == NULL) {
    regions = region->next;
  } else {
    region->prev->next = region->next;
  }
  if (region->next != NULL) {
    region->next->prev = region->prev;
  }
  if (region == &static_region) {
    static_region_used = false;
  } else {
    slab_kernel->unmap(region, sizeof(*region));
  }
}

static void thread_exited(void *value) {
  region_t *region = value;
  slab_process_lock();
  slab_thread_base = (unsigned char *)&empty_region;
  has_exited = true;
  drain_region(region);
  destroy_region(region);
  slab_process_unlock();
}

bool slab_thread_exists(void) {
  return slab_thread_base != (unsigned char *)&empty_region;
}

static region_t *create_region(void) {
  region_t *region = &static_region;
  if (static_region_used) {
    region = slab_kernel->map(sizeof(*region));
    if (region == NULL) {
      return NULL;
    }
  } else {
    static_region_used = true;
  }
  region->prev = NULL;
  region->next = regions;
  if (regions != NULL) {
    regions->prev = region;
  }
  regions = region;
  return region;
}

bool slab_thread_create(void) {
  // Without a key, what the thread cached would be lost when it exits.
  if (has_exited || !__atomic_load_n(&exit_key_created, __ATOMIC_ACQUIRE)) {
    return false;
  }
  slab_process_lock();
  region_t *region = create_region();
  slab_process_unlock();
  if (region == NULL) {
    return false;
  }
  // No lock held: it may call malloc.
  if (pthread_setspecific(exit_key, region) != 0) {
    slab_process_lock();
    destroy_region(region);
    slab_process_unlock();
    return false;
  }
  slab_thread_base = (unsigned char *)region;
  return true;
}

// ---- fork ----

static void lock_all(void) {
  slab_process_lock();
  for (slab_cache_t *cache = caches; cache != NULL; cache = cache->next) {
    pthread_mutex_lock(&cache->lock);
  }
  for (slab_cache_t *cache = caches; cache != NULL; cache = cache->next) {
    pthread_mutex_lock(&cache->depot.lock);
  }
  slab_memory_lock();
}

static void unlock_all(void) {
  slab_memory_unlock();
  for (slab_cache_t *cache = caches; cache != NULL; cache = cache->next) {
    pthread_mutex_unlock(&cache->depot.lock);
    pthread_mutex_unlock(&cache->lock);
  }
  slab_process_unlock();
}

// Are there states of cached objects in the word?
static bool has_cached(uint64_t word) {
  uint64_t low_bits = UINT64_C(0x7f7f7f7f7f7f7f7f);
  return (((word & low_bits) + low_bits) & word & ~low_bits) != 0;
}

// The objects of a magazine without a tag look like those of others: while
// those are collected they have the state `to`, NEVER, and again SHARED then.
// They are those of the stack, and those that a refill has in hand (the thread
// forked in a constructor).
static void mark_own(slab_cache_t *cache, const slab_magazine_t *magazine,
                     uint8_t from, uint8_t to) {
  void **end = slab_top_load(magazine) + magazine->num_in_hand;
  for (void **slot = magazine->bottom; slot < end; ++slot) {
    uint8_t *state =
        *slot == NULL ? NULL : slab_state_at(cache, (uintptr_t)*slot);
    if (state != NULL && slab_state_load(state) == from) {
      slab_state_store(state, to);
    }
  }
}

static void collect_in_slab(slab_cache_t *cache, slab_t *slab, uint8_t own) {
  for (size_t i = 0; i < slab->num_used; ++i) {
    uint64_t word;
    memcpy(&word, slab->states + i / 8 * 8, sizeof(word));
    if (!has_cached(word)) {
      i |= 7;
    } else if (slab->states[i] > SLAB_STATE_FREE && slab->states[i] != own) {
      slab->states[i] = SLAB_STATE_FREE;
      slab_put(cache, slab, i);
    }
  }
}

// Drops the magazines of a thread that is no more. Process's lock held.
static void abandon_region(region_t *region) {
  for (slab_cache_t *cache = caches; cache != NULL; cache = cache->next) {
    slab_magazine_t *magazine = &region->magazines[cache->magazine_id];
    if (magazine->cache != NULL) {
      slab_magazine_abandon(magazine);
    }
  }
  destroy_region(region);
}

// Puts into the slabs what other threads had. Process's lock held.
static void collect_orphans(slab_cache_t *cache) {
  slab_magazine_t *magazine = slab_magazine_of(&cache->fast);
  bool is_sharer = magazine->cache != NULL && magazine->traits.is_shared;
  if (is_sharer) {
    mark_own(cache, magazine, SLAB_STATE_SHARED, SLAB_STATE_NEVER);
  }
  slab_depot_drain(cache);
  // What is cached now is in this thread's magazine, or was another one's.
  pthread_mutex_lock(&cache->lock);
  slab_forget_planned(cache);
  // Another thread may have been about to set up its magazine with them.
  cache->buffer_slots_taken = cache->has_buffer && magazine->cache != NULL;
  for (size_t list = 0; list < SLAB_LIST_COUNT; ++list) {
    slab_t *next;
    for (slab_t *slab = cache->lists[list].first; slab != NULL; slab = next) {
      next = slab->next;
      collect_in_slab(cache, slab, magazine->traits.free_state);
    }
  }
  pthread_mutex_unlock(&cache->lock);
  if (is_sharer) {
    mark_own(cache, magazine, SLAB_STATE_NEVER, SLAB_STATE_SHARED);
  }
}

static void reset_in_child(void) {
  unlock_all();
  slab_process_lock();
  region_t *next;
  for (region_t *region = regions; region != NULL; region = next) {
    next = region->next;
    if ((unsigned char *)region != slab_thread_base) {
      abandon_region(region);
    }
  }
  // Other threads may have had objects without having a region.
  for (slab_cache_t *cache = caches; cache != NULL; cache = cache->next) {
    collect_orphans(cache);
  }
  slab_process_unlock();
}

// ---- caches ----

static size_t take_id(void) {
  for (size_t word = 0; word < SLAB_MAGAZINE_IDS / 64; ++word) {
    if (~ids_used[word] != 0) {
      size_t bit = (size_t)__builtin_ctzll(~ids_used[word]);
      ids_used[word] |= UINT64_C(1) << bit;
      return word * 64 + bit;
    }
  }
  return 0;
}

// Process's lock held.
static void hook_process(void) {
  if (!fork_handled) {
    fork_handled = pthread_atfork(lock_all, unlock_all, reset_in_child) == 0;
  }
  if (!exit_key_created && pthread_key_create(&exit_key, thread_exited) == 0) {
    __atomic_store_n(&exit_key_created, true, __ATOMIC_RELEASE);
  }
}

// Early, so that handlers of the program for the child of a fork run after ours
// and find caches to use, and that there still is a key.
__attribute__((constructor(101))) static void hook_at_load(void) {
  slab_process_lock();
  hook_process();
  slab_process_unlock();
}

// Or each load would take a key. Threads that still run lose what they have
// cached.
__attribute__((destructor)) static void unhook_at_unload(void) {
  slab_process_lock();
  if (exit_key_created) {
    __atomic_store_n(&exit_key_created, false, __ATOMIC_RELEASE);
    pthread_key_delete(exit_key);
  }
  slab_process_unlock();
}

void slab_take_id(slab_cache_t *cache) {
  cache->magazine_id = cache->max_slots == 0 ? 0 : take_id();
  cache->fast.magazine_offset_bytes =
      offsetof(region_t, magazines) +
      cache->magazine_id * sizeof(slab_magazine_t);
}

void slab_register(slab_cache_t *cache) {
  hook_process();
  cache->prev = NULL;
  cache->next = caches;
  if (caches != NULL) {
    caches->prev = cache;
  }
  caches = cache;
}

void slab_unregister(slab_cache_t *cache) {
  if (cache->magazine_id != 0) {
    ids_used[cache->magazine_id / 64] &=
        ~(UINT64_C(1) << (cache->magazine_id % 64));
  }
  if (cache->prev == NULL) {
    caches = cache->next;
  } else {
    cache->prev->next = cache->next;
  }
  if (cache->next != NULL) {
    cache->next->prev = cache->prev;
  }
}
