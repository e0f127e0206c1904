// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Arena 0 is the program break. Others are made only when the break is not to
// be used or cannot grow: reservations of addresses whose pages are made usable
// from the low end up, so that both grow in the same way:
//
//   base                                  end            reserve_end
//   | run | run | free run | ...          |  not ours    |
//
// And there is memory that the program gave the heap; it neither grows nor goes
// back. Of each heap page the arena knows whether it was ever handed out
// (purge.h): one that was not is all zero, and that is how calloc knows. A
// reservation is small at first and each next one doubles: address space may be
// limited. One in which nothing lies is unmapped, and its place and tables wait
// for the next one.
//
// Invariants: base and every end are multiples of the heap page; each arena
// keeps those of its run map; a page is idle exactly when it is dirty and lies
// in a free run.
//
// Memory that went back leaves its tags behind, 4 bytes a unit: 1.2 MB after
// 300 MB. Inside a free run they are all zero, so their pages go back as well.
//
// Deliberately not done: runs never join across arenas.

#include "heap/arena_internal.h"
#include "heap/central.h"
#include "heap/fatal.h"
#include "heap/harden.h"
#include "heap/kernel.h"
#include "heap/metadata.h"

enum {
  // Of one step of heap_arena_trim, 16 MiB.
  TRIM_STEP_PAGES = 256,
  TAG_STEP_UNITS = 8 << 10,  // 8 MiB; their tags are 32 KiB.
};

static bool purges_held;  // Central lock.

// Returns whether the run, just handed out, is all zero.
static bool note_use(heap_arena_t *arena, heap_run_t run) {
  return heap_purge_note_use(
      &arena->pages, run.start / HEAP_PAGE_UNITS,
      (run.start + run.units + HEAP_PAGE_UNITS - 1) / HEAP_PAGE_UNITS);
}

// The units [unit, unit + units) became part of the free run `run`.
static void note_free(heap_arena_t *arena, uint32_t unit, uint32_t units,
                      heap_run_t run) {
  size_t first = unit / HEAP_PAGE_UNITS;
  size_t end = (unit + units + HEAP_PAGE_UNITS - 1) / HEAP_PAGE_UNITS;
  // Only pages that are free from one end to the other are idle.
  first += first * HEAP_PAGE_UNITS < run.start;
  end -= end * HEAP_PAGE_UNITS > run.start + run.units;
  heap_purge_note_idle(&arena->pages, first, end);
}

static uintptr_t take(heap_arena_t *arena, size_t units, size_t align_bytes,
                      heap_run_kind_t kind, bool *out_zeroed) {
  uint64_t align_units = align_bytes >> HEAP_UNIT_SHIFT;
  if (align_units == 0) {
    align_units = 1;
  }
  // It is the block that is aligned, not its guard.
  uintptr_t base =
      arena->base + (kind == HEAP_RUN_BLOCK ? HEAP_GUARD_BYTES : 0);
  uint32_t unit = heap_run_map_alloc(
      &arena->map, (uint32_t)units, base >> HEAP_UNIT_SHIFT, align_units, kind);
  if (unit == HEAP_RUN_NONE) {
    return 0;
  }
  // A run may be longer than asked for, and all of it is the caller's.
  *out_zeroed = note_use(arena, heap_run_map_find(&arena->map, unit));
  return arena->base + ((uintptr_t)unit << HEAP_UNIT_SHIFT);
}

// A step of the break may be cut off from the run before it by a hole; the
// second try then has the whole length behind it.
static uintptr_t grow_and_take(size_t wanted, size_t units, size_t align_bytes,
                               heap_run_kind_t kind, bool *out_zeroed) {
  for (int tries = 0; tries < 2; ++tries) {
    if (!heap_arena_grow(&heap_arenas[HEAP_BREAK_ARENA], wanted)) {
      break;
    }
    uintptr_t address = take(&heap_arenas[HEAP_BREAK_ARENA], units, align_bytes,
                             kind, out_zeroed);
    if (address != 0) {
      return address;
    }
  }
  heap_arena_t *arena = NULL;
  for (size_t i = HEAP_BREAK_ARENA + 1; i < heap_arena_count && arena == NULL;
       ++i) {
    arena = heap_arena_grow(&heap_arenas[i], wanted) ? &heap_arenas[i] : NULL;
  }
  if (arena == NULL) {
    arena = heap_arena_reserve(wanted << HEAP_UNIT_SHIFT);
  }
  return arena == NULL ? 0 : take(arena, units, align_bytes, kind, out_zeroed);
}

uintptr_t heap_arena_alloc(size_t units, size_t align_bytes,
                           heap_run_kind_t kind, bool *out_zeroed) {
  // Room to move the start up to an aligned address.
  size_t slack = align_bytes >> HEAP_UNIT_SHIFT;
  size_t wanted;
  if (__builtin_add_overflow(units, slack, &wanted) ||
      wanted > HEAP_RUN_MAX_UNITS) {
    return 0;
  }
  for (size_t i = 0; i < heap_arena_count; ++i) {
    uintptr_t address =
        take(&heap_arenas[i], units, align_bytes, kind, out_zeroed);
    if (address != 0) {
      return address;
    }
  }
  heap_arena_read_source();
  return grow_and_take(wanted, units, align_bytes, kind, out_zeroed);
}

static heap_arena_t *arena_of(uintptr_t address) {
  for (size_t i = 0; i < heap_arena_count; ++i) {
    heap_arena_t *arena = &heap_arenas[i];
    uintptr_t size_bytes = heap_arena_end(arena) - arena->base;
    if (address - arena->base < size_bytes) {
      return arena;
    }
  }
  return NULL;
}

static uint32_t unit_of(const heap_arena_t *arena, uintptr_t address) {
  return (uint32_t)((address - arena->base) >> HEAP_UNIT_SHIFT);
}

// Returns how many pages' worth of blocks and spans there are.
static size_t used_pages(void) {
  size_t units = 0;
  for (size_t i = 0; i < heap_arena_count; ++i) {
    const heap_arena_t *arena = &heap_arenas[i];
    units += arena->map.unit_count - arena->hole_units - arena->map.free_units;
  }
  return units / HEAP_PAGE_UNITS;
}

// Returns the pages of an arena that may be discarded: not the last
// `keep_bytes` of the break, as far as they are free.
static size_t purgeable_pages(const heap_arena_t *arena, size_t keep_bytes) {
  size_t page_count = arena->map.unit_count / HEAP_PAGE_UNITS;
  if (arena != &heap_arenas[HEAP_BREAK_ARENA] || keep_bytes == 0) {
    return page_count;
  }
  size_t free_pages =
      heap_run_map_last_free(&arena->map).units / HEAP_PAGE_UNITS;
  size_t keep_pages = keep_bytes / HEAP_PAGE_BYTES;
  return page_count - (keep_pages < free_pages ? keep_pages : free_pages);
}

// Lowers the break to `break_bytes` above the last block and discards idle
// pages, but the highest `keep_bytes` of the break, until `keep_pages` are
// idle. Returns how many pages went.
static size_t purge(size_t keep_pages, size_t break_bytes, size_t keep_bytes) {
  size_t purged = heap_arena_lower_break(break_bytes);
  for (size_t i = heap_arena_count; i-- > 0;) {
    heap_arena_t *arena = &heap_arenas[i];
    purged += heap_purge_pages(&arena->pages, arena->base,
                               purgeable_pages(arena, keep_bytes), keep_pages);
    heap_arena_release(arena);
  }
  return purged;
}

size_t heap_arena_trim(size_t keep_bytes) {
  size_t idle = heap_purge_idle_pages();
  size_t keep_pages = idle > TRIM_STEP_PAGES ? idle - TRIM_STEP_PAGES : 0;
  return purge(keep_pages, keep_bytes, keep_bytes) * HEAP_PAGE_BYTES;
}

void heap_arena_hold_purges(bool hold) {
  purges_held = hold;
}

// A visitor of free runs: sums their lengths up.
static void add_units(void *context, heap_run_t run) {
  uint32_t *units = context;
  *units += run.units;
}

// A visitor of free runs.
static void discard_tags_of(void *context, heap_run_t run) {
  heap_run_map_t *map = context;
  uint32_t first;
  uint32_t count = heap_run_map_zeros(run, &first);
  heap_metadata_discard_zeros(&map->tags[first], count * sizeof(uint32_t));
}

// The tags inside a free run are zero: gives those of long ones back, which may
// be more memory than what is idle, whenever these grew by a step in all.
static void discard_tags(heap_arena_t *arena) {
  uint32_t units = 0;
  heap_run_map_visit_long(&arena->map, TAG_STEP_UNITS, add_units, &units);
  if (units >= arena->tagless_units + TAG_STEP_UNITS) {
    heap_run_map_visit_long(&arena->map, TAG_STEP_UNITS, discard_tags_of,
                            &arena->map);
    arena->tagless_units = units;
  } else if (units < arena->tagless_units) {
    arena->tagless_units = units;
  }
}

static void purge_if_due(void) {
  size_t used = used_pages();
  if (!purges_held && heap_purge_is_due(used)) {
    size_t keep_pages = heap_purge_begin(used);
    purge(keep_pages, keep_pages * HEAP_PAGE_BYTES, 0);
    for (size_t i = 0; i < heap_arena_count; ++i) {
      discard_tags(&heap_arenas[i]);
    }
  }
}

void heap_arena_free(uintptr_t address) {
  heap_arena_t *arena = arena_of(address);
  HEAP_ASSERT(arena != NULL);
  uint32_t unit = unit_of(arena, address);
  heap_run_t freed = heap_run_map_find(&arena->map, unit);
  heap_run_t joined = heap_run_map_free(&arena->map, unit);
  note_free(arena, freed.start, freed.units, joined);
  purge_if_due();
}

bool heap_arena_resize(uintptr_t address, size_t units) {
  heap_arena_t *arena = arena_of(address);
  HEAP_ASSERT(arena != NULL);
  if (units > HEAP_RUN_MAX_UNITS) {
    return false;
  }
  uint32_t unit = unit_of(arena, address);
  heap_run_t run = heap_run_map_find(&arena->map, unit);
  HEAP_ASSERT(run.kind == HEAP_RUN_BLOCK && run.start == unit);
  if (!heap_run_map_resize(&arena->map, unit, (uint32_t)units)) {
    heap_run_t last = heap_run_map_last_free(&arena->map);
    // Growing the arena helps only if nothing live stands behind the block.
    if (unit + run.units != last.start ||
        !heap_arena_grow(arena, units - run.units) ||
        !heap_run_map_resize(&arena->map, unit, (uint32_t)units)) {
      return false;
    }
  }
  heap_run_t now = heap_run_map_find(&arena->map, unit);
  note_use(arena, now);
  if (now.units < run.units) {
    uint32_t tail = unit + now.units;
    note_free(arena, tail, run.units - now.units,
              heap_run_map_find(&arena->map, tail));
    purge_if_due();
  }
  return true;
}

bool heap_arena_discard(uintptr_t address, size_t size_bytes) {
  const heap_arena_t *arena = arena_of(address);
  HEAP_ASSERT(arena != NULL);
  if (arena->pages.is_kept) {
    return false;
  }
  heap_central_count_kernel_call();
  return heap_kernel->discard((void *)address, size_bytes);
}

heap_arena_place_t heap_arena_find(uintptr_t address) {
  heap_arena_t *arena = arena_of(address);
  if (arena == NULL) {
    return (heap_arena_place_t){.kind = HEAP_RUN_NOTHING};
  }
  heap_run_t run = heap_run_map_find(&arena->map, unit_of(arena, address));
  return heap_arena_place_of(arena, run);
}
