// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Compiled twice; CALL_SITES_NAME says as what.

#include "slab/call_sites.h"

#include <stddef.h>

#include "slab/slab.h"
#include "slab/slab_inline.h"

#define CALL_SITE __attribute__((noinline, section("slab_call_sites")))

// Nothing is called last, since a call that is a jump returns elsewhere.
static inline void stay_here(void) {
  __asm__ volatile("" ::: "memory");
}

CALL_SITE static void *alloc_here(slab_cache_t *cache) {
  void *object = slab_alloc(cache);
  stay_here();
  return object;
}

CALL_SITE static void *alloc_inline_here(slab_cache_t *cache) {
  void *object = slab_alloc_inline(cache);
  stay_here();
  return object;
}

CALL_SITE static void *alloc_zeroed_here(slab_cache_t *cache) {
  void *object = slab_alloc_zeroed(cache);
  stay_here();
  return object;
}

CALL_SITE static void *alloc_bulk_here(slab_cache_t *cache) {
  void *object = NULL;
  int status = slab_alloc_bulk(cache, 1, &object);
  stay_here();
  return status == 0 ? object : NULL;
}

CALL_SITE static void free_here(slab_cache_t *cache, void *object) {
  slab_free(cache, object);
  stay_here();
}

CALL_SITE static void free_inline_here(slab_cache_t *cache, void *object) {
  slab_free_inline(cache, object);
  stay_here();
}

CALL_SITE static void free_bulk_here(slab_cache_t *cache, void *object) {
  slab_free_bulk(cache, 1, &object);
  stay_here();
}

const call_sites_t CALL_SITES_NAME = {
    .allocs = {alloc_here, alloc_inline_here, alloc_zeroed_here,
               alloc_bulk_here},
    .frees = {free_here, free_inline_here, free_bulk_here},
};
