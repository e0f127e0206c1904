// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// mapped_ranges: which addresses the heap has from the kernel, kept so that the
// log of a forked child can begin with them.
//
// Threads: none; calls are made under the heap's central lock, or where there
// is one thread only. Fork: a child keeps its parent's ranges.

#ifndef MY_ALLOC_LEAKCHECK_MAPPED_RANGES_H_
#define MY_ALLOC_LEAKCHECK_MAPPED_RANGES_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MAPPED_RANGES_CAPACITY ((size_t)1 << 16)

typedef struct mapped_range {
  uintptr_t start;
  uintptr_t end;
} mapped_range_t;

// Zeroed memory is an empty set. Sorted, disjoint, not adjacent.
typedef struct mapped_ranges {
  size_t count;
  // Ranges that had no room: what is here is not all.
  size_t num_dropped;
  mapped_range_t ranges[MAPPED_RANGES_CAPACITY];
} mapped_ranges_t;

// Adds [start, end), which overlaps nothing that is in the set.
void mapped_ranges_add(mapped_ranges_t *set, uintptr_t start, uintptr_t end);

// Takes [start, end) out of the set; parts that are not in it are ignored.
void mapped_ranges_remove(mapped_ranges_t *set, uintptr_t start, uintptr_t end);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_MAPPED_RANGES_H_
