// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How slabs come and go.
//
// In the range (range.c) they grow with the cache, from 64 KiB to 2 MiB, about
// 1/16 of what there is; the large ones ask for huge pages, since random use of
// many objects costs a TLB miss an object otherwise. All of it happens under
// the cache's lock, as it is a call or two to the kernel.
//
// What does not fit there is outside (outside.c).
//
// Empty slabs are kept, up to 4 MiB and a quarter of what is in use; beyond
// that the thread that emptied the last one gives them back. If they are wanted
// again soon, twice as much is kept from then on; if not, half.

#include "slab/slab_internal.h"

enum {
  HUGE_BYTES = 1 << 21,
  // A cache of this size has its next slabs as large as they get.
  LARGE_CACHE_BYTES = 8 << 20,
  OBJECTS_WANTED = 8,
  KEEP_BYTES_MIN = 4 << 20,
};

// How large the next slab is. Lock held.
static size_t next_slab_bytes(const slab_cache_t *cache) {
  size_t bytes = SLAB_GRANULE_BYTES;
  bool is_large = cache->slab_bytes >= LARGE_CACHE_BYTES;
  while (bytes < SLAB_BYTES_MAX &&
         (is_large || bytes <= cache->slab_bytes / 16)) {
    bytes *= 2;
  }
  // Of these, less than one more is lost at its ends.
  size_t least = slab_round_up((OBJECTS_WANTED + 1) * cache->stride_bytes,
                               SLAB_GRANULE_BYTES);
  return bytes > least ? bytes : least;
}

// If it makes up for most of what went back last, that should not have gone.
void slab_learn_to_keep(slab_cache_t *cache, size_t bytes) {
  if (cache->released_bytes == 0) {
    return;
  }
  cache->regrown_bytes += bytes;
  if (cache->regrown_bytes >= cache->released_bytes / 2) {
    cache->keep_bytes *= 2;
    cache->released_bytes = 0;
    cache->regrown_bytes = 0;
  }
}

void slab_start(const slab_cache_t *cache, slab_t *slab, size_t count) {
  size_t room = slab_room(cache, slab);
  slab->count = (uint32_t)(count < room ? count : room);
  slab->num_free = slab->count;
  slab->num_used = 0;
  slab->first_free = 0;
}

// Makes a slab of the range. False: it is full, or there is no memory, or the
// limit leaves nothing.
static bool grow_in_range(slab_cache_t *cache) {
  slab_t *slab = NULL;
  pthread_mutex_lock(&cache->lock);
  size_t most = cache->max_objects - cache->num_objects;
  if (most != 0 && cache->range.map != NULL) {
    size_t bytes = next_slab_bytes(cache);
    bool is_huge =
        bytes == HUGE_BYTES && cache->slab_bytes >= LARGE_CACHE_BYTES;
    slab = slab_range_take(cache, bytes, is_huge);
  }
  if (slab != NULL) {
    slab_start(cache, slab, most);
    cache->num_objects += slab->count;
    cache->slab_bytes += slab->memory_bytes;
    slab_learn_to_keep(cache, slab->memory_bytes);
    slab_list_add(cache, slab);
  }
  pthread_mutex_unlock(&cache->lock);
  return slab != NULL;
}

bool slab_grow(slab_cache_t *cache) {
  return !cache->has_buffer &&
         (grow_in_range(cache) || slab_grow_outside(cache));
}

// ---- giving back ----

slab_t *slab_unlink_empty(slab_cache_t *cache, size_t bytes,
                          const char *function) {
  slab_t *chain = NULL;
  size_t unlinked = 0;
  while (unlinked < bytes && cache->lists[SLAB_LIST_EMPTY].first != NULL) {
    slab_t *slab = cache->lists[SLAB_LIST_EMPTY].first;
    slab_verify(cache, slab, function);
    slab_list_drop(cache, slab);
    cache->num_objects -= slab->count;
    cache->slab_bytes -= slab->memory_bytes;
    unlinked += slab->memory_bytes;
    slab->next = chain;
    chain = slab;
  }
  return chain;
}

static void destruct_all(const slab_cache_t *cache, const slab_t *slab) {
  for (size_t i = 0; cache->destruct != NULL && i < slab->num_used; ++i) {
    if (slab_state_load(&slab->states[i]) != SLAB_STATE_RAW) {
      cache->destruct(slab_object_at(cache, slab, i), cache->context);
    }
  }
}

// What this thread is retiring; in destructors of one cache's objects others
// may be used.
typedef struct retiring {
  const slab_t *first;  // Of what is left of the chain.
  struct retiring *outer;
} retiring_t;
static __thread retiring_t *innermost SLAB_TLS_MODEL;

bool slab_is_retiring(const slab_t *slab) {
  for (const retiring_t *one = innermost; one != NULL; one = one->outer) {
    for (const slab_t *left = one->first; left != NULL; left = left->next) {
      if (left == slab) {
        return true;
      }
    }
  }
  return false;
}

static void retire_in_range(slab_cache_t *cache, slab_t *slab) {
  slab_kernel->discard(slab_memory_of(slab), slab->memory_bytes);
  pthread_mutex_lock(&cache->lock);
  slab_range_retire(cache, slab);
  pthread_mutex_unlock(&cache->lock);
}

size_t slab_retire_chain(slab_cache_t *cache, slab_t *first) {
  size_t bytes = 0;
  retiring_t own = {.outer = innermost};
  innermost = &own;
  while (first != NULL) {
    slab_t *slab = first;
    own.first = slab;
    first = slab->next;
    bytes += slab->memory_bytes;
    destruct_all(cache, slab);
    if (cache->has_buffer) {
      continue;
    }
    if (slab->is_outside) {
      own.first = first;  // Nobody asks for it, and soon it is gone.
      slab_retire_outside(cache, slab);
    } else {
      retire_in_range(cache, slab);
    }
  }
  innermost = own.outer;
  return bytes;
}

void slab_keep_least(slab_cache_t *cache) {
  cache->keep_bytes = KEEP_BYTES_MIN;
  cache->released_bytes = 0;
  cache->regrown_bytes = 0;
}

// How many bytes of empty slabs are too many and will be unlinked. Lock held.
static size_t excess_bytes(slab_cache_t *cache) {
  if (cache->has_buffer) {
    return 0;
  }
  size_t used_bytes = cache->slab_bytes - cache->empty_bytes;
  size_t kept_bytes = cache->keep_bytes + used_bytes / 4;
  if (cache->empty_bytes <= kept_bytes) {
    return 0;
  }
  // What went back before is still gone: as much again was not needed.
  if (cache->released_bytes != 0 && cache->keep_bytes > KEEP_BYTES_MIN) {
    cache->keep_bytes /= 2;
  }
  cache->released_bytes = cache->empty_bytes - kept_bytes / 2;
  return cache->released_bytes;
}

void slab_release_excess(slab_cache_t *cache) {
  pthread_mutex_lock(&cache->lock);
  size_t excess = excess_bytes(cache);
  slab_t *chain =
      excess == 0 ? NULL : slab_unlink_empty(cache, excess, "slab_free");
  pthread_mutex_unlock(&cache->lock);
  if (chain != NULL) {
    slab_retire_chain(cache, chain);
  }
}

size_t slab_take_constructed(slab_cache_t *cache, uint8_t state,
                             void **out_objects, size_t count) {
  size_t taken;
  size_t num_unused;
  do {
    pthread_mutex_lock(&cache->lock);
    taken = slab_take(cache, state, out_objects, count, &num_unused);
    pthread_mutex_unlock(&cache->lock);
  } while (taken == 0 && slab_grow(cache));
  for (size_t i = taken - num_unused; cache->construct != NULL && i < taken;
       ++i) {
    cache->construct(out_objects[i], cache->context);
    slab_state_store(slab_state_at(cache, (uintptr_t)out_objects[i]), state);
  }
  return taken;
}
