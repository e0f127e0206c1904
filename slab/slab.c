// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The public functions, in the order of slab.h: making a cache, the calls that
// are the inline paths with a call around them, bulk, and the end of a cache.

#include "slab/slab.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "slab/slab_internal.h"

enum {
  DEFAULT_ALIGN_MAX = 16,
  STRIDE_MIN = 2,  // The reciprocal of 1 does not fit.
  LEAKS_NAMED = 8,
  LIMIT_SHARE = 64,  // Of max_objects, what a thread may have cached.
  PAGE_BYTES = 4096,
  LINE_BYTES = 64,
};

static_assert(offsetof(slab_cache_t, fast) == 0, "the inline paths cast");
static_assert(sizeof(slab_cache_t) <= PAGE_BYTES / 2, "room to differ");
static_assert(sizeof(void *) == 8, "reciprocals are of 64 bits");

// ---- create ----

static bool is_power_of_two(size_t value) {
  return value != 0 && (value & (value - 1)) == 0;
}

static bool are_valid(const slab_options_t *options) {
  return options->object_bytes != 0 &&
         options->object_bytes <= SLAB_OBJECT_BYTES_MAX &&
         (options->align_bytes == 0 ||
          (is_power_of_two(options->align_bytes) &&
           options->align_bytes <= SLAB_ALIGN_BYTES_MAX)) &&
         (options->flags & ~(unsigned)(SLAB_DEBUG | SLAB_NO_MAGAZINES)) == 0 &&
         (options->source.alloc == NULL) == (options->source.free == NULL);
}

static void set_layout(slab_cache_t *cache, const slab_options_t *options) {
  size_t size_bytes = options->object_bytes;
  size_t align_bytes = options->align_bytes;
  if (align_bytes == 0) {
    align_bytes = size_bytes & -size_bytes;
    if (align_bytes > DEFAULT_ALIGN_MAX) {
      align_bytes = DEFAULT_ALIGN_MAX;
    }
  }
  cache->object_bytes = size_bytes;
  cache->align_bytes = align_bytes;
  if ((options->flags & SLAB_DEBUG) != 0) {
    cache->front_bytes = slab_round_up(SLAB_RED_ZONE_BYTES, align_bytes);
    size_bytes += cache->front_bytes + SLAB_RED_ZONE_BYTES;
  }
  if (size_bytes < STRIDE_MIN) {
    size_bytes = STRIDE_MIN;
  }
  cache->stride_bytes = slab_round_up(size_bytes, align_bytes);
  cache->fast.epoch = 1;
  cache->fast.reciprocal = UINT64_MAX / cache->stride_bytes + 1;
}

// How many slots a magazine has at most.
static size_t max_slots(const slab_cache_t *cache) {
  if ((cache->flags & (SLAB_DEBUG | SLAB_NO_MAGAZINES)) != 0) {
    return 0;
  }
  size_t count = SLAB_CACHED_BYTES_MAX / cache->stride_bytes;
  if (count > SLAB_MAGAZINE_MAX_SLOTS) {
    count = SLAB_MAGAZINE_MAX_SLOTS;
  }
  count = count == 0 ? 1 : count;
  // Beside the slots there is the hot object.
  if (cache->max_objects / LIMIT_SHARE < count + 1) {
    count = cache->max_objects / LIMIT_SHARE;
    count -= count != 0;
  }
  return count;
}

static void set_options(slab_cache_t *cache, const slab_options_t *options) {
  if (options->name != NULL) {
    strncpy(cache->name, options->name, SLAB_NAME_BYTES_MAX);
  }
  cache->construct = options->construct;
  cache->destruct = options->destruct;
  cache->context = options->context;
  cache->flags = options->flags;
  cache->max_objects =
      options->max_objects == 0 ? SIZE_MAX : options->max_objects;
  cache->source = options->source;
  cache->has_source = options->source.alloc != NULL;
  cache->has_buffer = options->buffer != NULL;
  if (cache->has_buffer) {
    cache->buffer.next = options->buffer;
    cache->buffer.end = cache->buffer.next + options->buffer_bytes;
  }
  set_layout(cache, options);
  cache->max_slots = max_slots(cache);
  slab_keep_least(cache);
}

// Sets up what needs no memory but the cache's own.
static int init_locks(slab_cache_t *cache) {
  int status = pthread_mutex_init(&cache->lock, NULL);
  if (status == 0) {
    status = pthread_cond_init(&cache->grown, NULL);
  }
  return status != 0 ? status : slab_depot_init(cache);
}

static bool init_table(slab_cache_t *cache) {
  size_t size_log2 = SLAB_TABLE_MIN_LOG2;
  if (cache->has_buffer) {
    size_t bytes = (size_t)(cache->buffer.end - cache->buffer.next);
    while ((size_t)1 << size_log2 < 2 * (bytes / SLAB_GRANULE_BYTES + 2)) {
      ++size_log2;
    }
  }
  slab_table_t *table = slab_metadata_alloc(cache, slab_table_bytes(size_log2));
  if (table == NULL) {
    return false;
  }
  slab_table_init(table, size_log2);
  cache->tables[size_log2] = table;
  cache->fast.table = table;
  return true;
}

enum {
  BUFFER_SLOTS = 64,
};

// Cuts up the buffer.
static bool init_buffer(slab_cache_t *cache) {
  if (!cache->has_buffer) {
    return true;
  }
  if (cache->max_slots > BUFFER_SLOTS) {
    cache->max_slots = BUFFER_SLOTS;
  }
  cache->buffer_slots = slab_metadata_alloc(
      cache, cache->max_slots * sizeof(*cache->buffer_slots));
  return cache->buffer_slots != NULL && slab_grow_in_buffer(cache);
}

static void free_tables(slab_cache_t *cache) {
  for (size_t i = 0; i < SLAB_TABLE_SIZES; ++i) {
    slab_metadata_free(cache, cache->tables[i], slab_table_bytes(i));
  }
}

// Caches have a page each, of which they take less than half: where in it,
// and where the first slab's objects start, differs from cache to cache. If
// their first lines, or a cache's and its first states, were all at the start
// of a page, they would compete for few sets of the processor's cache, and
// loads of the one would wait for stores to the other.
static slab_cache_t *cache_alloc(slab_cache_t *draft) {
  static size_t num_caches;  // Atomic, relaxed.
  size_t number = __atomic_fetch_add(&num_caches, 1, __ATOMIC_RELAXED);
  draft->next_color = number;
  draft->own_bytes = sizeof(*draft);
  size_t offset_bytes = 0;
  if (!draft->has_buffer && !draft->has_source) {
    draft->own_bytes = PAGE_BYTES;
    offset_bytes = (1 + number % ((PAGE_BYTES - sizeof(*draft)) / LINE_BYTES)) *
                   LINE_BYTES;
  }
  unsigned char *memory = slab_metadata_alloc(draft, draft->own_bytes);
  if (memory == NULL) {
    return NULL;
  }
  slab_cache_t *cache = (slab_cache_t *)(void *)(memory + offset_bytes);
  draft->own_memory = memory;
  *cache = *draft;
  return cache;
}

static void cache_free(slab_cache_t *cache) {
  slab_cache_t last = *cache;
  slab_metadata_free(&last, last.own_memory, last.own_bytes);
}

slab_cache_t *slab_cache_create(const slab_options_t *options) {
  slab_cache_t draft;
  memset(&draft, 0, sizeof(draft));
  int error = EINVAL;
  if (!are_valid(options)) {
    goto fail;
  }
  set_options(&draft, options);
  error = options->buffer != NULL ? EINVAL : ENOMEM;
  slab_cache_t *cache = cache_alloc(&draft);
  if (cache == NULL) {
    goto fail;
  }
  if (init_locks(cache) != 0 || !init_table(cache)) {
    goto fail_cache;
  }
  if (!init_buffer(cache)) {
    goto fail_table;
  }
  slab_process_lock();
  slab_register(cache);
  slab_process_unlock();
  return cache;

fail_table:
  free_tables(cache);
fail_cache:
  cache_free(cache);
fail:
  errno = error;
  return NULL;
}

// ---- destroy ----

typedef struct leaks {
  size_t count;
  void *first[LEAKS_NAMED];
} leaks_t;

static bool add_leak(void *context, void *object) {
  leaks_t *leaks = context;
  if (leaks->count < LEAKS_NAMED) {
    leaks->first[leaks->count] = object;
  }
  ++leaks->count;
  return true;
}

static bool may_destroy(slab_cache_t *cache, unsigned flags) {
  leaks_t leaks = {.count = 0};
  slab_walk(cache, add_leak, &leaks);
  if (leaks.count != 0 && (flags & SLAB_DESTROY_QUIET) == 0) {
    slab_report_leaks(cache, leaks.count, leaks.first,
                      leaks.count < LEAKS_NAMED ? leaks.count : LEAKS_NAMED);
  }
  return leaks.count == 0 || (flags & SLAB_DESTROY_LIVE) != 0;
}

static void drain(void *context, slab_magazine_t *magazine) {
  (void)context;
  slab_magazine_drain(magazine);
}

// All slabs become empty ones, live objects or not.
static void destroy_slabs(slab_cache_t *cache) {
  for (size_t list = 0; list < SLAB_LIST_COUNT; ++list) {
    slab_t *first = cache->lists[list].first;
    for (slab_t *slab = first; slab != NULL; slab = slab->next) {
      slab_verify_count(cache, slab, "slab_cache_destroy");
    }
    cache->lists[list].first = NULL;
    slab_destroy_chain(cache, first);
  }
}

int slab_cache_destroy(slab_cache_t *cache, unsigned flags) {
  if (cache == NULL) {
    return 0;
  }
  int saved_errno = errno;
  if (!may_destroy(cache, flags)) {
    errno = saved_errno;
    return -EBUSY;
  }
  slab_process_lock();
  slab_for_each_magazine(cache, drain, NULL);
  slab_depot_drain(cache);
  slab_unregister(cache);
  slab_process_unlock();
  destroy_slabs(cache);
  slab_depot_trim(cache);
  free_tables(cache);
  pthread_mutex_destroy(&cache->depot.lock);
  pthread_cond_destroy(&cache->grown);
  pthread_mutex_destroy(&cache->lock);
  cache_free(cache);
  errno = saved_errno;
  return 0;
}

// ---- one object ----

void *slab_alloc_slow(slab_cache_t *cache) {
  return slab_alloc_checked(cache, 1, __builtin_return_address(0));
}

void slab_free_slow(slab_cache_t *cache, void *object) {
  slab_free_checked(cache, object, "slab_free", __builtin_return_address(0));
}

void *slab_alloc(slab_cache_t *cache) {
  void *object = slab_alloc_usual(&cache->fast);
  return SLAB_LIKELY(object != NULL)
             ? object
             : slab_alloc_checked(cache, 1, __builtin_return_address(0));
}

void *slab_alloc_zeroed(slab_cache_t *cache) {
  if (cache->construct != NULL) {
    errno = EINVAL;
    return NULL;
  }
  void *object = slab_alloc_usual(&cache->fast);
  if (SLAB_UNLIKELY(object == NULL)) {
    object = slab_alloc_checked(cache, 1, __builtin_return_address(0));
  }
  return object == NULL ? NULL : memset(object, 0, cache->object_bytes);
}

void slab_free(slab_cache_t *cache, void *object) {
  if (SLAB_UNLIKELY(!slab_free_usual(&cache->fast, object))) {
    slab_free_checked(cache, object, "slab_free", __builtin_return_address(0));
  }
}

// ---- many ----

// Pops up to `count` objects. Stops where the usual case does.
static size_t pop_bulk(slab_magazine_t *magazine, size_t count,
                       void **out_objects) {
  slab_slot_t *top = slab_top_load(magazine);
  size_t cached = (size_t)(top - magazine->bottom);
  if (count > cached) {
    count = cached;
  }
  if (count == 0) {
    return 0;  // It may be the one that nobody writes.
  }
  uint8_t free_state = magazine->traits.free_state;
  uint8_t live_state = magazine->traits.live_state;
  size_t i = 0;
  for (; i < count; ++i) {
    uint8_t *state = top[-1].state;
    if (SLAB_UNLIKELY(slab_state_load(state) != free_state)) {
      break;
    }
    slab_state_store(state, live_state);
    --top;
    out_objects[i] = top->object;
  }
  slab_top_store(magazine, top);
  slab_count(&magazine->num_allocs, i);
  return i;
}

int slab_alloc_bulk(slab_cache_t *cache, size_t count, void **out_objects) {
  slab_magazine_t *magazine = slab_magazine_of(&cache->fast);
  size_t done = 0;
  for (;;) {
    done += pop_bulk(magazine, count - done, out_objects + done);
    if (done == count) {
      return 0;
    }
    void *object =
        slab_alloc_checked(cache, count - done, __builtin_return_address(0));
    if (object == NULL) {
      slab_free_bulk(cache, done, out_objects);
      return -ENOMEM;
    }
    out_objects[done++] = object;
    magazine = slab_magazine_of(&cache->fast);  // It may be its first.
  }
}

// What an entry says of objects next to each other, in registers.
typedef struct range {
  uintptr_t base;
  size_t limit_bytes;
  uint8_t *states;
} range_t;

static range_t range_at(slab_table_t *table, uintptr_t address) {
  const slab_entry_t *entry = slab_table_home(table, address);
  return (range_t){.base = SLAB_ENTRY_LOAD(&entry->base),
                   .limit_bytes = SLAB_ENTRY_LOAD(&entry->limit_bytes),
                   .states = SLAB_ENTRY_LOAD(&entry->states)};
}

// Pushes up to `count` objects. Stops where the usual case does.
static size_t push_bulk(slab_cache_t *cache, size_t count,
                        void *const *objects) {
  slab_magazine_t *magazine = slab_magazine_of(&cache->fast);
  slab_slot_t *top = slab_top_load(magazine);
  slab_table_t *table = slab_table_of(&cache->fast);
  uint64_t reciprocal = cache->fast.reciprocal;
  size_t room = (size_t)(magazine->limit - top);
  if (count > room) {
    count = room;
  }
  if (count == 0) {
    return 0;  // It may be the one that nobody writes.
  }
  uint8_t free_state = magazine->traits.free_state;
  uint8_t live_state = magazine->traits.live_state;
  range_t range = {.limit_bytes = 0};
  size_t i = 0;
  for (; i < count; ++i, ++top) {
    uintptr_t address = (uintptr_t)objects[i];
    if (address - range.base >= range.limit_bytes) {
      range = range_at(table, address);
    }
    // As slab_find_state does it.
    uintptr_t offset = address - range.base;
    slab_uint128_t product = (slab_uint128_t)offset * reciprocal;
    if (SLAB_UNLIKELY((uint64_t)product >= reciprocal) ||
        SLAB_UNLIKELY(offset >= range.limit_bytes)) {
      break;
    }
    uint8_t *state = range.states + (size_t)(product >> 64);
    if (SLAB_UNLIKELY(slab_state_load(state) != live_state)) {
      break;
    }
    slab_state_store(state, free_state);
    top->object = objects[i];
    top->state = state;
  }
  slab_top_store(magazine, top);
  return i;
}

void slab_free_bulk(slab_cache_t *cache, size_t count, void *const *objects) {
  for (size_t done = 0; done < count; ++done) {
    done += push_bulk(cache, count - done, objects + done);
    if (done == count) {
      return;
    }
    slab_free_checked(cache, objects[done], "slab_free_bulk",
                      __builtin_return_address(0));
  }
}

// ---- giving back ----

size_t slab_reap(slab_cache_t *cache) {
  int saved_errno = errno;
  __atomic_fetch_add(&cache->generation, 1, __ATOMIC_RELAXED);
  slab_process_lock();
  slab_magazine_t *magazine = slab_magazine_of(&cache->fast);
  if (magazine->cache != NULL) {
    slab_magazine_drain(magazine);
  }
  slab_process_unlock();
  slab_depot_drain(cache);
  slab_depot_trim(cache);
  pthread_mutex_lock(&cache->lock);
  slab_t *chain = cache->has_buffer ? NULL : slab_unlink_empty(cache, SIZE_MAX);
  slab_keep_least(cache);
  pthread_mutex_unlock(&cache->lock);
  size_t bytes = slab_destroy_chain(cache, chain);
  pthread_mutex_lock(&cache->lock);
  slab_table_trim(cache);
  pthread_mutex_unlock(&cache->lock);
  errno = saved_errno;
  return bytes;
}
