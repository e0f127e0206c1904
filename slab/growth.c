// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How slabs come and go.
//
// In the range (range.c) they grow with the cache, from 64 KiB to 2 MiB, about
// 1/16 of what there is; the large ones ask for huge pages, since random use of
// many objects costs a TLB miss an object otherwise. All of it happens under
// the cache's lock, as it is a call or two to the kernel.
//
// Slabs outside of it (table.c) are of one size. Such a slab is planned under
// the cache's lock (its share of the limit), allocated without it, since the
// source may be the caller's, and published under it. Two threads may so make
// one each where one would do. Near the limit the first one's plan has all that
// is left; the second one waits for that slab, or for its failure, before it
// says that there is nothing. The objects of successive ones are shifted by a
// cache line each, as far as that costs no more than 1/64 of the slab, so that
// the first lines of large objects do not all compete for the same sets of the
// cache; in the range the stride sees to that.
//
// Empty slabs are kept, up to 4 MiB and a quarter of what is in use; beyond
// that the thread that emptied the last one gives them back. If they are wanted
// again soon, twice as much is kept from then on; if not, half.

#include "slab/slab_internal.h"

#include <string.h>

enum {
  HUGE_BYTES = 1 << 21,
  // A cache of this size has its next slabs as large as they get.
  LARGE_CACHE_BYTES = 8 << 20,
  OBJECTS_WANTED = 8,
  LINE_BYTES = 64,
  COLORS_MAX = 8,
  WASTE_SHIFT = 6,
  WORD_BYTES = 8,
  KEEP_BYTES_MIN = 4 << 20,
};

// What a slab in the making will be.
typedef struct plan {
  size_t bytes;
  size_t count;
  size_t num_forks;  // The cache's, when it was reserved.
} plan_t;

// ---- in the range ----

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

// A slab is there again. If that makes up for most of what went back last, it
// should not have gone. Lock held.
static void learn_to_keep(slab_cache_t *cache, size_t bytes) {
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

// Makes an empty slab of up to `count` objects of one without any. Lock held.
static void start_slab(const slab_cache_t *cache, slab_t *slab, size_t count) {
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
    start_slab(cache, slab, most);
    cache->num_objects += slab->count;
    cache->slab_bytes += slab->memory_bytes;
    learn_to_keep(cache, slab->memory_bytes);
    slab_list_add(cache, slab);
  }
  pthread_mutex_unlock(&cache->lock);
  return slab != NULL;
}

// ---- outside of it ----

// Returns how far the objects of a slab at `memory` are shifted.
static size_t color_bytes(const slab_cache_t *cache, uintptr_t memory,
                          size_t slab_bytes) {
  size_t step =
      cache->align_bytes > LINE_BYTES ? cache->align_bytes : LINE_BYTES;
  size_t spare = (slab_bytes - cache->front_bytes) % cache->stride_bytes;
  size_t paid = slab_bytes >> WASTE_SHIFT;
  if (spare < paid && cache->stride_bytes <= paid) {
    spare = paid;  // At the cost of an object, or of some.
  }
  size_t count = spare / step + 1;
  return (memory >> cache->outside_shift) %
         (count < COLORS_MAX ? count : COLORS_MAX) * step;
}

// Bytes of the states and the records.
static size_t states_bytes(const slab_cache_t *cache, const slab_t *slab) {
  size_t room = slab_room(cache, slab);
  size_t bytes = slab_round_up(room, WORD_BYTES);
  if ((cache->flags & SLAB_DEBUG) != 0) {
    bytes += room * sizeof(slab_record_t);
  }
  return bytes;
}

static void free_head(slab_cache_t *cache, slab_t *slab) {
  slab_metadata_free(cache, slab->states, states_bytes(cache, slab));
  slab_metadata_free(cache, slab, sizeof(*slab));
}

// Makes what is known of a slab at `memory`. NULL if there is no memory.
static slab_t *head_new(slab_cache_t *cache, unsigned char *memory,
                        size_t bytes, size_t offset_bytes) {
  slab_t *slab = slab_metadata_alloc(cache, sizeof(*slab));
  if (slab == NULL) {
    return NULL;
  }
  slab->memory_bytes = bytes;
  slab->offset_bytes = (uint32_t)offset_bytes;
  slab->base = memory + offset_bytes;
  slab->list = SLAB_LIST_NONE;
  slab->is_outside = true;
  slab->states = slab_metadata_alloc(cache, states_bytes(cache, slab));
  if (slab->states == NULL) {
    free_head(cache, slab);
    return NULL;
  }
  return slab;
}

// Reserves what the plan says. Lock held.
static void reserve(slab_cache_t *cache, plan_t *plan) {
  cache->num_objects += plan->count;
  cache->slab_bytes += plan->bytes;
  ++cache->num_planned;
  plan->num_forks = cache->num_forks;
}

// Plans the next slab and reserves its objects. False: the limit leaves none.
// Then, if slabs are in the making, waits until one of them is there or is not
// to be, and sets `*out_has_waited`.
static bool plan_slab(slab_cache_t *cache, plan_t *out_plan,
                      bool *out_has_waited) {
  pthread_mutex_lock(&cache->lock);
  size_t most = cache->max_objects - cache->num_objects;
  size_t bytes = (size_t)1 << cache->outside_shift;
  size_t count = (bytes - cache->front_bytes) / cache->stride_bytes;
  *out_plan = (plan_t){.bytes = bytes, .count = count < most ? count : most};
  count = out_plan->count;
  if (count != 0) {
    reserve(cache, out_plan);
    learn_to_keep(cache, bytes);
  }
  *out_has_waited = count == 0 && cache->num_planned != 0;
  if (*out_has_waited) {
    ++cache->num_waiting;
    // One wake-up is enough, spurious or not: the caller looks again.
    pthread_cond_wait(&cache->grown, &cache->lock);
    --cache->num_waiting;
  }
  pthread_mutex_unlock(&cache->lock);
  return count != 0;
}

// The slab is there, or, then what was reserved is not any more, is not to be.
static void end_plan(slab_cache_t *cache, const plan_t *plan, bool is_there) {
  pthread_mutex_lock(&cache->lock);
  if (plan->num_forks == cache->num_forks) {
    if (!is_there) {
      cache->num_objects -= plan->count;
      cache->slab_bytes -= plan->bytes;
    }
    --cache->num_planned;
  }
  if (cache->num_waiting != 0) {
    pthread_cond_broadcast(&cache->grown);
  }
  pthread_mutex_unlock(&cache->lock);
}

void slab_forget_planned(slab_cache_t *cache) {
  cache->num_objects = 0;
  cache->slab_bytes = 0;
  cache->num_planned = 0;
  ++cache->num_forks;
  cache->num_waiting = 0;
  slab_range_retire_lost(cache);
  // Anew: those who waited are not here.
  pthread_cond_init(&cache->grown, NULL);
  for (size_t list = 0; list < SLAB_LIST_COUNT; ++list) {
    for (slab_t *slab = cache->lists[list].first; slab != NULL;
         slab = slab->next) {
      cache->num_objects += slab->count;
      cache->slab_bytes += slab->memory_bytes;
    }
  }
}

// Makes `slab`, whose memory is there, one of the cache's. False: there is no
// room in the table. Lock held.
static bool link_slab(slab_cache_t *cache, slab_t *slab, plan_t *plan) {
  bool is_new = slab->list == SLAB_LIST_NONE;
  if (is_new && !slab_table_insert(cache, slab)) {
    return false;
  }
  if (plan->num_forks != cache->num_forks) {
    // This thread forked, inside the source, and is the child now.
    reserve(cache, plan);
  }
  start_slab(cache, slab, plan->count);
  // Its color may have cost some.
  cache->num_objects -= plan->count - slab->count;
  plan->count = slab->count;
  slab_list_add(cache, slab);
  return true;
}

// Links the slab that was at `memory` before; false if there was none.
static bool link_again(slab_cache_t *cache, unsigned char *memory,
                       plan_t *plan) {
  slab_t *slab = slab_table_find(cache, (uintptr_t)memory);
  if (slab == NULL) {
    return false;
  }
  if ((cache->flags & SLAB_DEBUG) != 0) {
    slab_debug_init_slab(cache, slab);
  }
  pthread_mutex_lock(&cache->lock);
  if (slab->list != SLAB_LIST_RETIRED) {
    SLAB_DIE("slab_alloc: the source returned memory that is in use");
  }
  link_slab(cache, slab, plan);
  pthread_mutex_unlock(&cache->lock);
  return true;
}

// Links a new slab at `memory`. False: no memory.
static bool link_new(slab_cache_t *cache, unsigned char *memory, plan_t *plan) {
  slab_t *slab = head_new(
      cache, memory, plan->bytes,
      cache->front_bytes + color_bytes(cache, (uintptr_t)memory, plan->bytes));
  if (slab == NULL) {
    return false;
  }
  if ((cache->flags & SLAB_DEBUG) != 0) {
    slab_debug_init_slab(cache, slab);
  }
  while (slab_table_make_room(cache)) {
    pthread_mutex_lock(&cache->lock);
    bool is_linked = link_slab(cache, slab, plan);
    pthread_mutex_unlock(&cache->lock);
    if (is_linked) {
      return true;
    }
    // Others took the room meanwhile.
  }
  free_head(cache, slab);
  return false;
}

static bool grow_outside(slab_cache_t *cache, plan_t *plan) {
  unsigned char *memory = slab_memory_alloc(cache, plan->bytes, plan->bytes);
  if (memory == NULL) {
    return false;
  }
  if ((uintptr_t)memory % plan->bytes != 0) {
    SLAB_DIE("slab_alloc: the source's memory is not aligned as asked");
  }
  if (link_again(cache, memory, plan) || link_new(cache, memory, plan)) {
    return true;
  }
  slab_memory_free(cache, memory, plan->bytes);
  return false;
}

bool slab_grow(slab_cache_t *cache) {
  if (cache->has_buffer) {
    return false;
  }
  if (grow_in_range(cache)) {
    return true;
  }
  plan_t plan;
  bool has_waited = false;
  if (!plan_slab(cache, &plan, &has_waited)) {
    return has_waited;
  }
  bool is_there = grow_outside(cache, &plan);
  end_plan(cache, &plan, is_there);
  return is_there;
}

// ---- in a buffer ----

bool slab_grow_in_buffer(slab_cache_t *cache) {
  slab_buffer_t *buffer = &cache->buffer;
  size_t align_bytes =
      cache->align_bytes > LINE_BYTES ? cache->align_bytes : LINE_BYTES;
  size_t left_bytes = (size_t)(buffer->end - buffer->next);
  size_t fixed_bytes =
      sizeof(slab_t) + cache->front_bytes + align_bytes + 4 * LINE_BYTES;
  size_t each_bytes = cache->stride_bytes + 1;
  if ((cache->flags & SLAB_DEBUG) != 0) {
    each_bytes += sizeof(slab_record_t);
  }
  if (left_bytes < fixed_bytes + each_bytes) {
    return false;
  }
  size_t count = (left_bytes - fixed_bytes) / each_bytes;
  if (count > cache->max_objects) {
    count = cache->max_objects;
  }
  if (count > UINT32_MAX) {
    count = UINT32_MAX;
  }
  size_t bytes = cache->front_bytes + count * cache->stride_bytes;
  unsigned char *memory = slab_memory_alloc(cache, bytes, align_bytes);
  slab_t *slab = memory == NULL
                     ? NULL
                     : head_new(cache, memory, bytes, cache->front_bytes);
  if (slab == NULL) {
    return false;
  }
  if ((cache->flags & SLAB_DEBUG) != 0) {
    slab_debug_init_slab(cache, slab);
  }
  cache->buffer_slab = slab;
  cache->fast.base = (uintptr_t)slab->base;
  cache->fast.limit_bytes = count * cache->stride_bytes;
  cache->fast.states = slab->states;
  start_slab(cache, slab, count);
  slab_list_add(cache, slab);
  cache->num_objects = slab->count;
  cache->slab_bytes = bytes;
  return true;
}

// ---- giving back ----

slab_t *slab_unlink_empty(slab_cache_t *cache, size_t bytes) {
  slab_t *chain = NULL;
  size_t unlinked = 0;
  while (unlinked < bytes && cache->lists[SLAB_LIST_EMPTY].first != NULL) {
    slab_t *slab = cache->lists[SLAB_LIST_EMPTY].first;
    slab_verify_count(cache, slab, "slab_free");
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

static void retire_outside(slab_cache_t *cache, slab_t *slab) {
  unsigned char *memory = slab_memory_of(slab);
  size_t bytes = slab->memory_bytes;
  pthread_mutex_lock(&cache->lock);
  memset(slab->states, SLAB_STATE_UNUSED, slab->num_used);
  slab->num_used = 0;
  slab->list = SLAB_LIST_RETIRED;
  pthread_mutex_unlock(&cache->lock);
  // From now on it may come back at any moment, and the slab with it.
  slab_memory_free(cache, memory, bytes);
}

static void retire_in_range(slab_cache_t *cache, slab_t *slab) {
  slab_kernel->discard(slab_memory_of(slab), slab->memory_bytes);
  pthread_mutex_lock(&cache->lock);
  slab_range_retire(cache, slab);
  pthread_mutex_unlock(&cache->lock);
}

size_t slab_retire_chain(slab_cache_t *cache, slab_t *first) {
  size_t bytes = 0;
  while (first != NULL) {
    slab_t *slab = first;
    first = slab->next;
    bytes += slab->memory_bytes;
    destruct_all(cache, slab);
    if (cache->has_buffer) {
      continue;
    }
    if (slab->is_outside) {
      retire_outside(cache, slab);
    } else {
      retire_in_range(cache, slab);
    }
  }
  return bytes;
}

void slab_free_retired(slab_cache_t *cache) {
  for (size_t i = 0; cache->table != NULL && i <= cache->table->mask; ++i) {
    if (cache->table->slots[i] != NULL) {
      free_head(cache, cache->table->slots[i]);
    }
  }
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
  slab_t *chain = excess == 0 ? NULL : slab_unlink_empty(cache, excess);
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
