// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The debug variant: what a cache with SLAB_DEBUG does beyond the checks that
// every cache has.
//
//   | red zone | object | fill to the stride, red zone | object | ...
//     16+ bytes, REDZONE                 16+ bytes, REDZONE
//
// The red zones of an object are looked at when it is handed out and freed, all
// of a slab's before its memory goes back, and all of them by slab_check. A
// free object is filled with FREE_FILL, unless the cache has a constructor or a
// destructor: then it stays as it is. Either way a digest of its bytes is kept,
// and an object that was written while it was free is found when it is handed
// out again, or before its slab goes back. For each object, outside of it, the
// call sites of its last allocation and its last free are known, and named in
// every report.
//
// Objects go directly to and from the slabs, the one freed last not
// necessarily out again first. A free holds the cache's lock while it looks at
// the object; an alloc has it for itself by then.

#include "slab/slab_internal.h"

#include <errno.h>
#include <string.h>

enum {
  REDZONE = 0xbb,
  ALLOC_FILL = 0xa5,  // When handed out.
  FREE_FILL = 0xdf,
};

static uint64_t digest_of(const slab_cache_t *cache, const void *object) {
  const unsigned char *bytes = object;
  uint64_t digest = UINT64_C(0x9e3779b97f4a7c15);
  for (size_t i = 0; i < cache->object_bytes; ++i) {
    digest = (digest ^ bytes[i]) * UINT64_C(0x100000001b3);
    digest ^= digest >> 31;
  }
  return digest;
}

// What a constructor made or a destructor will look at stays as it is.
static bool is_filled(const slab_cache_t *cache) {
  return cache->construct == NULL && cache->destruct == NULL;
}

static void fill_red_zones(const slab_cache_t *cache, unsigned char *object) {
  memset(object - cache->front_bytes, REDZONE, cache->front_bytes);
  memset(object + cache->object_bytes, REDZONE,
         cache->stride_bytes - cache->object_bytes - cache->front_bytes);
}

static bool are_red(const unsigned char *bytes, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (bytes[i] != REDZONE) {
      return false;
    }
  }
  return true;
}

static bool has_red_zones(const slab_cache_t *cache,
                          const unsigned char *object) {
  return are_red(object - cache->front_bytes, cache->front_bytes) &&
         are_red(
             object + cache->object_bytes,
             cache->stride_bytes - cache->object_bytes - cache->front_bytes);
}

// Lock held.
static slab_record_t *record_of(slab_cache_t *cache, const void *object) {
  uintptr_t address = (uintptr_t)object;
  slab_t *slab = slab_find(cache, address);
  return &slab_records(cache, slab)[slab_index_of(cache, slab, address)];
}

SLAB_NORETURN static void report(const slab_cache_t *cache, const void *object,
                                 const slab_record_t *record,
                                 slab_misuse_t misuse, const char *function,
                                 const void *caller) {
  slab_report_misuse(&(slab_report_t){.misuse = misuse,
                                      .function = function,
                                      .cache = cache,
                                      .ptr = object,
                                      .object = object,
                                      .record = record,
                                      .caller = caller});
}

void slab_debug_init_slab(const slab_cache_t *cache, slab_t *slab) {
  for (size_t i = 0; i < slab_room(cache, slab); ++i) {
    fill_red_zones(cache, slab_object_at(cache, slab, i));
  }
}

// Takes an object from a slab, its state LIVE, or RAW if it is yet to be
// constructed. NULL: no memory.
static void *take(slab_cache_t *cache, slab_record_t **out_record,
                  bool *out_is_unused) {
  void *object = NULL;
  size_t num_unused = 0;
  do {
    pthread_mutex_lock(&cache->lock);
    slab_take(cache, SLAB_STATE_LIVE, &object, 1, &num_unused);
    if (object != NULL) {
      *out_record = record_of(cache, object);
      ++cache->num_allocs_before;
      ++cache->num_refills_before;
    }
    pthread_mutex_unlock(&cache->lock);
  } while (object == NULL && slab_grow(cache));
  *out_is_unused = num_unused != 0;
  return object;
}

void *slab_debug_alloc(slab_cache_t *cache, const void *caller) {
  bool is_unused;
  slab_record_t *record = NULL;
  void *object = take(cache, &record, &is_unused);
  if (object == NULL) {
    errno = ENOMEM;
    return NULL;
  }
  if (!has_red_zones(cache, object)) {
    report(cache, object, record, SLAB_MISUSE_RED_ZONE, "slab_alloc", caller);
  }
  if (is_unused) {
    if (cache->construct != NULL) {
      cache->construct(object, cache->context);
      slab_state_store(slab_state_at(cache, (uintptr_t)object),
                       SLAB_STATE_LIVE);
    }
  } else if (record->digest != digest_of(cache, object)) {
    report(cache, object, record, SLAB_MISUSE_WRITTEN, "slab_alloc", caller);
  }
  if (is_filled(cache)) {
    memset(object, ALLOC_FILL, cache->object_bytes);
  }
  record->alloc_caller = caller;
  return object;
}

void slab_debug_free(slab_cache_t *cache, void *object, const char *function,
                     const void *caller) {
  pthread_mutex_lock(&cache->lock);
  uint8_t *state = slab_state_at(cache, (uintptr_t)object);
  if (state == NULL || slab_state_load(state) != SLAB_STATE_LIVE) {
    pthread_mutex_unlock(&cache->lock);
    slab_report_free(cache, object, function, caller);
  }
  slab_t *slab = slab_find(cache, (uintptr_t)object);
  size_t index = slab_index_of(cache, slab, (uintptr_t)object);
  slab_record_t *record = &slab_records(cache, slab)[index];
  if (!has_red_zones(cache, object)) {
    report(cache, object, record, SLAB_MISUSE_RED_ZONE, function, caller);
  }
  if (is_filled(cache)) {
    memset(object, FREE_FILL, cache->object_bytes);
  }
  record->digest = digest_of(cache, object);
  record->free_caller = caller;
  slab_state_store(state, SLAB_STATE_FREE);
  slab_put(cache, slab, index);
  pthread_mutex_unlock(&cache->lock);
  slab_release_excess(cache);
}

void slab_debug_verify(slab_cache_t *cache, slab_t *slab,
                       const char *function) {
  for (size_t i = 0; i < slab->count; ++i) {
    const void *object = slab_object_at(cache, slab, i);
    const slab_record_t *record = &slab_records(cache, slab)[i];
    if (!has_red_zones(cache, object)) {
      report(cache, object, record, SLAB_MISUSE_RED_ZONE, function, NULL);
    }
    if (slab_state_load(&slab->states[i]) == SLAB_STATE_FREE &&
        record->digest != digest_of(cache, object)) {
      report(cache, object, record, SLAB_MISUSE_WRITTEN, function, NULL);
    }
  }
}

const char *slab_debug_check(const slab_cache_t *cache, const slab_t *slab) {
  for (size_t i = 0; i < slab->count; ++i) {
    const void *object = slab_object_at(cache, slab, i);
    if (!has_red_zones(cache, object)) {
      return "slab: written outside of an object";
    }
    if (slab_state_load(&slab->states[i]) == SLAB_STATE_FREE &&
        slab_records(cache, slab)[i].digest != digest_of(cache, object)) {
      return "slab: an object was written while it was free";
    }
  }
  return NULL;
}
