// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// One arena's map of runs: boundary tags and free lists, kept outside the
// memory they describe. Knows unit numbers only, no addresses and no kernel.
//
// All functions: central lock held.

#ifndef MY_ALLOC_HEAP_RUN_MAP_H_
#define MY_ALLOC_HEAP_RUN_MAP_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  HEAP_RUN_MAX_UNITS = (1 << 29) - 1,  // Also the most units of a map.
  HEAP_RUN_MIN_UNITS = 4,              // Of one that is allocated.
  HEAP_RUN_BIN_COUNT = 27 * 8,
  HEAP_RUN_NONE = UINT32_MAX,  // No such unit.
  HEAP_RUN_KIND_BITS = 3,      // Of a tag, the lowest; a number above them.
};

// What a unit's tag says of the run that starts (or ends) there.
typedef enum heap_run_kind {
  HEAP_RUN_NOTHING = 0,  // Inside a run.
  HEAP_RUN_BLOCK,        // First unit of a live medium block.
  HEAP_RUN_SPAN,         // First unit of a page of small blocks.
  HEAP_RUN_HOLE,         // First unit of memory that is not ours.
  HEAP_RUN_FREE,         // First unit of a free run.
  HEAP_RUN_FOOT,         // Last unit of a free run of at least two units.
  HEAP_RUN_LINK,         // Second and third unit of a free run in a bin.
} heap_run_kind_t;

typedef struct heap_run_map {
  uint32_t *tags;         // One a unit.
  uint32_t unit_count;    // Units that are part of some run.
  uint32_t tag_capacity;  // Units that `tags` has room for.
  uint32_t free_units;
  uint64_t looked_at;  // Free runs, by all searches; a statistic.
  uint32_t bins[HEAP_RUN_BIN_COUNT];  // First run, +1; 0: empty.
  uint64_t bin_bitmap[(HEAP_RUN_BIN_COUNT + 63) / 64];
} heap_run_map_t;

typedef struct heap_run {
  heap_run_kind_t kind;
  uint32_t start;
  uint32_t units;
} heap_run_t;

static inline heap_run_kind_t heap_run_tag_kind(uint32_t tag) {
  return (heap_run_kind_t)(tag & ((1 << HEAP_RUN_KIND_BITS) - 1));
}

static inline uint32_t heap_run_tag_value(uint32_t tag) {
  return tag >> HEAP_RUN_KIND_BITS;
}

// Returns the run that `unit` lies in. Constant time for a first unit, else
// proportional to its distance from it. Inline: out of line, compilers put the
// result together in memory and wait for it.
static inline heap_run_t heap_run_map_find(const heap_run_map_t *map,
                                           uint32_t unit) {
  heap_run_kind_t kind = heap_run_tag_kind(map->tags[unit]);
  while (kind == HEAP_RUN_NOTHING || kind == HEAP_RUN_LINK ||
         kind == HEAP_RUN_FOOT) {
    kind = heap_run_tag_kind(map->tags[--unit]);
  }
  heap_run_t run = {.kind = kind,
                    .start = unit,
                    .units = heap_run_tag_value(map->tags[unit])};
  return run;
}

// Takes a run of `units` whose first unit plus `bias` is a multiple of
// `align` out of the free ones, and tags it `kind`. HEAP_RUN_NONE when none is
// found; only a fit among many runs of nearly the same length is overlooked.
uint32_t heap_run_map_alloc(heap_run_map_t *map, uint32_t units, uint64_t bias,
                            uint64_t align, heap_run_kind_t kind);

// The same, and overlooks none: looks at all free runs of each list.
uint32_t heap_run_map_alloc_in_need(heap_run_map_t *map, uint32_t units,
                                    uint64_t bias, uint64_t align,
                                    heap_run_kind_t kind);

// Frees the run that starts at `unit`, joins it with free neighbours, and
// returns the joined run.
heap_run_t heap_run_map_free(heap_run_map_t *map, uint32_t unit);

// Changes the length of the block at `unit`; false when the units behind it
// are not free.
bool heap_run_map_resize(heap_run_map_t *map, uint32_t unit, uint32_t units);

// Appends units at the end, as a free run (joined with one before it) or as a
// hole. The caller made sure of `tag_capacity`.
void heap_run_map_append(heap_run_map_t *map, uint32_t units,
                         heap_run_kind_t kind);

// Removes the last `units`, all of them part of one free run.
void heap_run_map_truncate(heap_run_map_t *map, uint32_t units);

// Sees a free run.
typedef void (*heap_run_visit_t)(void *context, heap_run_t run);

// Shows all free runs of at least `min_units` or a little more.
void heap_run_map_visit_long(const heap_run_map_t *map, uint32_t min_units,
                             heap_run_visit_t visit, void *context);

// Returns how many tags inside a free run are zero; `out_first` is the first of
// them. Those behind the last run are zero as well.
uint32_t heap_run_map_zeros(heap_run_t run, uint32_t *out_first);

// Returns the free run at the end of the map; of length 0 when it is live.
heap_run_t heap_run_map_last_free(const heap_run_map_t *map);

// Returns the first broken invariant's name, or NULL.
const char *heap_run_map_check(const heap_run_map_t *map);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_RUN_MAP_H_
