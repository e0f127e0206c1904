// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Functions that do nothing but call slab's, in a section of their own, so that
// it is known where their calls return to.

#ifndef MY_ALLOC_SLAB_CALL_SITES_H_
#define MY_ALLOC_SLAB_CALL_SITES_H_

#include "slab/slab.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  CALL_SITES_ALLOCS = 4,
  CALL_SITES_FREES = 3,
};

// One for each function of slab's.
typedef struct call_sites {
  void *(*allocs[CALL_SITES_ALLOCS])(slab_cache_t *cache);
  void (*frees[CALL_SITES_FREES])(slab_cache_t *cache, void *object);
} call_sites_t;

// Compiled as everything else,
extern const call_sites_t call_sites;
// and with -O0.
extern const call_sites_t call_sites_unoptimized;

// The section.
extern const char __start_slab_call_sites[];
extern const char __stop_slab_call_sites[];

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SLAB_CALL_SITES_H_
