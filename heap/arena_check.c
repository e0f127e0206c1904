// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The arenas as a whole: their invariants, all that lies in them, their sums.

#include "heap/arena_internal.h"
#include "heap/page_table.h"

// Tells whether the pages that the run has a part of are marked as they must
// be; adds the idle ones to `idle_pages`.
static bool has_right_marks(const heap_arena_t *arena, heap_run_t run,
                            size_t *idle_pages) {
  uint32_t end = run.start + run.units;
  uint32_t unit = run.start & ~(uint32_t)(HEAP_PAGE_UNITS - 1);
  for (; unit < end; unit += HEAP_PAGE_UNITS) {
    bool is_free = run.kind == HEAP_RUN_FREE && unit >= run.start &&
                   unit + HEAP_PAGE_UNITS <= end;
    uint8_t flags = arena->pages.flags[unit / HEAP_PAGE_UNITS];
    bool is_dirty = (flags & HEAP_PAGE_DIRTY) != 0;
    bool is_idle = (flags & HEAP_PAGE_IDLE) != 0;
    bool was_refused = (flags & HEAP_PAGE_REFUSED) != 0;
    if ((is_idle || was_refused) != (is_free && is_dirty) ||
        (is_idle && was_refused)) {
      return false;
    }
    *idle_pages += is_idle;
  }
  return true;
}

static bool are_pages_marked_right(const heap_arena_t *arena,
                                   size_t *idle_pages) {
  for (uint32_t unit = 0; unit < arena->map.unit_count;) {
    heap_run_t run = heap_run_map_find(&arena->map, unit);
    if (!has_right_marks(arena, run, idle_pages)) {
      return false;
    }
    unit += run.units;
  }
  return true;
}

const char *heap_arena_check(void) {
  size_t idle_pages = 0;
  for (size_t i = 0; i < heap_arena_count; ++i) {
    const heap_arena_t *arena = &heap_arenas[i];
    const char *broken = heap_run_map_check(&arena->map);
    if (broken != NULL) {
      return broken;
    }
    if (arena->base % HEAP_PAGE_BYTES != 0 ||
        arena->map.unit_count % HEAP_PAGE_UNITS != 0) {
      return "arena: not cut at heap pages";
    }
    if (!are_pages_marked_right(arena, &idle_pages)) {
      return "arena: an idle page that is not free, or the reverse";
    }
  }
  if (idle_pages != heap_purge_idle_pages()) {
    return "arena: idle pages are not counted right";
  }
  return NULL;
}

bool heap_arena_walk(heap_arena_visit_t visit, void *context) {
  for (size_t i = 0; i < heap_arena_count; ++i) {
    const heap_arena_t *arena = &heap_arenas[i];
    uint32_t unit = 0;
    while (unit < arena->map.unit_count) {
      heap_run_t run = heap_run_map_find(&arena->map, unit);
      bool is_live = run.kind == HEAP_RUN_BLOCK || run.kind == HEAP_RUN_SPAN;
      if (is_live && !visit(context, heap_arena_place_of(arena, run))) {
        return false;
      }
      unit += run.units;
    }
  }
  return true;
}

static size_t longest_free_units(const heap_run_map_t *map) {
  size_t longest = 0;
  for (uint32_t unit = 0; unit < map->unit_count;) {
    heap_run_t run = heap_run_map_find(map, unit);
    if (run.kind == HEAP_RUN_FREE && run.units > longest) {
      longest = run.units;
    }
    unit += run.units;
  }
  return longest;
}

heap_arena_totals_t heap_arena_sum(void) {
  heap_arena_totals_t totals = {0};
  for (size_t i = 0; i < heap_arena_count; ++i) {
    const heap_arena_t *arena = &heap_arenas[i];
    size_t units = arena->map.unit_count - arena->hole_units;
    totals.mapped_bytes += units << HEAP_UNIT_SHIFT;
    totals.free_bytes += (size_t)arena->map.free_units << HEAP_UNIT_SHIFT;
    size_t longest_bytes = longest_free_units(&arena->map) << HEAP_UNIT_SHIFT;
    if (longest_bytes > totals.largest_free_bytes) {
      totals.largest_free_bytes = longest_bytes;
    }
    size_t page_count = arena->map.unit_count / HEAP_PAGE_UNITS;
    for (size_t page = 0; page < page_count; ++page) {
      bool dirty = (arena->pages.flags[page] & HEAP_PAGE_DIRTY) != 0;
      totals.dirty_bytes += dirty ? HEAP_PAGE_BYTES : 0;
    }
  }
  return totals;
}
