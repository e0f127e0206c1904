// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What can be said of the heap as a whole: the walk, the statistics, the check.
// All of it follows from the tables; on the way of an allocation nothing is
// counted but those that found nothing cached.

#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "heap/arena.h"
#include "heap/central.h"
#include "heap/fatal.h"
#include "heap/harden.h"
#include "heap/heap.h"
#include "heap/mapped.h"
#include "heap/metadata.h"
#include "heap/page_table.h"
#include "heap/purge.h"
#include "heap/size_class.h"
#include "heap/span.h"
#include "heap/thread_heap.h"

#if HEAP_HARDENED
#include "heap/canary.h"
#include "heap/empty_block.h"
#include "heap/guard.h"
#endif

static_assert(HEAP_STATS_CLASS_COUNT == HEAP_CLASS_COUNT,
              "the public array has one element a class");

typedef struct walk {
  heap_visit_t visit;
  void *context;
} walk_t;

static uint8_t block_state(const heap_page_t *page, uint32_t index) {
  // Relaxed: of a block that changes meanwhile, either answer is right.
  return __atomic_load_n(&page->states[index], __ATOMIC_RELAXED);
}

#if HEAP_HARDENED
// What a run says of a block: its bytes between the guards, if it is live.
static bool is_live_run(heap_arena_place_t *place) {
  bool is_live = !heap_run_quarantine_has(place->start);
  place->start += HEAP_GUARD_BYTES;
  place->size_bytes = heap_guarded_bytes(place->size_bytes);
  return is_live;
}

static bool walk_empty(heap_visit_t visit, void *context) {
  return heap_empty_walk(visit, context);
}

// As heap_usable_size says.
static size_t usable_bytes_of(const void *ptr, size_t space_bytes) {
  size_t size_bytes;
  if (!heap_harden_has(HEAP_HARDEN_CANARY)) {
    return space_bytes;
  }
  // Not whole: it was overwritten, or its thread is about to set it.
  return heap_canary_check(ptr, space_bytes, &size_bytes)
             ? size_bytes
             : space_bytes - HEAP_CANARY_BYTES;
}
#else
static bool is_live_run(const heap_arena_place_t *place) {
  (void)place;
  return true;
}

static bool walk_empty(heap_visit_t visit, void *context) {
  (void)visit;
  (void)context;
  return true;
}

static size_t usable_bytes_of(const void *ptr, size_t space_bytes) {
  (void)ptr;
  return space_bytes;
}
#endif

static bool visit_block(const walk_t *walk, void *ptr, size_t space_bytes) {
  return walk->visit(walk->context, ptr, usable_bytes_of(ptr, space_bytes));
}

static bool visit_mapped(void *context, void *ptr, size_t space_bytes) {
  return visit_block(context, ptr, space_bytes);
}

static bool visit_run(void *context, heap_arena_place_t place) {
  const walk_t *walk = context;
  if (place.kind == HEAP_RUN_BLOCK) {
    return !is_live_run(&place) ||
           visit_block(walk, (void *)place.start, place.size_bytes);
  }
  const heap_page_t *page = heap_page_of(place.start);
  const heap_class_info_t *info = &heap_class_info[page->size_class];
  for (uint32_t i = 0; i < info->block_count; ++i) {
    void *ptr = (void *)(page->start + (uintptr_t)i * info->size_bytes);
    if (block_state(page, i) == HEAP_BLOCK_LIVE &&
        !visit_block(walk, ptr, info->size_bytes)) {
      return false;
    }
  }
  return true;
}

bool heap_walk(heap_visit_t visit, void *context) {
  walk_t walk = {.visit = visit, .context = context};
  heap_central_lock();
  bool done = heap_arena_walk(visit_run, &walk) &&
              heap_mapped_walk(visit_mapped, &walk) &&
              walk_empty(visit, context);
  heap_central_unlock();
  return done;
}

static void add_block(heap_stats_t *stats, size_t usable_bytes) {
  ++stats->num_live;
  stats->live_bytes += usable_bytes;
}

static bool add_mapped(void *context, void *ptr, size_t usable_bytes) {
  (void)ptr;
  heap_stats_t *stats = context;
  ++stats->num_huge;
  add_block(stats, usable_bytes);
  return true;
}

static bool add_empty(void *context, void *ptr, size_t usable_bytes) {
  (void)ptr;
  add_block(context, usable_bytes);
  return true;
}

static bool add_run(void *context, heap_arena_place_t place) {
  heap_stats_t *stats = context;
  if (place.kind == HEAP_RUN_BLOCK) {
    if (is_live_run(&place)) {
      add_block(stats, place.size_bytes);
    }
    return true;
  }
  const heap_page_t *page = heap_page_of(place.start);
  const heap_class_info_t *info = &heap_class_info[page->size_class];
  size_t num_live = 0;
  for (uint32_t i = 0; i < info->block_count; ++i) {
    num_live += block_state(page, i) == HEAP_BLOCK_LIVE;
  }
  heap_class_stats_t *size_class = &stats->classes[page->size_class];
  ++size_class->num_spans;
  size_class->num_live += num_live;
  size_class->num_free += info->block_count - num_live;
  stats->num_live += num_live;
  stats->live_bytes += num_live * info->size_bytes;
  stats->span_free_bytes += (info->block_count - num_live) * info->size_bytes;
  return true;
}

void heap_stats_get(heap_stats_t *out_stats) {
  memset(out_stats, 0, sizeof(*out_stats));
  for (size_t i = 0; i < HEAP_CLASS_COUNT; ++i) {
    out_stats->classes[i].block_bytes = heap_class_info[i].size_bytes;
  }
  heap_central_lock();
  heap_arena_walk(add_run, out_stats);
  heap_mapped_walk(add_mapped, out_stats);
  walk_empty(add_empty, out_stats);
  heap_arena_totals_t totals = heap_arena_sum();
  out_stats->huge_bytes = heap_mapped_total_bytes();
  out_stats->mapped_bytes = totals.mapped_bytes + out_stats->huge_bytes;
  out_stats->dirty_bytes = totals.dirty_bytes + out_stats->huge_bytes;
  out_stats->free_run_bytes = totals.free_bytes;
  out_stats->largest_free_run_bytes = totals.largest_free_bytes;
  out_stats->idle_bytes = heap_purge_idle_pages() * HEAP_PAGE_BYTES;
  out_stats->metadata_bytes = heap_metadata_bytes();
  out_stats->num_spans = heap_span_count();
  heap_refill_totals_t refills = heap_thread_refill_totals();
  out_stats->num_refills = refills.count;
  out_stats->sampled_request_bytes = refills.request_bytes;
  out_stats->sampled_block_bytes = refills.block_bytes;
  out_stats->num_kernel_calls = heap_central_kernel_calls();
  heap_central_unlock();
  out_stats->num_misuses = heap_misuse_count();
}

const char *heap_check(void) {
  heap_central_lock();
  const char *broken = heap_arena_check();
  if (broken == NULL) {
    broken = heap_mapped_check();
  }
  if (broken == NULL) {
    broken = heap_thread_check_all();
  }
  heap_central_unlock();
  return broken;
}
