// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Private heaps with the engine of the default heap: small blocks in bins and
// spans (bin.h), large ones as runs of units (run_map.h), their states out of
// line. The plain calls of small blocks are inline.
//
// All functions: the heap's lock held.

#ifndef MY_ALLOC_HEAP_SEGREGATED_H_
#define MY_ALLOC_HEAP_SEGREGATED_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/bin.h"
#include "heap/fit.h"
#include "heap/piece.h"
#include "heap/run_map.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  // Sizes and lengths of a segregated heap are in quanta, as those of other
  // strategies are in granules.
  HEAP_SEGREGATED_GRANULE_SHIFT = 4,
  HEAP_SEGREGATED_SPAN_MIN_BYTES = HEAP_PAGE_BYTES >> (HEAP_SHAPE_COUNT - 1),
  HEAP_SEGREGATED_AREAS = 4,
};

typedef struct heap_segregated {
  uint32_t shape;       // Of all spans (size_class.h).
  uint32_t page_shift;  // A page of the heap's is 2^page_shift bytes,
  uint32_t unit_shift;  // a unit of runs 2^unit_shift.
  uint32_t class_count;
  size_t small_max_bytes;
  size_t table_max_bytes;  // Of these, whose class is looked up.
  // Tables; how long they are for how much memory is in segregated.c.
  heap_bin_t *bins;
  heap_class_spans_t *spans;
  heap_page_t *pages;
  uint8_t *states[HEAP_SEGREGATED_AREAS];  // NULL: of no use in this shape.
  heap_run_map_t map;
  // Units from here on were never handed out. In the kernel's memory they are
  // zero.
  uint32_t fresh_unit;
  bool is_kernels;
} heap_segregated_t;

// A live block.
typedef struct heap_segregated_block {
  size_t size_bytes;  // Usable; 0: there is none.
  heap_page_t *page;  // NULL: a run.
  uint8_t *state;     // Of a small one.
} heap_segregated_block_t;

// Returns the length of pages for a heap of so much memory.
size_t heap_segregated_span_bytes(size_t size_bytes);

// Returns the unit of runs beside such pages.
size_t heap_segregated_unit_bytes_of(size_t span_bytes);

// Returns the bytes of `heap_t` and all tables for `capacity` granules in spans
// of `span_bytes`; tables that grow start at multiples of `align_bytes`.
// `out_fixed_bytes`, unless NULL, is the part that does not grow.
size_t heap_segregated_tables_bytes(size_t span_bytes, uint32_t capacity,
                                    size_t align_bytes,
                                    size_t *out_fixed_bytes);

// Starts a heap without memory; of the zeroed tables only the fixed part may be
// usable yet.
void heap_segregated_init(heap_t *heap, size_t span_bytes, size_t align_bytes,
                          bool is_zeroed);

// Makes the tables for `count` granules usable, in the kernel's memory.
bool heap_segregated_cover(heap_t *heap, uint32_t count);

// `length` more granules follow the last one; they are free.
void heap_segregated_append(heap_t *heap, uint32_t length);

// Returns a live block, or NULL. `is_growing`: it will have what a smaller
// block has. `out_zeroed` tells whether all of it is zero.
void *heap_segregated_take(heap_t *heap, size_t align_bytes, size_t size_bytes,
                           bool is_growing, bool *out_zeroed);

// Finds the run that starts at `ptr`, a live block.
heap_segregated_block_t heap_segregated_locate_run(heap_t *heap,
                                                   const void *ptr);

// Frees a live block.
void heap_segregated_give(heap_t *heap, void *ptr,
                          const heap_segregated_block_t *block);

// Changes the length of a live block where it is; false when it cannot or,
// unless `in_need`, had better move.
bool heap_segregated_resize(heap_t *heap, void *ptr,
                            const heap_segregated_block_t *block,
                            size_t size_bytes, bool in_need);

// Frees all blocks.
void heap_segregated_reset(heap_t *heap);

// Gives spans without live blocks back to the runs, and the kernel's pages that
// nothing lives in to the kernel. Returns how many bytes of the latter.
size_t heap_segregated_trim(heap_t *heap);

// segregated_inspect.c.

// Visits every live block, lowest address first; false when `visit` was.
bool heap_segregated_walk(heap_t *heap, heap_visit_t visit, void *context);

// Tells what an address is that no live block starts at.
heap_misuse_t heap_segregated_diagnose(heap_t *heap, uintptr_t address,
                                       uintptr_t *out_block,
                                       size_t *out_block_bytes);

// Counts what is free.
void heap_segregated_count_free(heap_t *heap, heap_private_stats_t *stats);

// Returns the first broken invariant's name, or NULL.
const char *heap_segregated_check(heap_t *heap);

// Returns the size of a unit.
static inline size_t heap_segregated_unit_bytes(const heap_segregated_t *own) {
  return (size_t)1 << own->unit_shift;
}

static inline heap_bin_t *heap_segregated_bin(const heap_segregated_t *own,
                                              size_t offset) {
  return (heap_bin_t *)(void *)((unsigned char *)own->bins + offset);
}

// Both plain calls take one step, no more than the call before that made the
// span.

// Returns a small block of no special alignment that a bin has, or NULL.
HEAP_FAST_PATH void *heap_segregated_take_plain(heap_t *heap,
                                                size_t size_bytes) {
  const heap_segregated_t *own = heap->segregated;
  if (size_bytes > own->table_max_bytes) {
    return NULL;
  }
  heap_bin_t *bin =
      heap_segregated_bin(own, heap_bin_offset_lookup(size_bytes));
  void *ptr = heap_bin_pop(bin);
  if (ptr == NULL && bin->mask != 0) {
    bool fresh;
    ptr = heap_bin_take(bin, &fresh);
  }
  if (ptr != NULL) {
    ++heap->steps;
    ++heap->live_count;
    heap_piece_note_live(heap,
                         bin->block_bytes >> HEAP_SEGREGATED_GRANULE_SHIFT);
  }
  return ptr;
}

// Returns the live block that starts at `ptr`. Inline, or compilers put the
// result together in memory.
HEAP_FAST_PATH heap_segregated_block_t heap_segregated_locate(heap_t *heap,
                                                              const void *ptr) {
  const heap_segregated_t *own = heap->segregated;
  uintptr_t offset = (uintptr_t)ptr - heap->base;
  if (offset >> HEAP_SEGREGATED_GRANULE_SHIFT >= heap->count) {
    return (heap_segregated_block_t){0, NULL, NULL};
  }
  heap_page_t *page = &own->pages[offset >> own->page_shift];
  uint8_t *state;
  if (__builtin_expect(heap_small_block_state(page, ptr, &state), 1)) {
    size_t size_bytes = heap_segregated_bin(own, page->bin_offset)->block_bytes;
    return (heap_segregated_block_t){*state == HEAP_BLOCK_LIVE ? size_bytes : 0,
                                     page, state};
  }
  return heap_segregated_locate_run(heap, ptr);
}

// Frees a live small block whose bin has room; false: not done.
HEAP_FAST_PATH bool heap_segregated_give_plain(
    heap_t *heap, void *ptr, const heap_segregated_block_t *block) {
  heap_bin_t *bin =
      heap_segregated_bin(heap->segregated, block->page->bin_offset);
  if (bin->top == bin->limit) {
    return false;
  }
  --heap->live_count;
  heap->live_length -=
      (uint32_t)(block->size_bytes >> HEAP_SEGREGATED_GRANULE_SHIFT);
  ++heap->steps;
  return heap_bin_put(bin, ptr, block->state);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_SEGREGATED_H_
