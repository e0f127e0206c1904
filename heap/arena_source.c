// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Where the memory of arenas comes from and goes to: the program break,
// reservations of addresses, and what the program gave.
//
// The break belongs to the whole process, and the hard problem is that others
// move it too. It is therefore read again before every step:
//  - found above our end: the strangers' part becomes a hole in the map of
//    runs, never handed out, and we go on behind it;
//  - found below our end: somebody gave our memory away. What is lost is lost;
//    the break is never moved by us again;
//  - lowered by us only while it is exactly our end.

#include "heap/arena_internal.h"

#include <errno.h>
#include <string.h>

#include "heap/central.h"
#include "heap/harden.h"
#include "heap/hooks.h"
#include "heap/kernel.h"
#include "heap/mapped.h"
#include "heap/metadata.h"
#include "heap/option.h"
#include "heap/page_table.h"
#include "heap/random.h"

enum {
  // Of the program's own memory; the rest is for reservations, of which there
  // are always enough, since they double.
  GIFT_COUNT_MAX = 16,
  GROWTH_MIN_BYTES = 1 << 20,
  // An arena grows by at least half: few kernel calls. What is never
  // touched is addresses only.
  GROWTH_SHIFT = 1,
  GROWTH_MAX_BYTES = 64 << 20,
  // A long step ends at a multiple of this, so that the kernel can back all of
  // it with transparent huge pages where it does so by itself.
  HUGE_PAGE_BYTES = 2 << 20,
  RESERVE_MIN_BYTES = 64 << 20,
  SHIFT_MAX_BYTES = 4 << 20,  // Of where the arena in a reservation starts.
  TRIM_MIN_BYTES = 2 << 20,
  TABLE_MIN_BYTES = 4 << 10,
  TABLE_GROWTH = 4,
};

// All guarded by the central lock.
heap_arena_t heap_arenas[HEAP_ARENA_COUNT_MAX];
size_t heap_arena_count = 1;
static bool break_unusable;
static bool source_read;

static uintptr_t round_up(uintptr_t value, uintptr_t align) {
  return (value + align - 1) & ~(align - 1);
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
static bool reserve_tables(heap_arena_t *arena, size_t units) {
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

static void append_memory(heap_arena_t *arena, size_t size_bytes) {
  void *start = (void *)heap_arena_end(arena);
  heap_run_map_append(&arena->map, (uint32_t)(size_bytes >> HEAP_UNIT_SHIFT),
                      HEAP_RUN_FREE);
  heap_hook_map(start, size_bytes);
}

static void append_hole(heap_arena_t *arena, size_t size_bytes) {
  uint32_t units = (uint32_t)(size_bytes >> HEAP_UNIT_SHIFT);
  heap_run_map_append(&arena->map, units, HEAP_RUN_HOLE);
  arena->hole_units += units;
}

// Reads the break and returns where our next memory can start: our end, or
// behind what strangers took. 0 when the break cannot be used.
static uintptr_t next_break_start(const heap_arena_t *arena,
                                  uintptr_t *out_now) {
  uintptr_t now = (uintptr_t)move_break(0);
  *out_now = now;
  if (now == 0 || (arena->base != 0 && now < heap_arena_end(arena))) {
    return 0;
  }
  return round_up(now, HEAP_PAGE_BYTES);
}

// Extends the break arena by `size_bytes`, a multiple of the heap page.
static bool grow_break(heap_arena_t *arena, size_t size_bytes) {
  uintptr_t now;
  uintptr_t start = next_break_start(arena, &now);
  if (start == 0) {
    break_unusable = true;
    return false;
  }
  size_t hole_bytes = arena->base == 0 ? 0 : start - heap_arena_end(arena);
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

static bool grow_reserved(heap_arena_t *arena, size_t size_bytes) {
  uintptr_t end = heap_arena_end(arena);
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

bool heap_arena_grow(heap_arena_t *arena, size_t units) {
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
    uintptr_t end = heap_arena_end(arena);
    step_bytes = round_up(end + step_bytes, HUGE_PAGE_BYTES) - end;
  }
  bool is_break = arena == &heap_arenas[HEAP_BREAK_ARENA];
  bool (*extend)(heap_arena_t *, size_t) =
      is_break ? grow_break : grow_reserved;
  if (is_break && break_unusable) {
    return false;
  }
  return (step_bytes > missing_bytes && extend(arena, step_bytes)) ||
         extend(arena, missing_bytes);
}

static bool is_vacant(const heap_arena_t *arena) {
  return arena != &heap_arenas[HEAP_BREAK_ARENA] && arena->map.unit_count == 0;
}

// Returns a vacant place, or NULL.
static heap_arena_t *find_place(void) {
  for (size_t i = HEAP_BREAK_ARENA + 1; i < heap_arena_count; ++i) {
    if (is_vacant(&heap_arenas[i])) {
      return &heap_arenas[i];
    }
  }
  return heap_arena_count < HEAP_ARENA_COUNT_MAX
             ? &heap_arenas[heap_arena_count]
             : NULL;
}

// The arena in a place that find_place() returned is there from now on.
static void note_place_taken(const heap_arena_t *arena) {
  if (arena == &heap_arenas[heap_arena_count]) {
    ++heap_arena_count;
  }
}

static size_t count_reservations(void) {
  size_t count = 0;
  for (size_t i = HEAP_BREAK_ARENA + 1; i < heap_arena_count; ++i) {
    count += heap_arenas[i].mapping != NULL;
  }
  return count;
}

static size_t count_gifts(void) {
  size_t count = 0;
  for (size_t i = HEAP_BREAK_ARENA + 1; i < heap_arena_count; ++i) {
    count += heap_arenas[i].pages.is_kept;
  }
  return count;
}

static bool unmap_reservation(heap_arena_t *arena) {
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

// Returns a multiple of the heap page, at most `room_bytes`, by chance.
static size_t random_shift(size_t room_bytes) {
#if HEAP_HARDENED
  static heap_random_t random;
  if (heap_harden_has(HEAP_HARDEN_RANDOM)) {
    size_t pages =
        (room_bytes < SHIFT_MAX_BYTES ? room_bytes : SHIFT_MAX_BYTES) /
        HEAP_PAGE_BYTES;
    return heap_random_next(&random) % (pages + 1) * HEAP_PAGE_BYTES;
  }
#endif
  (void)room_bytes;
  return 0;
}

heap_arena_t *heap_arena_reserve(size_t size_bytes) {
  heap_arena_t *arena = find_place();
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
  if (HEAP_HARDENED) {
    arena->base += random_shift(arena->reserve_end - arena->base - size_bytes);
  }
  if (!heap_arena_grow(arena, size_bytes >> HEAP_UNIT_SHIFT)) {
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
  const heap_arena_t *low = &heap_arenas[HEAP_BREAK_ARENA];
  if (low->base != 0 && start < (uintptr_t)move_break(0) && low->base < end) {
    return true;
  }
  if (!heap_mapped_walk(is_elsewhere, &range)) {
    return true;
  }
  for (size_t i = 0; i < heap_arena_count; ++i) {
    const heap_arena_t *arena = &heap_arenas[i];
    uintptr_t arena_last =
        arena->mapping != NULL ? arena->reserve_end : heap_arena_end(arena);
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
  heap_arena_t *arena = find_place();
  size_t units = (end - base) >> HEAP_UNIT_SHIFT;
  if (arena == NULL || count_gifts() == GIFT_COUNT_MAX ||
      !reserve_tables(arena, units)) {
    return ENOMEM;
  }
  arena->base = base;
  arena->mapping = NULL;
  arena->pages.is_kept = true;
  append_memory(arena, end - base);
  if (HEAP_HARDENED) {
    // Memory in no block is zero. Marked as used even so.
    memset((void *)base, 0, end - base);
  }
  if (!is_zeroed) {
    heap_purge_note_use(&arena->pages, 0, units / HEAP_PAGE_UNITS);
    heap_purge_note_idle(&arena->pages, 0, units / HEAP_PAGE_UNITS);
  }
  note_place_taken(arena);
  *out_bytes = end - base;
  return 0;
}

void heap_arena_read_source(void) {
  if (source_read) {
    return;
  }
  source_read = true;
  if (heap_option_get(HEAP_OPTION_SOURCE) == HEAP_SOURCE_MMAP) {
    break_unusable = true;
  }
}

size_t heap_arena_lower_break(size_t keep_bytes) {
  heap_arena_t *arena = &heap_arenas[HEAP_BREAK_ARENA];
  heap_run_t last = heap_run_map_last_free(&arena->map);
  size_t free_bytes = (size_t)last.units << HEAP_UNIT_SHIFT;
  if (free_bytes < keep_bytes || free_bytes - keep_bytes < TRIM_MIN_BYTES ||
      break_unusable || (uintptr_t)move_break(0) != heap_arena_end(arena)) {
    return 0;
  }
  size_t release_bytes =
      (free_bytes - keep_bytes) & ~(size_t)(HEAP_PAGE_BYTES - 1);
  uintptr_t new_end = heap_arena_end(arena) - release_bytes;
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
  // The tags behind the end are zero.
  heap_metadata_discard_zeros(
      &arena->map.tags[arena->map.unit_count],
      (arena->map.tag_capacity - arena->map.unit_count) * sizeof(uint32_t));
  return released;
}

void heap_arena_release(heap_arena_t *arena) {
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
