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
  // Strides in a range that are multiples of this are a line longer, lest the
  // first lines of all objects compete for few sets of the processor's cache;
  // if that costs no more than 1/32.
  COLORED_MULTIPLE = 512,
  COLORED_BYTES_MIN = 2048,
  OUTSIDE_OBJECTS = 8,  // In a slab outside of the range, if they fit 2 MiB.
};

static_assert(offsetof(slab_cache_t, fast) == 0, "the inline paths cast");
static_assert(sizeof(slab_cache_t) <= PAGE_BYTES / 2, "room to differ");
static_assert(sizeof(void *) == 8, "reciprocals are of 64 bits");

// ---- create ----

static bool is_power_of_two(size_t value) {
  return value != 0 && (value & (value - 1)) == 0;
}

static bool are_valid(const slab_options_t *options) {
  return options != NULL && options->object_bytes != 0 &&
         options->object_bytes <= SLAB_OBJECT_BYTES_MAX &&
         (options->align_bytes == 0 ||
          (is_power_of_two(options->align_bytes) &&
           options->align_bytes <= SLAB_ALIGN_BYTES_MAX)) &&
         (options->flags & ~(unsigned)(SLAB_DEBUG | SLAB_NO_MAGAZINES)) == 0 &&
         (options->source.alloc == NULL) == (options->source.free == NULL) &&
         options->buffer_bytes <= UINTPTR_MAX - (uintptr_t)options->buffer;
}

// Could it have a range? Without magazines it has no use for one.
static bool may_have_range(const slab_options_t *options) {
  return options->buffer == NULL && options->source.alloc == NULL &&
         (options->flags & (SLAB_DEBUG | SLAB_NO_MAGAZINES)) == 0;
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
  cache->outside_shift = SLAB_GRANULE_SHIFT;
  if ((options->flags & SLAB_DEBUG) != 0) {
    cache->front_bytes = slab_round_up(SLAB_RED_ZONE_BYTES, align_bytes);
    size_bytes += cache->front_bytes + SLAB_RED_ZONE_BYTES;
  }
  if (size_bytes < STRIDE_MIN) {
    size_bytes = STRIDE_MIN;
  }
  cache->stride_bytes = slab_round_up(size_bytes, align_bytes);
  if (may_have_range(options) && align_bytes <= LINE_BYTES &&
      cache->stride_bytes >= COLORED_BYTES_MIN &&
      cache->stride_bytes % COLORED_MULTIPLE == 0) {
    cache->stride_bytes += LINE_BYTES;
  }
  while ((size_t)1 << cache->outside_shift < SLAB_BYTES_MAX &&
         (size_t)1 << cache->outside_shift <
             OUTSIDE_OBJECTS * cache->stride_bytes) {
    ++cache->outside_shift;
  }
  while ((size_t)1 << cache->outside_shift <
         cache->front_bytes + cache->stride_bytes) {
    ++cache->outside_shift;
  }
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
  cache->has_source = options->source.alloc != NULL && options->buffer == NULL;
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

// Caches have a page each, of which they take less than half: where in it
// differs from cache to cache (range.c says why).
static slab_cache_t *cache_alloc(slab_cache_t *draft, size_t number) {
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
  static size_t num_caches;  // Atomic, relaxed.
  size_t number = __atomic_fetch_add(&num_caches, 1, __ATOMIC_RELAXED);
  slab_cache_t *cache = cache_alloc(&draft, number);
  if (cache == NULL) {
    goto fail;
  }
  if (init_locks(cache) != 0 || !init_buffer(cache)) {
    goto fail_cache;
  }
  slab_process_lock();
  slab_take_id(cache);
  slab_process_unlock();
  if (may_have_range(options) && cache->magazine_id != 0) {
    slab_range_create(cache, number);
  }
  // Now others may look at it.
  slab_process_lock();
  slab_register(cache);
  slab_process_unlock();
  return cache;

fail_cache:
  cache_free(cache);
fail:
  errno = error;
  return NULL;
}

// Process's lock held.
static slab_cache_t *find_shared(const slab_cache_t *like) {
  slab_cache_t *cache = slab_first_cache();
  while (cache != NULL &&
         !(cache->is_shared && cache->object_bytes == like->object_bytes &&
           cache->align_bytes == like->align_bytes)) {
    cache = cache->next;
  }
  return cache;
}

slab_cache_t *slab_shared_cache(size_t object_bytes, size_t align_bytes) {
  const slab_options_t options = {.name = "shared",
                                  .object_bytes = object_bytes,
                                  .align_bytes = align_bytes};
  if (!are_valid(&options)) {
    errno = EINVAL;
    return NULL;
  }
  slab_cache_t like = {0};
  set_options(&like, &options);
  slab_process_lock();
  slab_cache_t *cache = find_shared(&like);
  slab_process_unlock();
  if (cache != NULL) {
    return cache;
  }
  slab_cache_t *fresh = slab_cache_create(&options);
  if (fresh == NULL) {
    return NULL;
  }
  slab_process_lock();
  cache = find_shared(&like);
  if (cache == NULL) {
    fresh->is_shared = true;
    cache = fresh;
  }
  slab_process_unlock();
  if (cache != fresh) {
    slab_cache_destroy(fresh, 0);  // Another thread was faster.
  }
  return cache;
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
      slab_verify(cache, slab, "slab_cache_destroy");
    }
    cache->lists[list].first = NULL;
    slab_retire_chain(cache, first);
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
  slab_free_dropped_slots(cache);
  slab_table_destroy(cache);
  slab_range_destroy(cache);
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
static size_t pop_bulk(const slab_cache_t *cache, slab_magazine_t *magazine,
                       size_t count, void **out_objects) {
  const slab_cache_fast_t fast = cache->fast;
  void **top = slab_top_load(magazine);
  size_t cached = (size_t)(top - magazine->bottom);
  if (count > cached) {
    count = cached;
  }
  if (count == 0) {
    return 0;  // It may be the one that nobody writes.
  }
  uint8_t free_state = magazine->traits.free_state;
  size_t i = 0;
  for (; i < count; ++i) {
    void *object = top[-1];
    // As slab_alloc_any does it.
    uintptr_t offset = (uintptr_t)object - fast.base;
    if (SLAB_UNLIKELY(offset >= fast.limit_bytes)) {
      break;
    }
    uint8_t *state = fast.states +
                     (size_t)(((slab_uint128_t)offset * fast.reciprocal) >> 64);
    if (SLAB_UNLIKELY(slab_state_load(state) != free_state)) {
      break;
    }
    slab_state_store(state, SLAB_STATE_LIVE);
    --top;
    out_objects[i] = object;
  }
  slab_top_store(magazine, top);
  slab_count(&magazine->num_allocs, i);
  return i;
}

int slab_alloc_bulk(slab_cache_t *cache, size_t count, void **out_objects) {
  slab_magazine_t *magazine = slab_magazine_of(&cache->fast);
  size_t done = 0;
  for (;;) {
    done += pop_bulk(cache, magazine, count - done, out_objects + done);
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

// Pushes up to `count` objects. Stops where the usual case does.
static size_t push_bulk(slab_cache_t *cache, size_t count,
                        void *const *objects) {
  const slab_cache_fast_t fast = cache->fast;
  slab_magazine_t *magazine = slab_magazine_of(&fast);
  void **top = slab_top_load(magazine);
  if (top >= magazine->limit) {
    return 0;  // It may be the one that nobody writes.
  }
  size_t room = (size_t)(magazine->limit - top);
  if (count > room) {
    count = room;
  }
  uint8_t free_state = magazine->traits.free_state;
  size_t i = 0;
  for (; i < count; ++i, ++top) {
    uint8_t *state;
    if (SLAB_UNLIKELY(!slab_find_state(&fast, (uintptr_t)objects[i], &state)) ||
        SLAB_UNLIKELY(slab_state_load(state) != SLAB_STATE_LIVE)) {
      break;
    }
    slab_state_store(state, free_state);
    *top = objects[i];
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
  slab_free_dropped_slots(cache);
  pthread_mutex_lock(&cache->lock);
  slab_t *chain = cache->has_buffer
                      ? NULL
                      : slab_unlink_empty(cache, SIZE_MAX, "slab_reap");
  slab_keep_least(cache);
  pthread_mutex_unlock(&cache->lock);
  size_t bytes = slab_retire_chain(cache, chain);
  pthread_mutex_lock(&cache->lock);
  slab_range_trim(cache);
  pthread_mutex_unlock(&cache->lock);
  errno = saved_errno;
  return bytes;
}
