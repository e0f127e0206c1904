// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Pages of the heap: who has which, and runs of them.
//
//   FREE ──► PREPARING t ──► class t                   a page of blocks
//                                  ──► FREEING t ──► FREE
//        ──► PREPARING t, MORE... ──► LARGE, MORE...   a run: one large block
//                 LARGE, MORE... ──► FREEING t, MORE... ──► FREE
//
// t is the thread that is at it. There is no list and no count to keep in step:
// the heads are all there is.
//
// 1. A head that names a thread is changed by that thread, or when it is dead
//    by a compare-and-swap from its very value, which never comes back. So of
//    any number that find a dead thread's page, one gets it. LARGE names
//    nobody, but has a tag that no other run has: whoever found a block and
//    frees it late does not free the next one that is there.
// 2. A run is claimed upwards, page by page from its first, and freed
//    downwards, the first page last. So at every instruction what there is of
//    it is its first page and the MORE behind it; whoever takes over the first
//    page of a dead thread frees these, and may die at it in turn.
// 3. How long a run is, the heads say. A process that dies while it lengthens
//    or shortens one leaves it too long; the pages go when the block does.
//
// Claiming needs no lock, so nobody waits for one that was stopped. Two that
// claim runs at the same time could take pages from each other and both find
// nothing: so they exclude each other when that can be had within a
// millisecond. Whoever could not have it does not wait the next few times.

#include <assert.h>
#include <pthread.h>

#include "shmipc/block_internal.h"

#define RUNS_WAIT_NS ((int64_t)1000000)
// Claims without waiting after one that waited for nothing.
#define RUNS_IMPATIENT 64u
// The least that a region grows by.
#define GROW_PAGES 16u

_Static_assert(sizeof(shmipc_root_t) == 128, "two cache lines");
_Static_assert(sizeof(shmipc_page_note_t) == 8, "counted in tables_bytes");
_Static_assert(SHMIPC_ROOT_NAME_MAX < sizeof(((shmipc_root_t *)0)->name),
               "NUL");
_Static_assert(SHMIPC_THREADS_MAX < 0xffff, "record + 1 is in 16 bits");
_Static_assert(SHMIPC_PROCESSES_MAX < SHMIPC_BLOCK_REGION - 1, "in 11 bits");
_Static_assert(SHMIPC_CLASSES < SHMIPC_PAGE_PREPARING, "kinds");
_Static_assert(offsetof(shmipc_heap_head_t, reclaimer) == 192, "as drawn");
_Static_assert(offsetof(shmipc_heap_head_t, shortages) == 200, "as drawn");

void shmipc_pages_refresh(shmipc_region_t *region) {
  pthread_mutex_lock(&region->lock);
  (void)shmipc_region_refresh(region);
  pthread_mutex_unlock(&region->lock);
}

// Pages that are missing for a run of `count`, when those that are free at the
// end are the first of it. 1 or more.
static uint32_t count_missing(const shmipc_region_t *region, uint32_t count) {
  uint32_t page = shmipc_pages_mapped(region);
  while (page > 0 && count > 1 &&
         shmipc_head_load(region, page - 1) == SHMIPC_PAGE_FREE) {
    page--;
    count--;
  }
  return count;
}

bool shmipc_pages_grow(shmipc_region_t *region, uint32_t count) {
  uint32_t before = shmipc_pages_mapped(region);
  shmipc_pages_refresh(region);
  if (shmipc_pages_mapped(region) > before) {
    // Somebody else did it; look whether that is enough, and come back.
    return true;
  }
  uint32_t most = region->heap_pages - before;
  uint32_t missing = count_missing(region, count);
  if (most < missing) {
    return false;
  }
  uint32_t more = missing > GROW_PAGES ? missing : GROW_PAGES;
  more = more > before / 8 ? more : before / 8;
  more = more < most ? more : most;
  uint64_t start = region->pages_offset - region->data_offset +
                   ((uint64_t)before << SHMIPC_PAGE_SHIFT);
  int status = shmipc_region_grow(
      region, (size_t)(start + ((uint64_t)more << SHMIPC_PAGE_SHIFT)));
  // No space, RLIMIT_FSIZE, no memory: there may be some for less.
  if ((status == -ENOSPC || status == -EFBIG || status == -ENOMEM) &&
      more > missing) {
    status = shmipc_region_grow(
        region, (size_t)(start + ((uint64_t)missing << SHMIPC_PAGE_SHIFT)));
  }
  return shmipc_pages_mapped(region) > before;
}

// The search for a page begins at the lowest that was freed.
static void lower_first_free(const shmipc_region_t *region, uint32_t page) {
  uint32_t *hint = &shmipc_heap_head_of(region)->first_free;
  // Relaxed: a hint; the search goes round.
  if (__atomic_load_n(hint, __ATOMIC_RELAXED) > page) {
    __atomic_store_n(hint, page, __ATOMIC_RELAXED);
  }
}

void shmipc_page_release(shmipc_region_t *region, uint32_t page) {
  shmipc_head_store(region, page, SHMIPC_PAGE_FREE);
  lower_first_free(region, page);
}

uint32_t shmipc_run_extent(const shmipc_region_t *region, uint32_t first) {
  uint32_t end = first + 1;
  while (end < region->heap_pages &&
         shmipc_head_load(region, end) == SHMIPC_PAGE_MORE) {
    end++;
  }
  return end - first;
}

void shmipc_run_shorten(shmipc_region_t *region, uint32_t first,
                        uint32_t count) {
  assert(count >= 1);
  uint32_t page = first + shmipc_run_extent(region, first);
  while (page-- > first + count) {
    shmipc_head_store(region, page, SHMIPC_PAGE_FREE);
  }
  lower_first_free(region, first + count);
}

uint32_t shmipc_run_release(shmipc_region_t *region, uint32_t first) {
  // Nobody's from here on, for whoever looked it up before and takes it late.
  __atomic_store_n(shmipc_table_words_of(region, first), SHMIPC_BLOCK_FREE,
                   __ATOMIC_RELAXED);
  uint32_t extent = shmipc_run_extent(region, first);
  shmipc_run_shorten(region, first, 1);
  shmipc_page_release(region, first);
  return extent;
}

bool shmipc_run_extend(shmipc_region_t *region, uint32_t first, uint32_t extent,
                       uint32_t count) {
  uint32_t start = first + extent;
  uint32_t mapped = shmipc_pages_mapped(region);
  if (start > mapped || mapped - start < count) {
    return false;
  }
  for (uint32_t i = 0; i < count; i++) {
    if (!shmipc_head_change(region, start + i, SHMIPC_PAGE_FREE,
                            SHMIPC_PAGE_MORE)) {
      while (i-- > 0) {
        shmipc_head_store(region, start + i, SHMIPC_PAGE_FREE);
      }
      return false;
    }
  }
  return true;
}

bool shmipc_is_reclaiming(const shmipc_region_t *region) {
  const shmipc_heap_head_t *heap = shmipc_heap_head_of(region);
  // Behind the store of the head; the reclaimer stores this and looks at heads.
  // All four are sequentially consistent, so one of them sees the other.
  uint64_t reclaimer = __atomic_load_n(&heap->reclaimer, __ATOMIC_SEQ_CST);
  // It has the mutex from before until after.
  if (reclaimer == 0 || shmipc_roots_owner(region) !=
                            SHMIPC_WORD_OF(SHMIPC_PAGE_INDEX(reclaimer),
                                           SHMIPC_PAGE_GENERATION(reclaimer))) {
    return false;
  }
  shmipc_census_t census;
  shmipc_census_begin(&census);
  return shmipc_head_is_alive(region, &census, reclaimer);
}

uint32_t shmipc_run_take_over(shmipc_region_t *region,
                              const shmipc_self_t *self, uint32_t first,
                              uint64_t head) {
  // It may be a page of blocks that its thread was giving back (block_cache.c).
  if (shmipc_is_reclaiming(region) ||
      !shmipc_head_change(region, first, head,
                          SHMIPC_PAGE_FREEING | self->page_id)) {
    return 0;
  }
  return shmipc_run_release(region, first);
}

// Free pages from `start` on; at most `count`.
static uint32_t count_free(const shmipc_region_t *region, uint32_t start,
                           uint32_t count) {
  uint32_t i = 0;
  while (i < count && shmipc_head_load(region, start + i) == SHMIPC_PAGE_FREE) {
    i++;
  }
  return i;
}

static uint32_t claim(shmipc_region_t *region, const shmipc_self_t *self,
                      uint32_t count) {
  uint32_t mapped = shmipc_pages_mapped(region);
  uint32_t first = 0;
  while (first < mapped && mapped - first >= count) {
    uint32_t num_free = count_free(region, first, count);
    if (num_free < count) {
      first += num_free + 1;
      continue;
    }
    if (shmipc_head_change(region, first, SHMIPC_PAGE_FREE,
                           SHMIPC_PAGE_PREPARING | self->page_id)) {
      if (shmipc_run_extend(region, first, 1, count - 1)) {
        return first;
      }
      shmipc_page_release(region, first);
    }
    // Somebody took one of them just now. Always on, so that it ends.
    first++;
  }
  return SHMIPC_NO_PAGE;
}

uint32_t shmipc_run_claim(shmipc_region_t *region, const shmipc_self_t *self,
                          uint32_t count) {
  assert(count >= 1);
  shmipc_mutex_t *mutex = &shmipc_heap_head_of(region)->runs_mutex;
  uint32_t *impatient = &self->cache->impatient;
  int status =
      shmipc_mutex_lock(region, mutex, *impatient == 0 ? RUNS_WAIT_NS : 0);
  if (status != -ETIMEDOUT) {
    *impatient = 0;
  } else {
    *impatient = *impatient == 0 ? RUNS_IMPATIENT : *impatient - 1;
  }
  if (status == -EOWNERDEAD) {
    // It guards nothing that could be broken.
    shmipc_mutex_consistent(region, mutex);
  }
  uint32_t first = claim(region, self, count);
  if (status == 0 || status == -EOWNERDEAD) {
    shmipc_mutex_unlock(region, mutex);
  }
  return first;
}
