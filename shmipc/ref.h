// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// ref: a pointer into a region that means the same in every process.
//
// For: what is stored in a region and leads to something else in it. Not for:
// memory outside of the region.
//
//   typedef struct node {
//     shmipc_ref_t next;       // all zero: null
//     uint64_t value;
//   } node_t;
//
//   node->next = shmipc_ref_of(region, other);
//   node_t *next = shmipc_ref_get(region, node->next, sizeof(*next));
//   if (next == NULL) {        // null, or nonsense that somebody wrote
//
// Threads: a ref is a plain value; whoever changes one that others read does it
// under a lock, or with atomic operations on `offset`.

#ifndef MY_ALLOC_SHMIPC_REF_H_
#define MY_ALLOC_SHMIPC_REF_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shmipc/region.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct shmipc_ref {
  uint64_t offset;  // From the region's first byte, the header's; 0: null.
} shmipc_ref_t;

// Returns the ref of a pointer; the null one for NULL and for what is not in
// the region's data or heap.
SHMIPC_API shmipc_ref_t shmipc_ref_of(const shmipc_region_t *region,
                                      const void *pointer);

// Returns where `len` bytes from the ref on are in this process, mapping what
// others have added; NULL for the null ref and if they are not all in the
// region. Alignment is not checked.
SHMIPC_API void *shmipc_ref_get(shmipc_region_t *region, shmipc_ref_t ref,
                                size_t len);

static inline bool shmipc_ref_is_null(shmipc_ref_t ref) {
  return ref.offset == 0;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_REF_H_
