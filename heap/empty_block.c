// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Regions of addresses without memory, one bit a block of 16 bytes for the live
// ones. The search for a free one goes round and round, so an address is used
// again only after all others of its region were.

#include "heap/empty_block.h"

#include "heap/central.h"
#include "heap/harden.h"
#include "heap/kernel.h"
#include "heap/metadata.h"
#include "heap/random.h"

enum {
  UNIT_BYTES = HEAP_MIN_ALIGN_BYTES,
  // Of addresses: the first region's, twice as many each next one's, and no
  // more than this. 64 regions are more than memory has bits for.
  REGION_MIN_BYTES = 1 << 20,
  REGION_MAX_BYTES = 1 << 30,
  REGIONS_MAX = 64,
  WORD_BITS = 64,
};

typedef struct region {
  uintptr_t start;
  size_t units;
  uint64_t *live;  // One bit a unit.
  size_t next;     // The unit that is looked at next.
  size_t count;    // Of live ones.
} region_t;

// Central lock.
static region_t regions[REGIONS_MAX];
static size_t region_count;
static size_t next_region_bytes = REGION_MIN_BYTES;
static heap_random_t random_start;

// With what it takes to begin at a multiple of the greatest alignment.
static void *map_region(size_t size_bytes) {
  heap_central_count_kernel_call();
  return heap_kernel->map(size_bytes + HEAP_EMPTY_MAX_ALIGN_BYTES, true);
}

static bool add_region(void) {
  if (region_count == REGIONS_MAX) {
    return false;
  }
  size_t size_bytes = next_region_bytes;
  void *mapping = map_region(size_bytes);
  if (mapping == NULL && size_bytes > REGION_MIN_BYTES) {
    size_bytes = REGION_MIN_BYTES;
    mapping = map_region(size_bytes);
  }
  if (mapping == NULL) {
    return false;
  }
  size_t units = size_bytes / UNIT_BYTES;
  uint64_t *live = heap_metadata_map(units / 8);
  if (live == NULL) {
    heap_kernel->unmap(mapping, size_bytes + HEAP_EMPTY_MAX_ALIGN_BYTES);
    return false;
  }
  size_t next = 0;
  if (heap_harden_has(HEAP_HARDEN_RANDOM)) {
    next = heap_random_next(&random_start) % units;
  }
  uintptr_t mask = HEAP_EMPTY_MAX_ALIGN_BYTES - 1;
  uintptr_t start = ((uintptr_t)mapping + mask) & ~mask;
  regions[region_count++] =
      (region_t){.start = start, .units = units, .live = live, .next = next};
  if (next_region_bytes < REGION_MAX_BYTES) {
    next_region_bytes *= 2;
  }
  return true;
}

static bool is_live(const region_t *region, size_t unit) {
  return (region->live[unit / WORD_BITS] >> (unit % WORD_BITS) & 1) != 0;
}

static void flip(region_t *region, size_t unit) {
  region->live[unit / WORD_BITS] ^= UINT64_C(1) << (unit % WORD_BITS);
}

// Returns a free unit at a multiple of `step` of them, or all their number.
static size_t find_free(const region_t *region, size_t step) {
  size_t first = (region->next + step - 1) & ~(step - 1);
  for (size_t i = 0; i < region->units; i += step) {
    size_t unit = (first + i) % region->units;
    if (region->live[unit / WORD_BITS] == UINT64_MAX && step == 1 &&
        unit % WORD_BITS == 0) {
      i += WORD_BITS - 1;
      continue;
    }
    if (!is_live(region, unit)) {
      return unit;
    }
  }
  return region->units;
}

void *heap_empty_alloc(size_t align_bytes) {
  size_t step = align_bytes <= UNIT_BYTES ? 1 : align_bytes / UNIT_BYTES;
  for (size_t i = 0; i < region_count || add_region(); ++i) {
    region_t *region = &regions[i];
    if (region->count == region->units) {
      continue;
    }
    size_t unit = find_free(region, step);
    if (unit < region->units) {
      flip(region, unit);
      ++region->count;
      region->next = (unit + 1) % region->units;
      return (void *)(region->start + unit * UNIT_BYTES);
    }
  }
  return NULL;
}

static region_t *region_of(const void *ptr) {
  for (size_t i = 0; i < region_count; ++i) {
    if ((uintptr_t)ptr - regions[i].start < regions[i].units * UNIT_BYTES) {
      return &regions[i];
    }
  }
  return NULL;
}

heap_empty_kind_t heap_empty_find(const void *ptr) {
  const region_t *region = region_of(ptr);
  if (region == NULL) {
    return HEAP_EMPTY_NOT;
  }
  size_t offset = (uintptr_t)ptr - region->start;
  if (!is_live(region, offset / UNIT_BYTES)) {
    return HEAP_EMPTY_FREED;
  }
  return offset % UNIT_BYTES == 0 ? HEAP_EMPTY_LIVE : HEAP_EMPTY_INSIDE;
}

void heap_empty_free(void *ptr) {
  region_t *region = region_of(ptr);
  flip(region, ((uintptr_t)ptr - region->start) / UNIT_BYTES);
  --region->count;
}

bool heap_empty_walk(heap_visit_t visit, void *context) {
  for (size_t i = 0; i < region_count; ++i) {
    const region_t *region = &regions[i];
    for (size_t unit = 0; region->count > 0 && unit < region->units; ++unit) {
      if (is_live(region, unit) &&
          !visit(context, (void *)(region->start + unit * UNIT_BYTES), 0)) {
        return false;
      }
    }
  }
  return true;
}
