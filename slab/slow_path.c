// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Alloc and free in all cases that the inline paths leave: objects outside of
// the cache's range, for which the same is done once more with the table, and
// then magazines that are empty, full or not there yet, the debug variant,
// calls without a magazine, and pointers that are wrong. There nothing is
// assumed of a pointer, and states change by compare and swap.

#include "slab/slab_internal.h"

#include <errno.h>

enum {
  // Of a thread that came when all tags were taken: the lock for them is
  // everybody's.
  ALLOCS_A_LOOK = 1024,
};

// Does what slab_alloc_any does for an object outside of the range. NULL: it is
// none.
static void *alloc_outside(slab_cache_t *cache) {
  slab_magazine_t *magazine = slab_magazine_of(&cache->fast);
  void **top = slab_top_load(magazine);
  if (top == magazine->bottom || magazine->hot_free_state != NULL) {
    return NULL;
  }
  uint8_t *state = slab_state_outside(cache, (uintptr_t)top[-1]);
  if (state == NULL || slab_state_load(state) != magazine->traits.free_state) {
    return NULL;
  }
  slab_top_store(magazine, top - 1);
  slab_state_store(state, SLAB_STATE_LIVE);
  magazine->hot = top[-1];
  magazine->hot_state = state;
  slab_count(&magazine->num_allocs, 1);
  return top[-1];
}

// Does what slab_free_any does for an object outside of the range. False: it is
// none.
static bool free_outside(slab_cache_t *cache, void *object) {
  slab_magazine_t *magazine = slab_magazine_of(&cache->fast);
  void **top = slab_top_load(magazine);
  if (top >= magazine->limit || magazine->hot == object) {
    return false;
  }
  uint8_t *state = slab_state_outside(cache, (uintptr_t)object);
  if (state == NULL || slab_state_load(state) != SLAB_STATE_LIVE) {
    return false;
  }
  slab_state_store(state, magazine->traits.free_state);
  *top = object;
  slab_top_store(magazine, top + 1);
  return true;
}

// Allocates without a magazine.
static void *alloc_directly(slab_cache_t *cache) {
  void *object;
  if (slab_take_constructed(cache, SLAB_STATE_LIVE, &object, 1) == 0) {
    errno = ENOMEM;
    return NULL;
  }
  pthread_mutex_lock(&cache->lock);
  ++cache->num_allocs_before;
  ++cache->num_refills_before;
  pthread_mutex_unlock(&cache->lock);
  return object;
}

void *slab_alloc_checked(slab_cache_t *cache, size_t want, const void *caller) {
  void *outside = alloc_outside(cache);
  if (outside != NULL) {
    return outside;
  }
  if ((cache->flags & SLAB_DEBUG) != 0) {
    return slab_debug_alloc(cache, caller);
  }
  slab_magazine_t *magazine = slab_magazine_get(cache);
  if (magazine == NULL) {
    return alloc_directly(cache);
  }
  if (magazine->traits.is_shared &&
      magazine->num_allocs % ALLOCS_A_LOOK == ALLOCS_A_LOOK - 1) {
    slab_magazine_ask_for_tag(magazine);
  }
  void *object = magazine->hot;
  if (magazine->hot_free_state == NULL) {
    if (slab_top_load(magazine) == magazine->bottom &&
        !slab_magazine_refill(magazine, want)) {
      errno = ENOMEM;
      return NULL;
    }
    void **top = slab_top_load(magazine) - 1;
    object = *top;
    slab_top_store(magazine, top);
  }
  magazine->hot_free_state = NULL;
  uint8_t *state = slab_magazine_change(magazine, object, SLAB_STATE_LIVE);
  slab_count(&magazine->num_allocs, 1);
  if (!magazine->traits.is_shared) {
    magazine->hot = object;
    magazine->hot_state = state;
  }
  return object;
}

// ---- freeing ----

// Returns the state of the live object at `ptr`; dies if there is none.
static uint8_t *find_live(slab_cache_t *cache, void *ptr, const char *function,
                          const void *caller) {
  uint8_t *state = slab_state_at(cache, (uintptr_t)ptr);
  if (state == NULL || slab_state_load(state) != SLAB_STATE_LIVE) {
    slab_report_free(cache, ptr, function, caller);
  }
  return state;
}

// Makes a live object `to`; dies if another thread did so just before.
static void end_life(slab_cache_t *cache, void *ptr, uint8_t *state, uint8_t to,
                     const char *function, const void *caller) {
  uint8_t from = SLAB_STATE_LIVE;
  if (!__atomic_compare_exchange_n(state, &from, to, false, __ATOMIC_RELAXED,
                                   __ATOMIC_RELAXED)) {
    slab_report_free(cache, ptr, function, caller);
  }
}

static void free_directly(slab_cache_t *cache, void *object,
                          const char *function, const void *caller) {
  uint8_t *state = find_live(cache, object, function, caller);
  end_life(cache, object, state, SLAB_STATE_SHARED, function, caller);
  slab_put_all(cache, &object, 1, SLAB_STATE_SHARED);
  slab_release_excess(cache);
}

void slab_free_checked(slab_cache_t *cache, void *object, const char *function,
                       const void *caller) {
  if (object == NULL || free_outside(cache, object)) {
    return;
  }
  int saved_errno = errno;
  slab_magazine_t *magazine = NULL;
  if ((cache->flags & SLAB_DEBUG) != 0) {
    slab_debug_free(cache, object, function, caller);
  } else if ((magazine = slab_magazine_get(cache)) == NULL) {
    free_directly(cache, object, function, caller);
  } else {
    uint8_t *state = find_live(cache, object, function, caller);
    if (slab_top_load(magazine) == magazine->end) {
      slab_magazine_make_room(magazine);
    }
    end_life(cache, object, state, slab_magazine_state(magazine), function,
             caller);
    void **top = slab_top_load(magazine);
    *top = object;
    slab_top_store(magazine, top + 1);
  }
  errno = saved_errno;
}
