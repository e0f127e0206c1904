// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the units of the arenas share: arena.c (runs, and when memory goes
// back), arena_source.c (where it comes from and goes to), arena_check.c.
//
// All functions: central lock held.

#ifndef MY_ALLOC_HEAP_ARENA_INTERNAL_H_
#define MY_ALLOC_HEAP_ARENA_INTERNAL_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/arena.h"
#include "heap/purge.h"
#include "heap/run_map.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  HEAP_BREAK_ARENA = 0,
  HEAP_ARENA_COUNT_MAX = 48,
};

typedef struct heap_arena {
  uintptr_t base;
  uintptr_t reserve_end;  // Of a reservation.
  void *mapping;          // The reservation, at or before base; or NULL.
  size_t mapping_bytes;
  uint32_t hole_units;
  uint32_t tagless_units;  // Of long free runs, whose tags went back.
  heap_run_map_t map;
  heap_page_flags_t pages;
} heap_arena_t;

// Places in use: the break's always, and of others up to the highest that ever
// was; one without units is vacant.
extern heap_arena_t heap_arenas[HEAP_ARENA_COUNT_MAX];
extern size_t heap_arena_count;

static inline uintptr_t heap_arena_end(const heap_arena_t *arena) {
  return arena->base + ((uintptr_t)arena->map.unit_count << HEAP_UNIT_SHIFT);
}

static inline heap_arena_place_t heap_arena_place_of(const heap_arena_t *arena,
                                                     heap_run_t run) {
  return (heap_arena_place_t){
      .kind = run.kind,
      .start = arena->base + ((uintptr_t)run.start << HEAP_UNIT_SHIFT),
      .size_bytes = (size_t)run.units << HEAP_UNIT_SHIFT};
}

// Extends `arena` so that its last free run has `units`: by a generous step,
// or, where that is refused, by exactly what is missing.
bool heap_arena_grow(heap_arena_t *arena, size_t units);

// Starts an arena of its own whose first free run has at least `size_bytes`, or
// returns NULL.
heap_arena_t *heap_arena_reserve(size_t size_bytes);

// Reads HEAP_SOURCE, once.
void heap_arena_read_source(void);

// Lowers the break by the free run below it, if that is long and nobody else
// moved the break. Returns the pages that went.
size_t heap_arena_lower_break(size_t keep_bytes);

// Gives the addresses of a reservation back if nothing lies there, and its
// memory has gone.
void heap_arena_release(heap_arena_t *arena);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_ARENA_INTERNAL_H_
