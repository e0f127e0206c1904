// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The range: the addresses in which all objects of a cache lie, one stride from
// each other, so that a free needs no search.
//
//   map
//   | states | directory |    | slab | slab | slab |  not yet  ...          |
//   |  read, then write  |    ^ start, at 2 MiB    ^ next_bytes
//                             | color | object 0 | object 1 | ...
//                                     ^ base
//
// Addresses cost nothing but page tables: they are reserved when the cache is
// created, some GiB, and become memory slab by slab. Object i is at base + i *
// stride and its state at states + i, wherever slabs begin and end; an object
// that would lie in two of them is none. All states can be read from the
// beginning, and those of objects that do not exist are 0, UNUSED: whatever
// pointer comes, the fast path reads no state that is not there.
//
// A slab whose memory goes back keeps its addresses and its slab_t. The lowest
// such one is taken again before the range is used further. A reap forgets
// those that are above all others.
//
// Invariants:
// 1. The directory has, for each granule, the slab whose memory it is part of.
//    Slabs do not overlap, and end at or before next_bytes.
// 2. States that belong to no slab with objects are UNUSED.
// 3. num_retired slabs are retired, and none of them starts below hint_bytes.
//
// The address space is for all caches, and for the rest of the program: each
// range is 1/512 of what is left of 32 TiB, so that the first is of 64 GiB and
// the thousandth of 9. If there is a limit to the address space (RLIMIT_AS), it
// is 1/8 of what is left of a quarter of that; and if the kernel refuses it,
// 1/16 of the most that it grants. What does not fit a range is
// outside of it (table.c), which costs a call for each alloc and free.

#include "slab/slab_internal.h"

#include <assert.h>
#include <string.h>
#include <sys/resource.h>

enum {
  PAGE_BYTES = 4096,
  HUGE_BYTES = 1 << 21,
  LINE_BYTES = 64,
  // Less than this is not worth it.
  RANGE_BYTES_MIN = 1 << 20,
  OBJECTS_MIN = 16,
  // Objects start so much later at most, which differs from cache to cache.
  COLOR_BYTES_MAX = SLAB_GRANULE_BYTES / 64,
};

// Of all ranges together.
#ifdef __SANITIZE_THREAD__
#define ALL_BYTES_MAX ((size_t)64 << 30)  // It has less than 2 TiB for all.
#else
#define ALL_BYTES_MAX ((size_t)32 << 40)
#endif

static_assert(SLAB_STATE_UNUSED == 0, "what the kernel maps is of no object");

// Addresses in all ranges. Atomic, relaxed.
static size_t all_bytes;
// ---- create ----

// Returns how long the next range may be.
static size_t share_of_addresses(void) {
  size_t most = ALL_BYTES_MAX;
  size_t share = 512;
  struct rlimit limit;
  if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      limit.rlim_cur / 4 < most) {
    most = limit.rlim_cur / 4;
    share = 8;
  }
  size_t used = __atomic_load_n(&all_bytes, __ATOMIC_RELAXED);
  return used < most ? (most - used) / share : 0;
}

// Returns how long a range `max_objects` need at most: what lies before and
// behind the objects of a slab is less than two more.
static size_t bytes_for_limit(const slab_cache_t *cache) {
  size_t bytes;
  if (__builtin_mul_overflow(cache->max_objects, cache->stride_bytes, &bytes) ||
      __builtin_mul_overflow(bytes, (size_t)2, &bytes) ||
      __builtin_add_overflow(bytes, (size_t)16 * SLAB_BYTES_MAX, &bytes)) {
    return SIZE_MAX;
  }
  return bytes;
}

// Where the parts of a map are.
typedef struct layout {
  size_t length_bytes;
  size_t states_bytes;
  size_t directory_bytes;
  size_t map_bytes;
} layout_t;

static layout_t layout_of(const slab_cache_t *cache, size_t length_bytes) {
  layout_t layout = {.length_bytes = length_bytes};
  // A page more, of which its color takes a part.
  layout.states_bytes =
      slab_round_up(length_bytes / cache->stride_bytes + 1, PAGE_BYTES) +
      PAGE_BYTES;
  layout.directory_bytes = slab_round_up(
      length_bytes / SLAB_GRANULE_BYTES * sizeof(slab_t *), PAGE_BYTES);
  layout.map_bytes =
      layout.states_bytes + layout.directory_bytes + HUGE_BYTES + length_bytes;
  return layout;
}

// Reserves a map for `length_bytes`. NULL: that is too little, or refused.
static unsigned char *reserve_map(const slab_cache_t *cache,
                                  size_t length_bytes, layout_t *out_layout) {
  size_t least = OBJECTS_MIN * cache->stride_bytes;
  least = least < RANGE_BYTES_MIN ? RANGE_BYTES_MIN : least;
  length_bytes &= ~(size_t)(SLAB_GRANULE_BYTES - 1);
  *out_layout = layout_of(cache, length_bytes);
  return length_bytes < least ? NULL
                              : slab_kernel->reserve(out_layout->map_bytes);
}

// The same, or less if so much is refused: then a sixteenth of what is not,
// since others need addresses as well.
static unsigned char *reserve_some(const slab_cache_t *cache,
                                   size_t length_bytes, layout_t *out_layout) {
  unsigned char *map = reserve_map(cache, length_bytes, out_layout);
  if (map != NULL) {
    return map;
  }
  while (map == NULL && length_bytes >= RANGE_BYTES_MIN) {
    length_bytes /= 2;
    map = reserve_map(cache, length_bytes, out_layout);
  }
  if (map != NULL) {
    slab_kernel->unmap(map, out_layout->map_bytes);
    map = reserve_map(cache, length_bytes / 16, out_layout);
  }
  return map;
}

// If the first lines of all caches' objects and states were at the start of a
// page, they would compete for few sets of the processor's cache, and loads of
// the one would wait for stores to the other.
static size_t color_bytes(const slab_cache_t *cache, size_t number) {
  size_t step =
      cache->align_bytes > LINE_BYTES ? cache->align_bytes : LINE_BYTES;
  return step > COLOR_BYTES_MAX ? 0 : number % (COLOR_BYTES_MAX / step) * step;
}

void slab_range_create(slab_cache_t *cache, size_t number) {
  size_t length_bytes = share_of_addresses();
  size_t wanted_bytes = bytes_for_limit(cache);
  layout_t layout;
  unsigned char *map = reserve_some(
      cache, wanted_bytes < length_bytes ? wanted_bytes : length_bytes,
      &layout);
  if (map == NULL) {
    return;
  }
  if (!slab_kernel->allow_reads(map,
                                layout.states_bytes + layout.directory_bytes)) {
    slab_kernel->unmap(map, layout.map_bytes);
    return;
  }
  __atomic_fetch_add(&all_bytes, layout.map_bytes, __ATOMIC_RELAXED);
  uintptr_t start = (uintptr_t)map + layout.states_bytes +
                    layout.directory_bytes + HUGE_BYTES - 1;
  start &= ~(uintptr_t)(HUGE_BYTES - 1);
  cache->range = (slab_range_t){
      .map = map,
      .map_bytes = layout.map_bytes,
      .directory = (slab_t **)(void *)(map + layout.states_bytes),
      .start = (unsigned char *)start,
      .length_bytes = layout.length_bytes,
  };
  size_t color = color_bytes(cache, number);
  cache->fast.base = start + color;
  cache->fast.limit_bytes = layout.length_bytes - color;
  cache->fast.states = map + number % (PAGE_BYTES / LINE_BYTES) * LINE_BYTES;
}

void slab_range_destroy(slab_cache_t *cache) {
  slab_range_t *range = &cache->range;
  if (range->map == NULL) {
    return;
  }
  for (size_t at = 0; at < range->next_bytes;) {
    slab_t *slab = range->directory[at / SLAB_GRANULE_BYTES];
    at += slab == NULL ? SLAB_GRANULE_BYTES : slab->memory_bytes;
    slab_metadata_free(cache, slab, sizeof(*slab));
  }
  slab_kernel->unmap(range->map, range->map_bytes);
  __atomic_fetch_sub(&all_bytes, range->map_bytes, __ATOMIC_RELAXED);
}

// ---- taking ----

static size_t offset_of(const slab_range_t *range, const slab_t *slab) {
  return (size_t)(slab_memory_of(slab) - range->start);
}

// Makes the first `needed_bytes` of a part of the map writable, of which
// `*allowed_bytes` are. False: no memory.
static bool allow(slab_cache_t *cache, void *part, size_t *allowed_bytes,
                  size_t needed_bytes) {
  needed_bytes = slab_round_up(needed_bytes, PAGE_BYTES);
  if (needed_bytes <= *allowed_bytes) {
    return true;
  }
  size_t more_bytes = needed_bytes - *allowed_bytes;
  if (!slab_kernel->allow_writes((unsigned char *)part + *allowed_bytes,
                                 more_bytes)) {
    return false;
  }
  *allowed_bytes = needed_bytes;
  __atomic_fetch_add(&cache->metadata_bytes, more_bytes, __ATOMIC_RELAXED);
  return true;
}

// Makes the slab's memory and states writable. False: no memory.
static bool allow_slab(slab_cache_t *cache, slab_t *slab) {
  slab_range_t *range = &cache->range;
  size_t end = (size_t)(slab->states - range->map) + slab_room(cache, slab);
  if (!slab->is_writable) {
    slab->is_writable =
        allow(cache, range->map, &range->states_bytes, end) &&
        slab_kernel->allow_writes(slab_memory_of(slab), slab->memory_bytes);
  }
  return slab->is_writable;
}

// Returns the lowest slab that is retired; there is one.
static slab_t *lowest_retired(slab_range_t *range) {
  for (;;) {
    slab_t *slab = range->directory[range->hint_bytes / SLAB_GRANULE_BYTES];
    if (slab != NULL && slab->list == SLAB_LIST_RETIRED) {
      return slab;
    }
    range->hint_bytes += slab == NULL ? SLAB_GRANULE_BYTES : slab->memory_bytes;
  }
}

// Fills in what never changes of a slab at `offset_bytes`.
static void place(slab_cache_t *cache, slab_t *slab, size_t offset_bytes,
                  size_t bytes) {
  slab_range_t *range = &cache->range;
  unsigned char *base = (unsigned char *)cache->fast.base;
  unsigned char *memory = range->start + offset_bytes;
  size_t first = 0;
  if (memory > base) {
    first = ((size_t)(memory - base) + cache->stride_bytes - 1) /
            cache->stride_bytes;
  }
  slab->base = base + first * cache->stride_bytes;
  slab->states = cache->fast.states + first;
  slab->memory_bytes = bytes;
  slab->offset_bytes = (uint32_t)(slab->base - memory);
  for (size_t at = 0; at < bytes; at += SLAB_GRANULE_BYTES) {
    __atomic_store_n(
        &range->directory[(offset_bytes + at) / SLAB_GRANULE_BYTES], slab,
        __ATOMIC_RELEASE);
  }
}

// Uses the range further. NULL: it is full, or there is no memory.
static slab_t *extend(slab_cache_t *cache, size_t bytes, bool is_huge) {
  slab_range_t *range = &cache->range;
  size_t offset_bytes = slab_round_up(
      range->next_bytes, is_huge ? HUGE_BYTES : SLAB_GRANULE_BYTES);
  if (offset_bytes >= range->length_bytes ||
      bytes > range->length_bytes - offset_bytes) {
    return NULL;
  }
  size_t end = offset_bytes + bytes;
  if (!allow(cache, range->directory, &range->directory_bytes,
             end / SLAB_GRANULE_BYTES * sizeof(slab_t *))) {
    return NULL;
  }
  slab_t *slab = slab_metadata_alloc(cache, sizeof(*slab));
  if (slab == NULL) {
    return NULL;
  }
  place(cache, slab, offset_bytes, bytes);
  range->next_bytes = end;
  if (is_huge) {
    slab_kernel->advise_huge(slab_memory_of(slab), bytes);
  }
  return slab;
}

static void count_retired(slab_range_t *range, slab_t *slab) {
  size_t offset_bytes = offset_of(range, slab);
  slab->list = SLAB_LIST_RETIRED;
  ++range->num_retired;
  if (offset_bytes < range->hint_bytes) {
    range->hint_bytes = offset_bytes;
  }
}

slab_t *slab_range_take(slab_cache_t *cache, size_t bytes, bool is_huge) {
  slab_range_t *range = &cache->range;
  slab_t *slab;
  if (range->num_retired != 0) {
    slab = lowest_retired(range);
    --range->num_retired;
  } else {
    slab = extend(cache, bytes, is_huge);
  }
  if (slab == NULL) {
    return NULL;
  }
  slab->list = SLAB_LIST_NONE;
  if (!allow_slab(cache, slab)) {
    count_retired(range, slab);
    return NULL;
  }
  return slab;
}

// ---- giving back ----

static bool is_zero(const unsigned char *bytes, size_t count) {
  for (size_t i = 0; i < count; i += sizeof(uint64_t)) {
    if (__atomic_load_n((const uint64_t *)(const void *)(bytes + i),
                        __ATOMIC_RELAXED) != 0) {
      return false;
    }
  }
  return true;
}

// Makes the states UNUSED and gives their pages back. The first and the last
// one may have states of other slabs: only under the lock they cease to be
// zero.
static void discard_states(slab_t *slab) {
  memset(slab->states, SLAB_STATE_UNUSED, slab->num_used);
  uintptr_t first = (uintptr_t)slab->states & ~(uintptr_t)(PAGE_BYTES - 1);
  uintptr_t end = (uintptr_t)slab->states + slab->num_used;
  uintptr_t last = slab_round_up(end, PAGE_BYTES) - PAGE_BYTES;
  if (slab->num_used == 0) {
    return;
  }
  if (last != first && !is_zero((const unsigned char *)last, PAGE_BYTES)) {
    last -= PAGE_BYTES;
  }
  if (!is_zero((const unsigned char *)first, PAGE_BYTES)) {
    first += PAGE_BYTES;
  }
  if (first <= last) {
    slab_kernel->discard((void *)first, last + PAGE_BYTES - first);
  }
}

void slab_range_retire(slab_cache_t *cache, slab_t *slab) {
  discard_states(slab);
  slab->num_used = 0;
  count_retired(&cache->range, slab);
}

void slab_range_trim(slab_cache_t *cache) {
  slab_range_t *range = &cache->range;
  while (range->next_bytes != 0) {
    size_t last = range->next_bytes / SLAB_GRANULE_BYTES - 1;
    slab_t *slab = range->directory[last];
    if (slab != NULL && slab->list != SLAB_LIST_RETIRED) {
      break;
    }
    if (slab == NULL) {
      range->next_bytes -= SLAB_GRANULE_BYTES;
      continue;
    }
    range->next_bytes = offset_of(range, slab);
    --range->num_retired;
    for (size_t i = range->next_bytes / SLAB_GRANULE_BYTES; i <= last; ++i) {
      __atomic_store_n(&range->directory[i], NULL, __ATOMIC_RELAXED);
    }
    slab_metadata_free(cache, slab, sizeof(*slab));
  }
  size_t used_bytes = slab_round_up(
      range->next_bytes / SLAB_GRANULE_BYTES * sizeof(slab_t *), PAGE_BYTES);
  if (used_bytes < range->directory_bytes) {
    slab_kernel->discard((unsigned char *)range->directory + used_bytes,
                         range->directory_bytes - used_bytes);
  }
}

void slab_range_retire_lost(slab_cache_t *cache) {
  slab_range_t *range = &cache->range;
  for (size_t at = 0; at < range->next_bytes;) {
    slab_t *slab = range->directory[at / SLAB_GRANULE_BYTES];
    at += slab == NULL ? SLAB_GRANULE_BYTES : slab->memory_bytes;
    if (slab != NULL && slab->list == SLAB_LIST_NONE &&
        !slab_is_retiring(slab)) {
      slab_range_retire(cache, slab);
    }
  }
}

// ---- looking ----

slab_t *slab_range_find(const slab_cache_t *cache, uintptr_t address) {
  const slab_range_t *range = &cache->range;
  uintptr_t offset = address - (uintptr_t)range->start;
  if (offset >= range->length_bytes) {
    return NULL;
  }
  // Acquire: with the release in `place`.
  return __atomic_load_n(&range->directory[offset / SLAB_GRANULE_BYTES],
                         __ATOMIC_ACQUIRE);
}

// Cache's lock held.
static const char *check_slab(const slab_cache_t *cache, const slab_t *slab,
                              size_t at) {
  const slab_range_t *range = &cache->range;
  size_t index =
      ((uintptr_t)slab->base - cache->fast.base) / cache->stride_bytes;
  if (offset_of(range, slab) != at ||
      slab->memory_bytes > range->next_bytes - at) {
    return "range: a slab is not where the directory has it";
  }
  if ((uintptr_t)slab->base != cache->fast.base + index * cache->stride_bytes ||
      slab->states != cache->fast.states + index) {
    return "range: objects of a slab are not where they should be";
  }
  for (size_t i = slab->num_used; i < slab_room(cache, slab); ++i) {
    if (slab_state_load(&slab->states[i]) != SLAB_STATE_UNUSED) {
      return "range: a state of no object";
    }
  }
  return NULL;
}

const char *slab_range_check(const slab_cache_t *cache) {
  const slab_range_t *range = &cache->range;
  size_t num_retired = 0;
  for (size_t at = 0; at < range->next_bytes;) {
    const slab_t *slab = range->directory[at / SLAB_GRANULE_BYTES];
    if (slab == NULL) {
      at += SLAB_GRANULE_BYTES;
      continue;
    }
    const char *broken = check_slab(cache, slab, at);
    if (broken != NULL) {
      return broken;
    }
    if (slab->list == SLAB_LIST_RETIRED) {
      ++num_retired;
      if (at < range->hint_bytes) {
        return "range: a retired slab below the hint";
      }
    }
    at += slab->memory_bytes;
  }
  return num_retired == range->num_retired ? NULL
                                           : "range: number of retired slabs";
}
