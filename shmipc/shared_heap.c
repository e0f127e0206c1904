// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// All blocks of a heap, page by page.
//
// Reclaiming frees what dead processes own, each block by one step that is
// whole: a small one by a compare-and-swap of its word from the dead owner's
// value; a large one is taken over first (its word names us), then freed. So a
// reclaimer may be killed anywhere; what it had taken over is then a dead
// process's again.
//
// The words that are changed must still be words: while a reclaimer is at it,
// said in the heap's head, no page of blocks becomes free, and so none becomes
// one of another class (block_cache.c). A dead reclaimer does not count.
//
// A root's block is named before it is made the region's, so it may still be a
// dead process's: those are made the region's first, under the mutex of roots.

#include "shmipc/shared_heap.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "shmipc/block_internal.h"

// Calls `visit` for the word of each block of a page, or of the run that starts
// there, live or not. A negative result ends it.
typedef int word_fn_t(void *context, const shmipc_place_t *place,
                      uint32_t index);

static int visit_page(shmipc_region_t *region, uint32_t page, word_fn_t *visit,
                      void *context) {
  shmipc_place_t place = {
      // Sequentially consistent: see shmipc_is_reclaiming.
      .head = __atomic_load_n(shmipc_head_of(region, page), __ATOMIC_SEQ_CST),
      .page = page,
      .class_index = SHMIPC_CLASSES,
      .word = shmipc_table_words_of(region, page),
  };
  uint32_t kind = shmipc_kind_of(place.head);
  if (kind == SHMIPC_PAGE_LARGE) {
    return visit(context, &place, 0);
  }
  if (!shmipc_is_class(kind)) {
    return 0;
  }
  place.class_index = kind - 1;
  uint32_t *words = shmipc_words_of(region, page, kind - 1);
  int status = 0;
  for (uint32_t i = 0; i < shmipc_classes[kind - 1].count && status >= 0; i++) {
    place.word = &words[i];
    status = visit(context, &place, i);
  }
  return status;
}

static int visit_all(shmipc_region_t *region, word_fn_t *visit, void *context) {
  shmipc_pages_refresh(region);
  uint32_t mapped = shmipc_pages_mapped(region);
  int status = 0;
  for (uint32_t page = 0; page < mapped && status >= 0; page++) {
    status = visit_page(region, page, visit, context);
  }
  return status < 0 ? status : 0;
}

typedef struct walker {
  shmipc_region_t *region;
  shmipc_block_fn_t *visit;
  void *context;
  shmipc_census_t *census;
} walker_t;

static int walk_word(void *context, const shmipc_place_t *place,
                     uint32_t index) {
  const walker_t *walker = context;
  uint32_t word = shmipc_word_load(place->word);
  uint64_t head = shmipc_head_load(walker->region, place->page);
  // The page may have become another kind, and the word something else.
  if (word == SHMIPC_BLOCK_FREE ||
      shmipc_kind_of(head) != shmipc_kind_of(place->head)) {
    return 0;
  }
  uint64_t position =
      place->class_index < SHMIPC_CLASSES
          ? (uint64_t)index * shmipc_classes[place->class_index].size_bytes
          : 0;
  shmipc_block_info_t info = {
      .ref.offset = walker->region->pages_offset +
                    ((uint64_t)place->page << SHMIPC_PAGE_SHIFT) + position,
      .usable_bytes = shmipc_place_bytes(walker->region, place),
      .state = (word & SHMIPC_BLOCK_FLIGHT) != 0 ? SHMIPC_BLOCK_IN_FLIGHT
                                                 : SHMIPC_BLOCK_OWNED,
      .slot = SHMIPC_BLOCK_SLOT(word),
  };
  if (word == SHMIPC_BLOCK_REGION) {
    info.state = SHMIPC_BLOCK_SHARED;
    info.slot = UINT32_MAX;
  } else {
    info.is_dead = !shmipc_block_is_alive(walker->region, walker->census, word);
  }
  return walker->visit(walker->context, &info);
}

int shmipc_heap_walk(shmipc_region_t *region, shmipc_block_fn_t *visit,
                     void *context) {
  int status = shmipc_heap_status(region, false);
  if (status < 0) {
    return status;
  }
  walker_t walker = {.region = region, .visit = visit, .context = context};
  walker.census = malloc(sizeof(*walker.census));
  if (walker.census == NULL) {
    return -ENOMEM;
  }
  shmipc_census_begin(walker.census);
  status = visit_all(region, walk_word, &walker);
  free(walker.census);
  return status;
}

static int count_block(void *context, const shmipc_block_info_t *block) {
  shmipc_heap_stats_t *stats = context;
  stats->num_live++;
  stats->live_bytes += block->usable_bytes;
  stats->num_shared += block->state == SHMIPC_BLOCK_SHARED;
  stats->num_in_flight += block->state == SHMIPC_BLOCK_IN_FLIGHT;
  stats->num_dead += block->is_dead;
  return 0;
}

static int count_free(void *context, const shmipc_place_t *place,
                      uint32_t index) {
  shmipc_heap_stats_t *stats = context;
  (void)index;
  if (place->class_index < SHMIPC_CLASSES &&
      shmipc_word_load(place->word) == SHMIPC_BLOCK_FREE) {
    stats->free_bytes += shmipc_classes[place->class_index].size_bytes;
  }
  return 0;
}

int shmipc_heap_stats_get(shmipc_region_t *region,
                          shmipc_heap_stats_t *out_stats) {
  shmipc_heap_stats_t stats = {.num_live = 0};
  int status = shmipc_heap_walk(region, count_block, &stats);
  if (status == 0) {
    status = visit_all(region, count_free, &stats);
  }
  if (status < 0) {
    return status;
  }
  uint32_t mapped = shmipc_pages_mapped(region);
  for (uint32_t page = 0; page < mapped; page++) {
    if (shmipc_head_load(region, page) == SHMIPC_PAGE_FREE) {
      stats.free_page_bytes += SHMIPC_PAGE_BYTES;
    }
  }
  stats.heap_bytes = (size_t)mapped << SHMIPC_PAGE_SHIFT;
  stats.capacity_bytes = (size_t)region->heap_pages << SHMIPC_PAGE_SHIFT;
  *out_stats = stats;
  return 0;
}

typedef struct reclaimer {
  shmipc_region_t *region;
  shmipc_self_t *self;
  shmipc_census_t *census;
  bool in_flight;
  int num_freed;
} reclaimer_t;

static int reclaim_word(void *context, const shmipc_place_t *place,
                        uint32_t index) {
  reclaimer_t *reclaimer = context;
  uint32_t word = shmipc_word_load(place->word);
  uint32_t owner = reclaimer->self->cache->owner;
  (void)index;
  if (word == SHMIPC_BLOCK_FREE || word == SHMIPC_BLOCK_REGION ||
      ((word & SHMIPC_BLOCK_FLIGHT) != 0 && !reclaimer->in_flight) ||
      shmipc_block_is_alive(reclaimer->region, reclaimer->census, word)) {
    return 0;
  }
  if (place->class_index == SHMIPC_CLASSES) {
    if (!shmipc_word_change(place->word, word, owner)) {
      return 0;
    }
    word = owner;
  }
  reclaimer->num_freed +=
      shmipc_place_free(reclaimer->region, reclaimer->self, place, word) == 0;
  return 0;
}

int shmipc_heap_reclaim(shmipc_region_t *region, unsigned int flags) {
  int status = shmipc_heap_status(region, true);
  reclaimer_t reclaimer = {
      .region = region,
      .in_flight = (flags & SHMIPC_RECLAIM_IN_FLIGHT) != 0,
  };
  if (status == 0) {
    status = shmipc_cache_of(region, &reclaimer.self);
  }
  if (status == 0) {
    status = shmipc_roots_lock(region);
  }
  if (status < 0) {
    return status;
  }
  reclaimer.census = malloc(sizeof(*reclaimer.census));
  if (reclaimer.census == NULL) {
    shmipc_roots_unlock(region);
    return -ENOMEM;
  }
  shmipc_census_begin(reclaimer.census);
  uint64_t *word = &shmipc_heap_head_of(region)->reclaimer;
  // Sequentially consistent: see shmipc_is_reclaiming.
  __atomic_store_n(word, reclaimer.self->page_id, __ATOMIC_SEQ_CST);
  // With one census: whoever is dead for the one is so for the other.
  shmipc_roots_redo(region, reclaimer.census);
  (void)visit_all(region, reclaim_word, &reclaimer);
  __atomic_store_n(word, 0, __ATOMIC_RELEASE);
  shmipc_roots_unlock(region);
  free(reclaimer.census);
  return reclaimer.num_freed;
}

int shmipc_heap_trim(shmipc_region_t *region) {
  shmipc_self_t *self;
  int status = shmipc_heap_status(region, true);
  if (status == 0) {
    status = shmipc_cache_of(region, &self);
  }
  if (status < 0) {
    return status;
  }
  return (int)(shmipc_cache_trim_dead(region, self) +
               shmipc_cache_trim(region, self));
}
