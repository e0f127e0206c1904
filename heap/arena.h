// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Arenas: contiguous ranges of memory, cut into runs of 1 KiB units. Spans of
// small blocks and medium blocks are runs; a run that becomes free coalesces
// with its free neighbours at once.
//
// All functions: central lock held.

#ifndef MY_ALLOC_HEAP_ARENA_H_
#define MY_ALLOC_HEAP_ARENA_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/page_table.h"
#include "heap/run_map.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  HEAP_UNIT_SHIFT = 10,
  HEAP_UNIT_BYTES = 1 << HEAP_UNIT_SHIFT,
  HEAP_PAGE_UNITS = HEAP_PAGE_BYTES / HEAP_UNIT_BYTES,
};

// What lies at an address.
typedef struct heap_arena_place {
  heap_run_kind_t kind;  // HEAP_RUN_NOTHING: in no arena.
  uintptr_t start;       // Of the run.
  size_t size_bytes;     // Of the run.
} heap_arena_place_t;

// Returns a run of `units` that starts at a multiple of `align_bytes` (a power
// of two), or 0. `out_zeroed` tells whether every byte of it is zero;
// in the hardened variant: was never used.
uintptr_t heap_arena_alloc(size_t units, size_t align_bytes,
                           heap_run_kind_t kind, bool *out_zeroed);

// Frees the run that starts at `address`: one from `heap_arena_alloc`.
void heap_arena_free(uintptr_t address);

// Changes the length of the block at `address` in place: shrinks always, grows
// when the run behind it is free or its arena can grow. False: unchanged.
bool heap_arena_resize(uintptr_t address, size_t units);

// Makes memory of the program's own an arena; see heap_add_memory. Returns 0
// and how much of it is used, or EINVAL, ENOMEM.
int heap_arena_add(void *memory, size_t size_bytes, bool is_zeroed,
                   size_t *out_bytes);

// Gives the memory of a part of a run back, which reads as zero then. False:
// not done, and must not be in memory of the program's own.
bool heap_arena_discard(uintptr_t address, size_t size_bytes);

// Gives a part of the idle memory back, but not `keep_bytes` below the break,
// and the addresses of reservations in which nothing lies. Returns how many
// bytes; 0 when nothing is left to be done.
size_t heap_arena_trim(size_t keep_bytes);

// While held, frees give nothing back by themselves.
void heap_arena_hold_purges(bool hold);

// Tells what lies at any address.
heap_arena_place_t heap_arena_find(uintptr_t address);

// Returns the first broken invariant's name, or NULL.
const char *heap_arena_check(void);

// Calls `visit` with every run of a block or a span until it says false; false
// then.
typedef bool (*heap_arena_visit_t)(void *context, heap_arena_place_t place);
bool heap_arena_walk(heap_arena_visit_t visit, void *context);

// Sums over all arenas; holes are not ours and not in them.
typedef struct heap_arena_totals {
  size_t mapped_bytes;
  size_t free_bytes;
  size_t largest_free_bytes;  // The longest free run.
  size_t dirty_bytes;
} heap_arena_totals_t;
heap_arena_totals_t heap_arena_sum(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_ARENA_H_
