// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// recorder_extent: which addresses the heap has from the kernel, kept so that
// the log of a forked child can begin with them.
//
// Threads: none; calls are made under the heap's central lock, or where there
// is one thread only. Fork: a child keeps its parent's ranges.

#ifndef MY_ALLOC_LEAKCHECK_RECORDER_EXTENT_H_
#define MY_ALLOC_LEAKCHECK_RECORDER_EXTENT_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RECORDER_EXTENT_CAPACITY ((size_t)1 << 16)

typedef struct recorder_range {
  uintptr_t start;
  uintptr_t end;
} recorder_range_t;

// Zeroed memory is an empty set. Sorted, disjoint, not adjacent.
typedef struct recorder_extent {
  size_t count;
  // Ranges that had no room: what is here is not all.
  size_t num_dropped;
  recorder_range_t ranges[RECORDER_EXTENT_CAPACITY];
} recorder_extent_t;

// Adds [start, end), which overlaps nothing that is in the set.
void recorder_extent_add(recorder_extent_t *set, uintptr_t start,
                         uintptr_t end);

// Takes [start, end) out of the set; parts that are not in it are ignored.
void recorder_extent_remove(recorder_extent_t *set, uintptr_t start,
                            uintptr_t end);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_LEAKCHECK_RECORDER_EXTENT_H_
