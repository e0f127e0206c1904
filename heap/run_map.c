// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Boundary tags (Knuth, The Art of Computer Programming 1, 2.5), moved out of
// the blocks into an array of one 32-bit word a unit:
//
//   unit        u        u+1     u+2    ...   u+n-1 | u+n
//   live run    KIND n   0       0            0     | next run's first tag
//   free run    FREE n   LINK p  LINK q       FOOT n| next run's first tag
//   free, n<4   FREE n   (0)     FOOT n             | in no bin
//
// Invariants, in the order in which heap_run_map_check looks for them:
//  1. The runs' first tags tile [0, unit_count) without gap or overlap.
//  2. Tags inside a run are 0 except a free run's links and foot.
//  3. No two free runs are neighbours.
//  4. A free run of BINNED_MIN_UNITS or more is in the bin of its length, and
//     bins hold nothing else; the bitmap says which bins are not empty.
//  5. free_units is the sum of the free runs.
//
// Free runs are in lists segregated by length, eight to a doubling. A search
// looks at the first CANDIDATES runs of each list from the request's own on,
// and takes the lowest address of the first list that has a fit: close to best
// fit, and packed towards the low end, so that the high end can be returned. A
// search in need looks at all runs of each list.
// Runs too short for links are found again when a neighbour is freed; they are
// shorter than any request (over 8 KiB), so no search misses them.

#include "heap/run_map.h"

#include <assert.h>

#include "heap/fatal.h"

enum {
  BINNED_MIN_UNITS = HEAP_RUN_MIN_UNITS,
  BINNED_MIN_LOG2 = 2,
  TAGS_BEFORE_ZEROS = 3,  // Of a free run: its length and links.
  CANDIDATES = 16,
};

static_assert(HEAP_RUN_LINK < 1 << HEAP_RUN_KIND_BITS, "kinds fit a tag");
static_assert(HEAP_RUN_MAX_UNITS <= UINT32_MAX >> HEAP_RUN_KIND_BITS,
              "lengths fit a tag");

static uint32_t tag_make(heap_run_kind_t kind, uint32_t value) {
  HEAP_ASSERT(value <= HEAP_RUN_MAX_UNITS);
  return value << HEAP_RUN_KIND_BITS | (uint32_t)kind;
}

static heap_run_kind_t tag_kind(uint32_t tag) {
  return heap_run_tag_kind(tag);
}

static uint32_t tag_value(uint32_t tag) {
  return heap_run_tag_value(tag);
}

static size_t bin_of_units(uint32_t units) {
  HEAP_ASSERT(units >= BINNED_MIN_UNITS);
  unsigned log2 = 31 - (unsigned)__builtin_clz(units);
  uint32_t eighth = (uint32_t)(((uint64_t)units << 3) >> log2) & 7;
  return (log2 - BINNED_MIN_LOG2) * 8 + eighth;
}

static void bin_insert(heap_run_map_t *map, uint32_t unit, uint32_t units) {
  size_t bin = bin_of_units(units);
  uint32_t first = map->bins[bin];
  map->tags[unit + 1] = tag_make(HEAP_RUN_LINK, 0);
  map->tags[unit + 2] = tag_make(HEAP_RUN_LINK, first);
  if (first != 0) {
    map->tags[first - 1 + 1] = tag_make(HEAP_RUN_LINK, unit + 1);
  }
  map->bins[bin] = unit + 1;
  map->bin_bitmap[bin / 64] |= UINT64_C(1) << (bin % 64);
}

static void bin_remove(heap_run_map_t *map, uint32_t unit, uint32_t units) {
  size_t bin = bin_of_units(units);
  uint32_t prev = tag_value(map->tags[unit + 1]);
  uint32_t next = tag_value(map->tags[unit + 2]);
  map->tags[unit + 1] = 0;
  map->tags[unit + 2] = 0;
  if (next != 0) {
    map->tags[next - 1 + 1] = tag_make(HEAP_RUN_LINK, prev);
  }
  if (prev != 0) {
    map->tags[prev - 1 + 2] = tag_make(HEAP_RUN_LINK, next);
    return;
  }
  map->bins[bin] = next;
  if (next == 0) {
    map->bin_bitmap[bin / 64] &= ~(UINT64_C(1) << (bin % 64));
  }
}

static void free_run_add(heap_run_map_t *map, uint32_t unit, uint32_t units) {
  map->free_units += units;
  map->tags[unit] = tag_make(HEAP_RUN_FREE, units);
  if (units > 1) {
    map->tags[unit + units - 1] = tag_make(HEAP_RUN_FOOT, units);
  }
  if (units >= BINNED_MIN_UNITS) {
    bin_insert(map, unit, units);
  }
}

static void free_run_remove(heap_run_map_t *map, uint32_t unit,
                            uint32_t units) {
  HEAP_ASSERT(map->tags[unit] == tag_make(HEAP_RUN_FREE, units));
  map->free_units -= units;
  if (units >= BINNED_MIN_UNITS) {
    bin_remove(map, unit, units);
  }
  map->tags[unit + units - 1] = 0;
  map->tags[unit] = 0;
}

// Returns the free run that ends before `unit`, of length 0 if there is none.
static heap_run_t free_run_before(const heap_run_map_t *map, uint32_t unit) {
  heap_run_t run = {.kind = HEAP_RUN_FREE, .start = unit, .units = 0};
  if (unit > 0) {
    uint32_t tag = map->tags[unit - 1];
    bool is_foot = tag_kind(tag) == HEAP_RUN_FOOT;
    if (is_foot || tag == tag_make(HEAP_RUN_FREE, 1)) {
      run.units = tag_value(tag);
      run.start = unit - run.units;
    }
  }
  return run;
}

static uint32_t free_units_at(const heap_run_map_t *map, uint32_t unit) {
  if (unit >= map->unit_count || tag_kind(map->tags[unit]) != HEAP_RUN_FREE) {
    return 0;
  }
  return tag_value(map->tags[unit]);
}

// Returns how many units of the free run at `unit` come before the first one
// that is aligned, or HEAP_RUN_NONE when `units` of them do not fit behind.
static uint32_t fit(const heap_run_map_t *map, uint32_t unit, uint32_t units,
                    uint64_t bias, uint64_t align) {
  uint32_t available = tag_value(map->tags[unit]);
  uint64_t skip = (0 - (bias + unit)) & (align - 1);
  return skip + units <= available ? (uint32_t)skip : HEAP_RUN_NONE;
}

// Returns the lowest fitting run among the first of one bin.
static uint32_t bin_search(heap_run_map_t *map, size_t bin, uint32_t units,
                           uint64_t bias, uint64_t align, uint32_t candidates) {
  uint32_t best = HEAP_RUN_NONE;
  uint32_t link = map->bins[bin];
  for (uint32_t i = 0; i < candidates && link != 0; ++i) {
    uint32_t unit = link - 1;
    ++map->looked_at;
    if (unit < best && fit(map, unit, units, bias, align) != HEAP_RUN_NONE) {
      best = unit;
    }
    link = tag_value(map->tags[unit + 2]);
  }
  return best;
}

static uint32_t search(heap_run_map_t *map, uint32_t units, uint64_t bias,
                       uint64_t align, uint32_t candidates) {
  size_t first = bin_of_units(units);
  uint64_t above = ~UINT64_C(0) << (first % 64);
  for (size_t word = first / 64; word < sizeof(map->bin_bitmap) / 8; ++word) {
    uint64_t bits = map->bin_bitmap[word] & above;
    above = ~UINT64_C(0);
    while (bits != 0) {
      size_t bin = word * 64 + (size_t)__builtin_ctzll(bits);
      bits &= bits - 1;
      uint32_t unit = bin_search(map, bin, units, bias, align, candidates);
      if (unit != HEAP_RUN_NONE) {
        return unit;
      }
    }
  }
  return HEAP_RUN_NONE;
}

static uint32_t alloc(heap_run_map_t *map, uint32_t units, uint64_t bias,
                      uint64_t align, heap_run_kind_t kind,
                      uint32_t candidates) {
  if (units < BINNED_MIN_UNITS) {
    units = BINNED_MIN_UNITS;
  }
  uint32_t unit = search(map, units, bias, align, candidates);
  if (unit == HEAP_RUN_NONE) {
    return HEAP_RUN_NONE;
  }
  uint32_t available = tag_value(map->tags[unit]);
  uint32_t skip = fit(map, unit, units, bias, align);
  free_run_remove(map, unit, available);
  if (skip > 0) {
    free_run_add(map, unit, skip);
  }
  if (skip + units < available) {
    free_run_add(map, unit + skip + units, available - skip - units);
  }
  map->tags[unit + skip] = tag_make(kind, units);
  return unit + skip;
}

uint32_t heap_run_map_alloc(heap_run_map_t *map, uint32_t units, uint64_t bias,
                            uint64_t align, heap_run_kind_t kind) {
  return alloc(map, units, bias, align, kind, CANDIDATES);
}

uint32_t heap_run_map_alloc_in_need(heap_run_map_t *map, uint32_t units,
                                    uint64_t bias, uint64_t align,
                                    heap_run_kind_t kind) {
  return alloc(map, units, bias, align, kind, UINT32_MAX);
}

heap_run_t heap_run_map_free(heap_run_map_t *map, uint32_t unit) {
  uint32_t units = tag_value(map->tags[unit]);
  map->tags[unit] = 0;
  uint32_t behind = free_units_at(map, unit + units);
  if (behind > 0) {
    free_run_remove(map, unit + units, behind);
  }
  heap_run_t before = free_run_before(map, unit);
  if (before.units > 0) {
    free_run_remove(map, before.start, before.units);
  }
  heap_run_t joined = {.kind = HEAP_RUN_FREE,
                       .start = before.start,
                       .units = before.units + units + behind};
  free_run_add(map, joined.start, joined.units);
  return joined;
}

bool heap_run_map_resize(heap_run_map_t *map, uint32_t unit, uint32_t units) {
  HEAP_ASSERT(tag_kind(map->tags[unit]) == HEAP_RUN_BLOCK);
  if (units < BINNED_MIN_UNITS) {
    units = BINNED_MIN_UNITS;
  }
  uint32_t old_units = tag_value(map->tags[unit]);
  uint32_t behind = free_units_at(map, unit + old_units);
  uint64_t available = (uint64_t)old_units + behind;
  if (units > available) {
    return false;
  }
  if (units == old_units) {
    return true;
  }
  if (behind > 0) {
    free_run_remove(map, unit + old_units, behind);
  }
  map->tags[unit] = tag_make(HEAP_RUN_BLOCK, units);
  if (units < available) {
    free_run_add(map, unit + units, (uint32_t)(available - units));
  }
  return true;
}

void heap_run_map_append(heap_run_map_t *map, uint32_t units,
                         heap_run_kind_t kind) {
  HEAP_ASSERT(map->tag_capacity - map->unit_count >= units);
  uint32_t unit = map->unit_count;
  map->unit_count += units;
  map->tags[unit] = tag_make(kind, units);
  if (kind == HEAP_RUN_FREE) {
    heap_run_map_free(map, unit);
  }
}

void heap_run_map_truncate(heap_run_map_t *map, uint32_t units) {
  heap_run_t last = heap_run_map_last_free(map);
  HEAP_ASSERT(units <= last.units);
  free_run_remove(map, last.start, last.units);
  map->unit_count -= units;
  if (units < last.units) {
    free_run_add(map, last.start, last.units - units);
  }
}

void heap_run_map_visit_long(const heap_run_map_t *map, uint32_t min_units,
                             heap_run_visit_t visit, void *context) {
  // Bins whose runs are all that long.
  for (size_t bin = bin_of_units(min_units - 1) + 1; bin < HEAP_RUN_BIN_COUNT;
       ++bin) {
    for (uint32_t link = map->bins[bin]; link != 0;
         link = tag_value(map->tags[link - 1 + 2])) {
      visit(context, heap_run_map_find(map, link - 1));
    }
  }
}

uint32_t heap_run_map_zeros(heap_run_t run, uint32_t *out_first) {
  HEAP_ASSERT(run.kind == HEAP_RUN_FREE);
  *out_first = run.start + TAGS_BEFORE_ZEROS;
  // But the foot.
  return run.units > TAGS_BEFORE_ZEROS + 1 ? run.units - TAGS_BEFORE_ZEROS - 1
                                           : 0;
}

heap_run_t heap_run_map_last_free(const heap_run_map_t *map) {
  return free_run_before(map, map->unit_count);
}

// Invariant 2, and 4 as far as one run can tell.
static const char *check_inside(const heap_run_map_t *map, heap_run_t run) {
  bool is_free = run.kind == HEAP_RUN_FREE;
  bool is_binned = is_free && run.units >= BINNED_MIN_UNITS;
  for (uint32_t i = 1; i < run.units; ++i) {
    heap_run_kind_t want = HEAP_RUN_NOTHING;
    if (is_binned && i <= 2) {
      want = HEAP_RUN_LINK;
    } else if (is_free && i == run.units - 1) {
      want = HEAP_RUN_FOOT;
    }
    uint32_t tag = map->tags[run.start + i];
    if (tag_kind(tag) != want || (want == HEAP_RUN_NOTHING && tag != 0)) {
      return "run map: wrong tag inside a run";
    }
  }
  if (is_free && run.units > 1 &&
      tag_value(map->tags[run.start + run.units - 1]) != run.units) {
    return "run map: foot and head of a free run differ";
  }
  return NULL;
}

// Tells whether `link` names a run that belongs in `bin`.
static bool is_link_into(const heap_run_map_t *map, uint32_t link, size_t bin) {
  if (link > map->unit_count ||
      tag_kind(map->tags[link - 1]) != HEAP_RUN_FREE) {
    return false;
  }
  uint32_t units = tag_value(map->tags[link - 1]);
  return units >= BINNED_MIN_UNITS && bin_of_units(units) == bin;
}

// Returns the number of binned runs, or UINT64_MAX when a bin is broken. The
// runs tile the arena and have the right tags inside.
static uint64_t check_bins(const heap_run_map_t *map) {
  uint64_t count = 0;
  for (size_t bin = 0; bin < HEAP_RUN_BIN_COUNT; ++bin) {
    bool marked = (map->bin_bitmap[bin / 64] >> (bin % 64) & 1) != 0;
    if (marked != (map->bins[bin] != 0)) {
      return UINT64_MAX;
    }
    uint32_t prev = 0;
    for (uint32_t link = map->bins[bin]; link != 0; ++count) {
      if (!is_link_into(map, link, bin) || count > map->unit_count ||
          tag_value(map->tags[link - 1 + 1]) != prev) {
        return UINT64_MAX;
      }
      prev = link;
      link = tag_value(map->tags[link - 1 + 2]);
    }
  }
  return count;
}

const char *heap_run_map_check(const heap_run_map_t *map) {
  uint64_t binned = 0;
  uint64_t free_units = 0;
  bool previous_free = false;
  for (uint32_t unit = 0; unit < map->unit_count;) {
    heap_run_t run = {.kind = tag_kind(map->tags[unit]),
                      .start = unit,
                      .units = tag_value(map->tags[unit])};
    bool is_first = run.kind >= HEAP_RUN_BLOCK && run.kind <= HEAP_RUN_FREE;
    if (!is_first || run.units == 0 || run.units > map->unit_count - unit) {
      return "run map: runs do not tile the arena";
    }
    const char *broken = check_inside(map, run);
    if (broken != NULL) {
      return broken;
    }
    bool is_free = run.kind == HEAP_RUN_FREE;
    if (is_free && previous_free) {
      return "run map: two free runs side by side";
    }
    previous_free = is_free;
    free_units += is_free ? run.units : 0;
    binned += is_free && run.units >= BINNED_MIN_UNITS;
    unit += run.units;
  }
  if (check_bins(map) != binned) {
    return "run map: bins and free runs differ";
  }
  return free_units == map->free_units ? NULL : "run map: wrong free_units";
}
