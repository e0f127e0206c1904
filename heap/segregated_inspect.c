// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What lies in a segregated heap, block by block, and whether it is whole.

#include "heap/segregated.h"

static heap_page_t *page_at(const heap_segregated_t *own, heap_run_t run) {
  return &own->pages[run.start >> (own->page_shift - own->unit_shift)];
}

static uintptr_t address_of(const heap_t *heap, uint32_t unit) {
  return heap->base + ((uintptr_t)unit << heap->segregated->unit_shift);
}

static size_t bytes_of(const heap_segregated_t *own, heap_run_t run) {
  return (size_t)run.units << own->unit_shift;
}

static bool walk_span(const heap_page_t *page, heap_visit_t visit,
                      void *context) {
  const heap_class_info_t *info = heap_span_info(page);
  for (uint32_t i = 0; i < info->block_count; ++i) {
    void *ptr = (void *)(page->start + (uintptr_t)i * info->size_bytes);
    if (page->states[i] == HEAP_BLOCK_LIVE &&
        !visit(context, ptr, info->size_bytes)) {
      return false;
    }
  }
  return true;
}

bool heap_segregated_walk(heap_t *heap, heap_visit_t visit, void *context) {
  const heap_segregated_t *own = heap->segregated;
  bool goes_on = true;
  for (uint32_t unit = 0; goes_on && unit < own->map.unit_count;) {
    heap_run_t run = heap_run_map_find(&own->map, unit);
    if (run.kind == HEAP_RUN_SPAN) {
      goes_on = walk_span(page_at(own, run), visit, context);
    } else if (run.kind == HEAP_RUN_BLOCK) {
      goes_on = visit(context, (void *)address_of(heap, run.start),
                      bytes_of(own, run));
    }
    unit += run.units;
  }
  return goes_on;
}

heap_misuse_t heap_segregated_diagnose(heap_t *heap, uintptr_t address,
                                       uintptr_t *out_block,
                                       size_t *out_block_bytes) {
  const heap_segregated_t *own = heap->segregated;
  uintptr_t offset = address - heap->base;
  if (offset >> HEAP_SEGREGATED_GRANULE_SHIFT >= heap->count) {
    return HEAP_MISUSE_FOREIGN;
  }
  const heap_page_t *page = &own->pages[offset >> own->page_shift];
  if (page->kind == HEAP_PAGE_SPAN) {
    const heap_class_info_t *info = heap_span_info(page);
    size_t index;
    if (!heap_span_block_at(page, address, &index)) {
      return HEAP_MISUSE_FOREIGN;
    }
    *out_block = page->start + index * info->size_bytes;
    *out_block_bytes = info->size_bytes;
    return page->states[index] == HEAP_BLOCK_LIVE ? HEAP_MISUSE_INTERIOR
                                                  : HEAP_MISUSE_FREED;
  }
  heap_run_t run =
      heap_run_map_find(&own->map, (uint32_t)(offset >> own->unit_shift));
  if (run.kind != HEAP_RUN_BLOCK) {
    return HEAP_MISUSE_FREED;
  }
  *out_block = address_of(heap, run.start);
  *out_block_bytes = bytes_of(own, run);
  return HEAP_MISUSE_INTERIOR;
}

static void count_free_in_span(const heap_page_t *page,
                               heap_private_stats_t *stats) {
  const heap_class_info_t *info = heap_span_info(page);
  for (uint32_t i = 0; i < info->block_count; ++i) {
    bool is_free = page->states[i] != HEAP_BLOCK_LIVE;
    stats->num_free += is_free;
    if (is_free && info->size_bytes > stats->largest_free_bytes) {
      stats->largest_free_bytes = info->size_bytes;
    }
  }
}

void heap_segregated_count_free(heap_t *heap, heap_private_stats_t *stats) {
  const heap_segregated_t *own = heap->segregated;
  for (uint32_t unit = 0; unit < own->map.unit_count;) {
    heap_run_t run = heap_run_map_find(&own->map, unit);
    if (run.kind == HEAP_RUN_SPAN) {
      count_free_in_span(page_at(own, run), stats);
    } else if (run.kind == HEAP_RUN_FREE) {
      ++stats->num_free;
      if (bytes_of(own, run) > stats->largest_free_bytes) {
        stats->largest_free_bytes = bytes_of(own, run);
      }
    }
    unit += run.units;
  }
}

// Tells whether the span's own count of its blocks that are not free is right;
// `busy` are live or cached.
static bool is_count_right(const heap_segregated_t *own,
                           const heap_page_t *page, uint32_t busy) {
  if (page->list == HEAP_SPAN_FULL) {
    return busy == heap_span_info(page)->block_count;
  }
  if (page->list == HEAP_SPAN_CURRENT) {
    uint64_t reserved = own->bins[page->size_class].mask;
    busy += (uint32_t)__builtin_popcountll(reserved);
  }
  return busy == page->frees_to_go;
}

// A checker of spans for heap_class_spans_check().
static const char *check_span(const void *owner, const heap_page_t *page,
                              uint32_t *out_busy) {
  const heap_t *heap = owner;
  const heap_segregated_t *own = heap->segregated;
  uintptr_t offset = page->start - heap->base;
  if (offset >> HEAP_SEGREGATED_GRANULE_SHIFT >= heap->count ||
      &own->pages[offset >> own->page_shift] != page) {
    return "private heap: a span that is not where its descriptor says";
  }
  heap_run_t run =
      heap_run_map_find(&own->map, (uint32_t)(offset >> own->unit_shift));
  const heap_class_info_t *info = heap_span_info(page);
  if (run.kind != HEAP_RUN_SPAN || address_of(heap, run.start) != page->start ||
      bytes_of(own, run) != heap_span_bytes(page)) {
    return "private heap: a span that is no run";
  }
  for (unsigned i = 0; i < info->page_count; ++i) {
    const heap_page_t *other = page + i;
    if (other->kind != HEAP_PAGE_SPAN || other->start != page->start ||
        other->states != page->states || other->index != i ||
        other->size_class != page->size_class || other->shape != own->shape ||
        other->reciprocal != info->reciprocal ||
        other->bin_offset != page->size_class * HEAP_BIN_BYTES) {
      return "private heap: pages of a span that differ";
    }
  }
  const char *broken = heap_span_state_check(page, out_busy);
  if (broken == NULL && !is_count_right(own, page, *out_busy)) {
    broken = "private heap: a span that does not know what is free in it";
  }
  return broken;
}

static const heap_page_t *find_span(const void *owner, uintptr_t address) {
  const heap_t *heap = owner;
  uintptr_t offset = address - heap->base;
  if (offset >> HEAP_SEGREGATED_GRANULE_SHIFT >= heap->count) {
    return NULL;
  }
  const heap_page_t *page =
      &heap->segregated->pages[offset >> heap->segregated->page_shift];
  return page->kind == HEAP_PAGE_SPAN ? page : NULL;
}

// What runs and descriptors say there is.
typedef struct found {
  size_t span_runs;
  size_t span_pages;  // Of these.
  size_t pages;       // With a descriptor that says something.
  uint32_t live_count;
  uint32_t live_length;
} found_t;

static bool add_live(void *context, void *ptr, size_t usable_bytes) {
  (void)ptr;
  found_t *found = context;
  ++found->live_count;
  found->live_length +=
      (uint32_t)(usable_bytes >> HEAP_SEGREGATED_GRANULE_SHIFT);
  return true;
}

static found_t find_all(heap_t *heap) {
  const heap_segregated_t *own = heap->segregated;
  found_t found = {0};
  for (uint32_t unit = 0; unit < own->map.unit_count;) {
    heap_run_t run = heap_run_map_find(&own->map, unit);
    if (run.kind == HEAP_RUN_SPAN) {
      ++found.span_runs;
      found.span_pages += bytes_of(own, run) >> own->page_shift;
    }
    unit += run.units;
  }
  size_t page_bytes = (size_t)1 << own->page_shift;
  size_t memory_bytes = (size_t)heap->count << HEAP_SEGREGATED_GRANULE_SHIFT;
  size_t page_count = (memory_bytes + page_bytes - 1) >> own->page_shift;
  for (size_t i = 0; i < page_count; ++i) {
    const heap_page_t *page = &own->pages[i];
    found.pages += page->kind != HEAP_PAGE_NONE || page->reciprocal != 0;
  }
  heap_segregated_walk(heap, add_live, &found);
  return found;
}

const char *heap_segregated_check(heap_t *heap) {
  const heap_segregated_t *own = heap->segregated;
  heap_bin_census_t census = {0};
  const char *broken = heap_run_map_check(&own->map);
  for (size_t i = 0; i < own->class_count && broken == NULL; ++i) {
    broken = heap_class_spans_check(&own->spans[i], &own->bins[i], i, heap,
                                    check_span, find_span, &census);
  }
  if (broken != NULL) {
    return broken;
  }
  found_t found = find_all(heap);
  if ((size_t)own->map.unit_count << own->unit_shift !=
      (size_t)heap->count << HEAP_SEGREGATED_GRANULE_SHIFT) {
    return "private heap: memory without runs";
  }
  if (found.span_runs != census.num_spans || found.pages != found.span_pages) {
    return "private heap: a span on no list, or on two";
  }
  if (census.num_cached != census.num_slots) {
    return "private heap: a cached block in no slot, or in two";
  }
  return found.live_count == heap->live_count &&
                 found.live_length == heap->live_length
             ? NULL
             : "private heap: live blocks are not counted right";
}
