// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Slabs that are in no range: those outside of it (table.c says whose), and the
// one of a cache in a buffer.
//
// Outside, slabs are of one size, a power of two, at multiples of it. Such a
// slab is planned under the cache's lock (its share of the limit), allocated
// without it, since the source may be the caller's, and published under it. Two
// threads may so make one each where one would do. Near the limit the first
// one's plan has all that is left; the second one waits for that slab, or for
// its failure, before it says that there is nothing.
//
// A slab leaves the table before its memory goes back: at once the source may
// hand that out again.
//
// Objects of different slabs are shifted by lines, as far as that costs no more
// than 1/64 of the slab, so that the first lines of large objects do not all
// compete for the same sets of the processor's cache; in a range the stride
// sees to that. How far, the address says, so it is the same when the memory
// comes back.

#include "slab/slab_internal.h"

#include <string.h>

enum {
  LINE_BYTES = 64,
  COLORS_MAX = 8,
  WASTE_SHIFT = 6,
  WORD_BYTES = 8,
};

// What a slab in the making will be.
typedef struct plan {
  size_t bytes;
  size_t count;
  size_t num_forks;  // The cache's, when it was reserved.
} plan_t;

// ---- what is known of a slab ----

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
    slab_learn_to_keep(cache, bytes);
  }
  *out_has_waited = count == 0 && cache->num_planned != 0;
  if (*out_has_waited) {
    // One wake-up is enough, spurious or not: the caller looks again. A thread
    // that were cancelled here would keep the lock.
    int cancel_state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
    ++cache->num_waiting;
    pthread_cond_wait(&cache->grown, &cache->lock);
    --cache->num_waiting;
    pthread_setcancelstate(cancel_state, NULL);
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
  slab_table_forget_lost(cache);
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
  if (slab_table_find(cache, (uintptr_t)slab->base) != NULL) {
    SLAB_DIE("slab_alloc: the source returned memory that is in use");
  }
  if (!slab_table_insert(cache, slab)) {
    return false;
  }
  if (plan->num_forks != cache->num_forks) {
    // This thread forked, inside the source, and is the child now.
    reserve(cache, plan);
  }
  slab_start(cache, slab, plan->count);
  // Its color may have cost some.
  cache->num_objects -= plan->count - slab->count;
  plan->count = slab->count;
  slab_list_add(cache, slab);
  return true;
}

// Links a slab at `memory`. False: no memory.
static bool link_at(slab_cache_t *cache, unsigned char *memory, plan_t *plan) {
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

// Makes the slab that is planned. False: no memory.
static bool make(slab_cache_t *cache, plan_t *plan) {
  unsigned char *memory = slab_memory_alloc(cache, plan->bytes, plan->bytes);
  if (memory == NULL) {
    return false;
  }
  if ((uintptr_t)memory % plan->bytes != 0) {
    SLAB_DIE("slab_alloc: the source's memory is not aligned as asked");
  }
  if (link_at(cache, memory, plan)) {
    return true;
  }
  slab_memory_free(cache, memory, plan->bytes);
  return false;
}

bool slab_grow_outside(slab_cache_t *cache) {
  plan_t plan;
  bool has_waited = false;
  if (!plan_slab(cache, &plan, &has_waited)) {
    return has_waited;
  }
  bool is_there = make(cache, &plan);
  end_plan(cache, &plan, is_there);
  return is_there;
}

void slab_retire_outside(slab_cache_t *cache, slab_t *slab) {
  pthread_mutex_lock(&cache->lock);
  slab_table_remove(cache, slab);
  pthread_mutex_unlock(&cache->lock);
  // From now on the source may hand its memory out again.
  slab_memory_free(cache, slab_memory_of(slab), slab->memory_bytes);
  free_head(cache, slab);
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
  slab_start(cache, slab, count);
  slab_list_add(cache, slab);
  cache->num_objects = slab->count;
  cache->slab_bytes = bytes;
  return true;
}
