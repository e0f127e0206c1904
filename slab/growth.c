// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How slabs come and go.
//
// They grow with the cache, from 64 KiB to 2 MiB, about 1/8 of what there is;
// the large ones ask for huge pages, since random use of many objects costs a
// TLB miss an object otherwise. A slab starts at a granule. Colors shift the
// objects of successive slabs by a cache line each, as far as that costs no
// more than 1/64 of the slab, so that the first lines of large objects do not
// all compete for the same sets of the cache.
//
// A slab is planned under the cache's lock (size, color, its share of the
// limit), allocated without it, and published under it. Two threads may so make
// one each where one would do. Near the limit the first one's plan has all that
// is left; the second one waits for that slab, or for its failure, before it
// says that there is nothing.
//
// Empty slabs are kept, up to 4 MiB and a quarter of what is in use; beyond
// that the thread that emptied the last one gives them back. If they are wanted
// again soon, twice as much is kept from then on; if not, half.

#include "slab/slab_internal.h"

enum {
  SLAB_BYTES_MAX = 1 << 21,
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
  size_t offset_bytes;
  size_t count;
  bool is_huge;
  size_t num_forks;  // The cache's, when it was reserved.
} plan_t;

// How large the next slab is. Lock held.
static size_t next_slab_bytes(const slab_cache_t *cache) {
  size_t bytes = SLAB_GRANULE_BYTES;
  bool is_large = cache->slab_bytes >= LARGE_CACHE_BYTES;
  while (bytes < SLAB_BYTES_MAX &&
         (is_large || bytes < OBJECTS_WANTED * cache->stride_bytes ||
          bytes <= cache->slab_bytes / 16)) {
    bytes *= 2;
  }
  size_t least = cache->front_bytes + cache->stride_bytes;
  return bytes >= least ? bytes : slab_round_up(least, SLAB_GRANULE_BYTES);
}

// Returns how far the objects of the next slab are shifted. Lock held.
static size_t next_color_bytes(slab_cache_t *cache, size_t slab_bytes) {
  size_t step =
      cache->align_bytes > LINE_BYTES ? cache->align_bytes : LINE_BYTES;
  size_t spare = (slab_bytes - cache->front_bytes) % cache->stride_bytes;
  size_t paid = slab_bytes >> WASTE_SHIFT;
  if (spare < paid && cache->stride_bytes <= paid) {
    spare = paid;  // At the cost of an object, or of some.
  }
  size_t count = spare / step + 1;
  return cache->next_color++ % (count < COLORS_MAX ? count : COLORS_MAX) * step;
}

// Bytes of the states and the records.
static size_t states_bytes(const slab_cache_t *cache, const slab_t *slab) {
  size_t bytes = slab_round_up(slab->count, WORD_BYTES);
  if ((cache->flags & SLAB_DEBUG) != 0) {
    bytes += slab->count * sizeof(slab_record_t);
  }
  return bytes;
}

static void free_parts(slab_cache_t *cache, slab_t *slab) {
  slab_metadata_free(cache, slab->states, states_bytes(cache, slab));
  if (slab->base != NULL) {
    slab_memory_free(cache, slab->base - slab->offset_bytes,
                     slab->memory_bytes);
  }
  slab_metadata_free(cache, slab, sizeof(*slab));
}

// Returns the memory of a slab, NULL if there is none.
static unsigned char *alloc_memory(slab_cache_t *cache, const plan_t *plan) {
  // No two slabs share a granule; a buffer has one slab.
  size_t align_bytes = cache->has_buffer ? LINE_BYTES : SLAB_GRANULE_BYTES;
  if (align_bytes < cache->align_bytes) {
    align_bytes = cache->align_bytes;
  }
  unsigned char *memory = slab_memory_alloc(
      cache, plan->bytes, plan->is_huge ? HUGE_BYTES : align_bytes);
  if (memory != NULL && plan->is_huge) {
    slab_kernel->advise_huge(memory, plan->bytes);
  }
  return memory;
}

// Allocates all of a slab. NULL if there is no memory.
static slab_t *slab_new(slab_cache_t *cache, const plan_t *plan) {
  slab_t *slab = slab_metadata_alloc(cache, sizeof(*slab));
  if (slab == NULL) {
    return NULL;
  }
  slab->memory_bytes = plan->bytes;
  slab->offset_bytes = (uint32_t)plan->offset_bytes;
  slab->count = (uint32_t)plan->count;
  slab->num_free = slab->count;
  slab->states = slab_metadata_alloc(cache, states_bytes(cache, slab));
  unsigned char *memory =
      slab->states == NULL ? NULL : alloc_memory(cache, plan);
  if (memory == NULL) {
    free_parts(cache, slab);
    return NULL;
  }
  slab->base = memory + plan->offset_bytes;
  if ((cache->flags & SLAB_DEBUG) != 0) {
    slab_debug_init_slab(cache, slab);
  }
  return slab;
}

// Returns the log2 of the size of a table that has room for `num_granules`
// more, 0 if the present one has.
static size_t needed_table_log2(slab_cache_t *cache, size_t num_granules) {
  pthread_mutex_lock(&cache->lock);
  slab_table_t *table = cache->fast.table;
  bool has_room = slab_table_has_room(table, num_granules);
  size_t size_log2 = slab_table_log2(table) + 1;
  size_t needed = table->num_used + num_granules;
  pthread_mutex_unlock(&cache->lock);
  while ((size_t)1 << size_log2 < 2 * needed) {
    ++size_log2;
  }
  return has_room ? 0 : size_log2;
}

// Makes the table 2^`size_log2` entries large, unless another thread was
// faster. False: no memory.
static bool grow_table(slab_cache_t *cache, size_t size_log2) {
  if (size_log2 >= SLAB_TABLE_SIZES) {
    return false;
  }
  slab_table_t *bigger =
      slab_metadata_alloc(cache, slab_table_bytes(size_log2));
  if (bigger == NULL) {
    return false;
  }
  slab_table_init(bigger, size_log2);
  pthread_mutex_lock(&cache->lock);
  if (size_log2 > slab_table_log2(cache->fast.table)) {
    slab_table_replace(cache, bigger);
    bigger = NULL;
  }
  pthread_mutex_unlock(&cache->lock);
  slab_metadata_free(cache, bigger, slab_table_bytes(size_log2));
  return true;
}

// Reserves what the plan says. Lock held.
static void reserve(slab_cache_t *cache, plan_t *plan) {
  cache->num_objects += plan->count;
  cache->slab_bytes += plan->bytes;
  ++cache->num_planned;
  plan->num_forks = cache->num_forks;
}

// Publishes `slab`; false if its table is full by now. Lock held.
static bool link_slab(slab_cache_t *cache, slab_t *slab, plan_t *plan) {
  if (!slab_table_has_room(cache->fast.table,
                           slab_granule_count(cache, slab))) {
    return false;
  }
  if (plan->num_forks != cache->num_forks) {
    // This thread forked, inside the source, and is the child now.
    reserve(cache, plan);
  }
  slab_table_insert(cache, cache->fast.table, slab);
  slab_list_add(cache, slab);
  return true;
}

// A slab came from the source. If that makes up for most of what went back
// last, it should not have gone. Lock held.
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

// Plans the next slab and reserves its objects. False: the limit leaves none.
// Then, if slabs are in the making, waits until one of them is there or is not
// to be, and sets `*out_has_waited`.
static bool plan_slab(slab_cache_t *cache, plan_t *out_plan,
                      bool *out_has_waited) {
  pthread_mutex_lock(&cache->lock);
  size_t most = cache->max_objects - cache->num_objects;
  size_t bytes = next_slab_bytes(cache);
  size_t offset_bytes = cache->front_bytes + next_color_bytes(cache, bytes);
  size_t count = (bytes - offset_bytes) / cache->stride_bytes;
  if (count > most) {
    count = most;
    bytes = slab_round_up(offset_bytes + count * cache->stride_bytes,
                          SLAB_GRANULE_BYTES);
  }
  *out_plan = (plan_t){
      .bytes = bytes,
      .offset_bytes = offset_bytes,
      .count = count,
      .is_huge = bytes == HUGE_BYTES && !cache->has_source &&
                 cache->slab_bytes >= LARGE_CACHE_BYTES,
  };
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

// Publishes `slab`, with a larger table if need be. False: no memory.
static bool publish(slab_cache_t *cache, slab_t *slab, plan_t *plan) {
  for (;;) {
    size_t size_log2 =
        needed_table_log2(cache, slab_granule_count(cache, slab));
    if (size_log2 != 0 && !grow_table(cache, size_log2)) {
      return false;
    }
    pthread_mutex_lock(&cache->lock);
    bool is_linked = link_slab(cache, slab, plan);
    pthread_mutex_unlock(&cache->lock);
    if (is_linked) {
      return true;
    }
    // Others filled the table meanwhile.
  }
}

bool slab_grow(slab_cache_t *cache) {
  plan_t plan;
  bool has_waited = false;
  if (cache->has_buffer || !plan_slab(cache, &plan, &has_waited)) {
    return has_waited;
  }
  slab_t *slab = slab_new(cache, &plan);
  bool is_there = slab != NULL && publish(cache, slab, &plan);
  if (slab != NULL && !is_there) {
    free_parts(cache, slab);
  }
  end_plan(cache, &plan, is_there);
  return is_there;
}

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
  if (cache->num_slabs != 0 || left_bytes < fixed_bytes + each_bytes) {
    return false;
  }
  size_t count = (left_bytes - fixed_bytes) / each_bytes;
  if (count > cache->max_objects) {
    count = cache->max_objects;
  }
  if (count > UINT32_MAX) {
    count = UINT32_MAX;
  }
  plan_t plan = {
      .bytes = cache->front_bytes + count * cache->stride_bytes,
      .offset_bytes = cache->front_bytes,
      .count = count,
  };
  slab_t *slab = slab_new(cache, &plan);
  if (slab == NULL || !link_slab(cache, slab, &plan)) {
    return false;
  }
  cache->num_objects = count;
  cache->slab_bytes = plan.bytes;
  return true;
}

// Magazines may know states of slabs that go, of objects that they gave out
// last. Never 0, the epoch of a magazine that is not in use. Lock held.
static void change_epoch(slab_cache_t *cache) {
  uint32_t epoch = cache->fast.epoch + 1;
  epoch += epoch == 0;
  __atomic_store_n(&cache->fast.epoch, epoch, __ATOMIC_RELAXED);
}

slab_t *slab_unlink_empty(slab_cache_t *cache, size_t bytes) {
  slab_t *chain = NULL;
  size_t unlinked = 0;
  while (unlinked < bytes && cache->lists[SLAB_LIST_EMPTY].first != NULL) {
    slab_t *slab = cache->lists[SLAB_LIST_EMPTY].first;
    slab_verify_count(cache, slab, "slab_free");
    slab_list_drop(cache, slab);
    slab_table_remove(cache, slab);
    cache->num_objects -= slab->count;
    cache->slab_bytes -= slab->memory_bytes;
    unlinked += slab->memory_bytes;
    slab->next = chain;
    chain = slab;
  }
  if (chain != NULL) {
    change_epoch(cache);
  }
  return chain;
}

size_t slab_destroy_chain(slab_cache_t *cache, slab_t *first) {
  size_t bytes = 0;
  while (first != NULL) {
    slab_t *slab = first;
    first = slab->next;
    for (size_t i = 0; cache->destruct != NULL && i < slab->num_used; ++i) {
      if (slab_state_load(&slab->states[i]) != SLAB_STATE_RAW) {
        cache->destruct(slab_object_at(cache, slab, i), cache->context);
      }
    }
    bytes += slab->memory_bytes;
    free_parts(cache, slab);
  }
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
  slab_t *chain = excess == 0 ? NULL : slab_unlink_empty(cache, excess);
  pthread_mutex_unlock(&cache->lock);
  if (chain != NULL) {
    slab_destroy_chain(cache, chain);
  }
}

size_t slab_take_constructed(slab_cache_t *cache, uint8_t state,
                             slab_slot_t *slots, size_t count) {
  size_t taken;
  size_t num_unused;
  do {
    pthread_mutex_lock(&cache->lock);
    taken = slab_take(cache, state, slots, count, &num_unused);
    pthread_mutex_unlock(&cache->lock);
  } while (taken == 0 && slab_grow(cache));
  for (size_t i = taken - num_unused; cache->construct != NULL && i < taken;
       ++i) {
    cache->construct(slots[i].object, cache->context);
    slab_state_store(slots[i].state, state);
  }
  return taken;
}
