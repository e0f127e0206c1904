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
// The break belongs to the whole process, and the hard problem is that others
// move it too. It is therefore read again before every step:
//  - found above our end: the strangers' part becomes a hole in the map of
//    runs, never handed out, and we go on behind it;
//  - found below our end: somebody gave our memory away. What is lost is lost;
//    the break is never moved by us again;
//  - lowered by us only while it is exactly our end.
//
// Invariants: base and every end are multiples of the heap page; each arena
// keeps those of its run map; a page is idle exactly when it is dirty and lies
// in a free run.
//
// Deliberately not done: runs never join across arenas.

#include "heap/arena.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "heap/central.h"
#include "heap/fatal.h"
#include "heap/hooks.h"
#include "heap/kernel.h"
#include "heap/mapped.h"
#include "heap/metadata.h"
#include "heap/purge.h"

enum {
  ARENA_COUNT_MAX = 48,
  // Of the program's own memory; the rest is for reservations, of which there
  // are always enough, since they double.
  GIFT_COUNT_MAX = 16,
  BREAK_ARENA = 0,
  GROWTH_MIN_BYTES = 1 << 20,
  // An arena grows by at least half: few kernel calls. What is never
  // touched is addresses only.
  GROWTH_SHIFT = 1,
  GROWTH_MAX_BYTES = 64 << 20,
  // A long step ends at a multiple of this, so that the kernel can back all of
  // it with transparent huge pages where it does so by itself.
  HUGE_PAGE_BYTES = 2 << 20,
  RESERVE_MIN_BYTES = 64 << 20,
  TRIM_MIN_BYTES = 2 << 20,
  // Of one step of heap_arena_trim, 16 MiB.
  TRIM_STEP_PAGES = 256,
  TABLE_MIN_BYTES = 4 << 10,
  TABLE_GROWTH = 4,
};

typedef struct arena {
  uintptr_t base;
  uintptr_t reserve_end;  // Of a reservation.
  void *mapping;          // The reservation, at or before base; or NULL.
  size_t mapping_bytes;
  uint32_t hole_units;
  heap_run_map_t map;
  heap_page_flags_t pages;
} arena_t;

// All guarded by the central lock.
static arena_t arenas[ARENA_COUNT_MAX];
// Places in use: the break's always, and of others up to the highest that ever
// was; one without units is vacant.
static size_t arena_count = 1;
static bool break_unusable;
static bool purges_held;
static bool source_read;

static uintptr_t round_up(uintptr_t value, uintptr_t align) {
  return (value + align - 1) & ~(align - 1);
}

static uintptr_t arena_end(const arena_t *arena) {
  return arena->base + ((uintptr_t)arena->map.unit_count << HEAP_UNIT_SHIFT);
}

static void *move_break(intptr_t delta_bytes) {
  if (delta_bytes != 0) {
    heap_central_count_kernel_call();
  }
  return heap_kernel->move_break(delta_bytes);
}

// Makes a table at least `wanted_bytes` long; NULL: it is as it was.
static void *grow_table(void *table, size_t *capacity_bytes,
                        size_t wanted_bytes) {
  if (wanted_bytes <= *capacity_bytes) {
    return table;
  }
  size_t new_bytes = *capacity_bytes == 0 ? TABLE_MIN_BYTES : *capacity_bytes;
  while (new_bytes < wanted_bytes) {
    new_bytes *= TABLE_GROWTH;
  }
  table = *capacity_bytes == 0
              ? heap_metadata_map(new_bytes)
              : heap_metadata_grow(table, *capacity_bytes, new_bytes);
  if (table != NULL) {
    *capacity_bytes = new_bytes;
  }
  return table;
}

// Makes room in the tables for `units` more units, a multiple of a page's.
static bool reserve_tables(arena_t *arena, size_t units) {
  heap_run_map_t *map = &arena->map;
  size_t wanted = map->unit_count + units;
  if (wanted > HEAP_RUN_MAX_UNITS) {
    return false;
  }
  size_t tag_bytes = map->tag_capacity * sizeof(uint32_t);
  uint32_t *tags = grow_table(map->tags, &tag_bytes, wanted * sizeof(uint32_t));
  if (tags == NULL) {
    return false;
  }
  map->tags = tags;
  map->tag_capacity = (uint32_t)(tag_bytes / sizeof(uint32_t));
  uint8_t *flags = grow_table(arena->pages.flags, &arena->pages.capacity_bytes,
                              wanted / HEAP_PAGE_UNITS);
  if (flags == NULL) {
    return false;
  }
  arena->pages.flags = flags;
  return true;
}

static void append_memory(arena_t *arena, size_t size_bytes) {
  void *start = (void *)arena_end(arena);
  heap_run_map_append(&arena->map, (uint32_t)(size_bytes >> HEAP_UNIT_SHIFT),
                      HEAP_RUN_FREE);
  heap_hook_map(start, size_bytes);
}

static void append_hole(arena_t *arena, size_t size_bytes) {
  uint32_t units = (uint32_t)(size_bytes >> HEAP_UNIT_SHIFT);
  heap_run_map_append(&arena->map, units, HEAP_RUN_HOLE);
  arena->hole_units += units;
}

// Reads the break and returns where our next memory can start: our end, or
// behind what strangers took. 0 when the break cannot be used.
static uintptr_t next_break_start(const arena_t *arena, uintptr_t *out_now) {
  uintptr_t now = (uintptr_t)move_break(0);
  *out_now = now;
  if (now == 0 || (arena->base != 0 && now < arena_end(arena))) {
    return 0;
  }
  return round_up(now, HEAP_PAGE_BYTES);
}

// Extends the break arena by `size_bytes`, a multiple of the heap page.
static bool grow_break(arena_t *arena, size_t size_bytes) {
  uintptr_t now;
  uintptr_t start = next_break_start(arena, &now);
  if (start == 0) {
    break_unusable = true;
    return false;
  }
  size_t hole_bytes = arena->base == 0 ? 0 : start - arena_end(arena);
  if (!reserve_tables(arena, (hole_bytes + size_bytes) >> HEAP_UNIT_SHIFT)) {
    return false;
  }
  intptr_t delta = (intptr_t)(start - now + size_bytes);
  uintptr_t old_break = (uintptr_t)move_break(delta);
  if (old_break == 0) {
    return false;
  }
  if (old_break != now) {
    // Another thread of the program moved the break between our two calls.
    // The step is lost if it cannot be taken back; trying again is the
    // caller's decision, who has other sources as well.
    if ((uintptr_t)move_break(0) == old_break + (uintptr_t)delta) {
      move_break(-delta);
    }
    return false;
  }
  if (arena->base == 0) {
    arena->base = start;
    heap_page_table_set_near(start);
  } else if (hole_bytes > 0) {
    append_hole(arena, hole_bytes);
  }
  append_memory(arena, size_bytes);
  return true;
}

static bool grow_reserved(arena_t *arena, size_t size_bytes) {
  uintptr_t end = arena_end(arena);
  if (arena->mapping == NULL || arena->reserve_end - end < size_bytes ||
      !reserve_tables(arena, size_bytes >> HEAP_UNIT_SHIFT)) {
    return false;
  }
  heap_central_count_kernel_call();
  if (!heap_kernel->commit((void *)end, size_bytes)) {
    return false;
  }
  append_memory(arena, size_bytes);
  return true;
}

// Extends `arena` so that its last free run has `units`: by a generous step,
// or, where that is refused, by exactly what is missing.
static bool grow(arena_t *arena, size_t units) {
  size_t have = heap_run_map_last_free(&arena->map).units;
  size_t missing_bytes =
      have >= units
          ? HEAP_PAGE_BYTES
          : round_up((units - have) << HEAP_UNIT_SHIFT, HEAP_PAGE_BYTES);
  size_t step_bytes = round_up(
      ((uintptr_t)arena->map.unit_count << HEAP_UNIT_SHIFT) >> GROWTH_SHIFT,
      HEAP_PAGE_BYTES);
  if (step_bytes < GROWTH_MIN_BYTES) {
    step_bytes = GROWTH_MIN_BYTES;
  }
  if (step_bytes > GROWTH_MAX_BYTES) {
    step_bytes = GROWTH_MAX_BYTES;
  }
  if (step_bytes >= HUGE_PAGE_BYTES) {
    uintptr_t end = arena_end(arena);
    step_bytes = round_up(end + step_bytes, HUGE_PAGE_BYTES) - end;
  }
  bool is_break = arena == &arenas[BREAK_ARENA];
  bool (*extend)(arena_t *, size_t) = is_break ? grow_break : grow_reserved;
  if (is_break && break_unusable) {
    return false;
  }
  return (step_bytes > missing_bytes && extend(arena, step_bytes)) ||
         extend(arena, missing_bytes);
}

static bool is_vacant(const arena_t *arena) {
  return arena != &arenas[BREAK_ARENA] && arena->map.unit_count == 0;
}

// Returns a vacant place, or NULL.
static arena_t *find_place(void) {
  for (size_t i = BREAK_ARENA + 1; i < arena_count; ++i) {
    if (is_vacant(&arenas[i])) {
      return &arenas[i];
    }
  }
  return arena_count < ARENA_COUNT_MAX ? &arenas[arena_count] : NULL;
}

// The arena in a place that find_place() returned is there from now on.
static void note_place_taken(const arena_t *arena) {
  if (arena == &arenas[arena_count]) {
    ++arena_count;
  }
}

static size_t count_reservations(void) {
  size_t count = 0;
  for (size_t i = BREAK_ARENA + 1; i < arena_count; ++i) {
    count += arenas[i].mapping != NULL;
  }
  return count;
}

static size_t count_gifts(void) {
  size_t count = 0;
  for (size_t i = BREAK_ARENA + 1; i < arena_count; ++i) {
    count += arenas[i].pages.is_kept;
  }
  return count;
}

static bool unmap_reservation(arena_t *arena) {
  heap_central_count_kernel_call();
  if (!heap_kernel->unmap(arena->mapping, arena->mapping_bytes)) {
    return false;
  }
  arena->mapping = NULL;
  return true;
}

// Maps addresses for `size_bytes` at least, at best `wanted_bytes`, and the
// pages at its ends.
static void *map_reservation(size_t wanted_bytes, size_t size_bytes,
                             size_t *out_bytes) {
  for (;;) {
    if (wanted_bytes < size_bytes) {
      wanted_bytes = size_bytes;
    }
    heap_central_count_kernel_call();
    *out_bytes = wanted_bytes + HEAP_PAGE_BYTES;
    void *ptr = heap_kernel->map(*out_bytes, true);
    if (ptr != NULL || wanted_bytes == size_bytes) {
      return ptr;
    }
    wanted_bytes /= 2;
  }
}

// Starts an arena of its own whose first free run has at least `size_bytes`.
static arena_t *reserve_arena(size_t size_bytes) {
  arena_t *arena = find_place();
  if (arena == NULL) {
    return NULL;
  }
  size_bytes = round_up(size_bytes, HEAP_PAGE_BYTES);
  size_t mapping_bytes;
  void *mapping =
      map_reservation((size_t)RESERVE_MIN_BYTES << count_reservations(),
                      size_bytes, &mapping_bytes);
  if (mapping == NULL) {
    return NULL;
  }
  arena->mapping = mapping;
  arena->mapping_bytes = mapping_bytes;
  arena->base = round_up((uintptr_t)mapping, HEAP_PAGE_BYTES);
  arena->reserve_end =
      ((uintptr_t)mapping + mapping_bytes) & ~(uintptr_t)(HEAP_PAGE_BYTES - 1);
  if (!grow(arena, size_bytes >> HEAP_UNIT_SHIFT)) {
    unmap_reservation(arena);
    return NULL;
  }
  note_place_taken(arena);
  heap_page_table_set_near(arena->base);
  return arena;
}

typedef struct range {
  uintptr_t start;
  uintptr_t end;
} range_t;

// A visitor of mapped blocks: goes on while they are not in the range.
static bool is_elsewhere(void *context, void *ptr, size_t usable_bytes) {
  const range_t *range = context;
  return (uintptr_t)ptr + usable_bytes <= range->start ||
         (uintptr_t)ptr >= range->end;
}

// Tells whether any of [start, end) is the heap's, or will be: a reservation,
// or what others have of the break, over which arena 0 will lie when it grows.
static bool is_taken(uintptr_t start, uintptr_t end) {
  range_t range = {.start = start, .end = end};
  const arena_t *low = &arenas[BREAK_ARENA];
  if (low->base != 0 && start < (uintptr_t)move_break(0) && low->base < end) {
    return true;
  }
  if (!heap_mapped_walk(is_elsewhere, &range)) {
    return true;
  }
  for (size_t i = 0; i < arena_count; ++i) {
    const arena_t *arena = &arenas[i];
    uintptr_t arena_last =
        arena->mapping != NULL ? arena->reserve_end : arena_end(arena);
    if (!is_vacant(arena) && start < arena_last && arena->base < end) {
      return true;
    }
  }
  return false;
}

int heap_arena_add(void *memory, size_t size_bytes, bool is_zeroed,
                   size_t *out_bytes) {
  uintptr_t base;
  uintptr_t end;
  *out_bytes = 0;
  if (__builtin_add_overflow((uintptr_t)memory, size_bytes, &end) ||
      __builtin_add_overflow((uintptr_t)memory, HEAP_PAGE_BYTES - 1, &base)) {
    return EINVAL;
  }
  base &= ~(uintptr_t)(HEAP_PAGE_BYTES - 1);
  end &= ~(uintptr_t)(HEAP_PAGE_BYTES - 1);
  if (base >= end || is_taken(base, end) || end >> HEAP_ADDRESS_BITS != 0) {
    return EINVAL;
  }
  arena_t *arena = find_place();
  size_t units = (end - base) >> HEAP_UNIT_SHIFT;
  if (arena == NULL || count_gifts() == GIFT_COUNT_MAX ||
      !reserve_tables(arena, units)) {
    return ENOMEM;
  }
  arena->base = base;
  arena->mapping = NULL;
  arena->pages.is_kept = true;
  append_memory(arena, end - base);
  if (!is_zeroed) {
    heap_purge_note_use(&arena->pages, 0, units / HEAP_PAGE_UNITS);
    heap_purge_note_idle(&arena->pages, 0, units / HEAP_PAGE_UNITS);
  }
  note_place_taken(arena);
  *out_bytes = end - base;
  return 0;
}

static void read_source(void) {
  source_read = true;
  const char *value = secure_getenv("HEAP_SOURCE");
  if (value != NULL && strcmp(value, "mmap") == 0) {
    break_unusable = true;
  }
}

// Returns whether the run, just handed out, is all zero.
static bool note_use(arena_t *arena, heap_run_t run) {
  return heap_purge_note_use(
      &arena->pages, run.start / HEAP_PAGE_UNITS,
      (run.start + run.units + HEAP_PAGE_UNITS - 1) / HEAP_PAGE_UNITS);
}

// The units [unit, unit + units) became part of the free run `run`.
static void note_free(arena_t *arena, uint32_t unit, uint32_t units,
                      heap_run_t run) {
  size_t first = unit / HEAP_PAGE_UNITS;
  size_t end = (unit + units + HEAP_PAGE_UNITS - 1) / HEAP_PAGE_UNITS;
  // Only pages that are free from one end to the other are idle.
  first += first * HEAP_PAGE_UNITS < run.start;
  end -= end * HEAP_PAGE_UNITS > run.start + run.units;
  heap_purge_note_idle(&arena->pages, first, end);
}

static uintptr_t take(arena_t *arena, size_t units, size_t align_bytes,
                      heap_run_kind_t kind, bool *out_zeroed) {
  uint64_t align_units = align_bytes >> HEAP_UNIT_SHIFT;
  if (align_units == 0) {
    align_units = 1;
  }
  uint32_t unit =
      heap_run_map_alloc(&arena->map, (uint32_t)units,
                         arena->base >> HEAP_UNIT_SHIFT, align_units, kind);
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
    if (!grow(&arenas[BREAK_ARENA], wanted)) {
      break;
    }
    uintptr_t address =
        take(&arenas[BREAK_ARENA], units, align_bytes, kind, out_zeroed);
    if (address != 0) {
      return address;
    }
  }
  arena_t *arena = NULL;
  for (size_t i = BREAK_ARENA + 1; i < arena_count && arena == NULL; ++i) {
    arena = grow(&arenas[i], wanted) ? &arenas[i] : NULL;
  }
  if (arena == NULL) {
    arena = reserve_arena(wanted << HEAP_UNIT_SHIFT);
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
  for (size_t i = 0; i < arena_count; ++i) {
    uintptr_t address = take(&arenas[i], units, align_bytes, kind, out_zeroed);
    if (address != 0) {
      return address;
    }
  }
  if (!source_read) {
    read_source();
  }
  return grow_and_take(wanted, units, align_bytes, kind, out_zeroed);
}

static arena_t *arena_of(uintptr_t address) {
  for (size_t i = 0; i < arena_count; ++i) {
    arena_t *arena = &arenas[i];
    uintptr_t size_bytes = arena_end(arena) - arena->base;
    if (address - arena->base < size_bytes) {
      return arena;
    }
  }
  return NULL;
}

static uint32_t unit_of(const arena_t *arena, uintptr_t address) {
  return (uint32_t)((address - arena->base) >> HEAP_UNIT_SHIFT);
}

// Lowers the break by the free run below it, if that is long and nobody else
// moved the break. Returns the pages that went.
static size_t lower_break(size_t keep_bytes) {
  arena_t *arena = &arenas[BREAK_ARENA];
  heap_run_t last = heap_run_map_last_free(&arena->map);
  size_t free_bytes = (size_t)last.units << HEAP_UNIT_SHIFT;
  if (free_bytes < keep_bytes || free_bytes - keep_bytes < TRIM_MIN_BYTES ||
      break_unusable || (uintptr_t)move_break(0) != arena_end(arena)) {
    return 0;
  }
  size_t release_bytes =
      (free_bytes - keep_bytes) & ~(size_t)(HEAP_PAGE_BYTES - 1);
  uintptr_t new_end = arena_end(arena) - release_bytes;
  heap_hook_unmap((void *)new_end, release_bytes);
  if (move_break(-(intptr_t)release_bytes) == NULL) {
    heap_hook_map((void *)new_end, release_bytes);
    return 0;
  }
  size_t page_count = arena->map.unit_count / HEAP_PAGE_UNITS;
  size_t released = release_bytes / HEAP_PAGE_BYTES;
  heap_run_map_truncate(&arena->map,
                        (uint32_t)(release_bytes >> HEAP_UNIT_SHIFT));
  heap_purge_note_gone(&arena->pages, page_count - released, page_count);
  return released;
}

// Returns how many pages' worth of blocks and spans there are.
static size_t used_pages(void) {
  size_t units = 0;
  for (size_t i = 0; i < arena_count; ++i) {
    const arena_t *arena = &arenas[i];
    units += arena->map.unit_count - arena->hole_units - arena->map.free_units;
  }
  return units / HEAP_PAGE_UNITS;
}

// Gives the addresses of a reservation back if nothing lies there, and its
// memory has gone.
static void release(arena_t *arena) {
  uint32_t units = arena->map.unit_count;
  if (arena->mapping == NULL ||
      heap_run_map_last_free(&arena->map).units != units ||
      heap_purge_has_idle(&arena->pages)) {
    return;
  }
  heap_hook_unmap((void *)arena->base, (size_t)units << HEAP_UNIT_SHIFT);
  if (!unmap_reservation(arena)) {
    heap_hook_map((void *)arena->base, (size_t)units << HEAP_UNIT_SHIFT);
    return;
  }
  heap_run_map_truncate(&arena->map, units);
  heap_purge_note_gone(&arena->pages, 0, units / HEAP_PAGE_UNITS);
}

// Returns the pages of an arena that may be discarded: not the last
// `keep_bytes` of the break, as far as they are free.
static size_t purgeable_pages(const arena_t *arena, size_t keep_bytes) {
  size_t page_count = arena->map.unit_count / HEAP_PAGE_UNITS;
  if (arena != &arenas[BREAK_ARENA] || keep_bytes == 0) {
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
  size_t purged = lower_break(break_bytes);
  for (size_t i = arena_count; i-- > 0;) {
    arena_t *arena = &arenas[i];
    purged += heap_purge_pages(&arena->pages, arena->base,
                               purgeable_pages(arena, keep_bytes), keep_pages);
    release(arena);
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

static void purge_if_due(void) {
  size_t used = used_pages();
  if (!purges_held && heap_purge_is_due(used)) {
    size_t keep_pages = heap_purge_begin(used);
    purge(keep_pages, keep_pages * HEAP_PAGE_BYTES, 0);
  }
}

void heap_arena_free(uintptr_t address) {
  arena_t *arena = arena_of(address);
  HEAP_ASSERT(arena != NULL);
  uint32_t unit = unit_of(arena, address);
  heap_run_t freed = heap_run_map_find(&arena->map, unit);
  heap_run_t joined = heap_run_map_free(&arena->map, unit);
  note_free(arena, freed.start, freed.units, joined);
  purge_if_due();
}

bool heap_arena_resize(uintptr_t address, size_t units) {
  arena_t *arena = arena_of(address);
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
    if (unit + run.units != last.start || !grow(arena, units - run.units) ||
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
  const arena_t *arena = arena_of(address);
  HEAP_ASSERT(arena != NULL);
  if (arena->pages.is_kept) {
    return false;
  }
  heap_central_count_kernel_call();
  return heap_kernel->discard((void *)address, size_bytes);
}

static heap_arena_place_t place_of(const arena_t *arena, heap_run_t run) {
  return (heap_arena_place_t){
      .kind = run.kind,
      .start = arena->base + ((uintptr_t)run.start << HEAP_UNIT_SHIFT),
      .size_bytes = (size_t)run.units << HEAP_UNIT_SHIFT};
}

heap_arena_place_t heap_arena_find(uintptr_t address) {
  arena_t *arena = arena_of(address);
  if (arena == NULL) {
    return (heap_arena_place_t){.kind = HEAP_RUN_NOTHING};
  }
  heap_run_t run = heap_run_map_find(&arena->map, unit_of(arena, address));
  return place_of(arena, run);
}

// Tells whether the pages that the run has a part of are marked as they must
// be; adds the idle ones to `idle_pages`.
static bool has_right_marks(const arena_t *arena, heap_run_t run,
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

static bool are_pages_marked_right(const arena_t *arena, size_t *idle_pages) {
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
  for (size_t i = 0; i < arena_count; ++i) {
    const arena_t *arena = &arenas[i];
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
  for (size_t i = 0; i < arena_count; ++i) {
    const arena_t *arena = &arenas[i];
    uint32_t unit = 0;
    while (unit < arena->map.unit_count) {
      heap_run_t run = heap_run_map_find(&arena->map, unit);
      bool is_live = run.kind == HEAP_RUN_BLOCK || run.kind == HEAP_RUN_SPAN;
      if (is_live && !visit(context, place_of(arena, run))) {
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
  for (size_t i = 0; i < arena_count; ++i) {
    const arena_t *arena = &arenas[i];
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
