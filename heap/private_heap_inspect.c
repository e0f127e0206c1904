// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The calls of private heaps that are for all of a heap: they look at every
// piece, or every free one, and take their time for it with the lock held. What
// they do is not counted as steps.

#include <string.h>

#include "heap/kernel.h"
#include "heap/piece.h"
#include "heap/private_heap.h"
#include "heap/private_heap_call.h"
#include "heap/segregated.h"

void heap_reset(heap_t *heap) {
  uint64_t steps = heap_private_enter(heap);
  if (heap->segregated != NULL) {
    heap_segregated_reset(heap);
  } else {
    heap_piece_free_all(heap);
  }
  heap->steps = steps;
  heap_private_leave(heap, steps, "reset", __builtin_return_address(0));
}

// Gives back the pages of a free piece that hold nothing.
static size_t trim(const heap_t *heap, uint32_t start, uint32_t length) {
  uintptr_t first = (uintptr_t)heap_private_address(heap, start);
  uintptr_t end = first + ((uintptr_t)length << heap->granule_shift);
  // The kernel would round up to its pages, into the next block.
  first = heap_fit_round_up(first + sizeof(heap_fit_links_t), heap->page_bytes);
  end &= ~(uintptr_t)(heap->page_bytes - 1);
  bool is_trimmed =
      first < end && heap_kernel->discard((void *)first, end - first);
  return is_trimmed ? end - first : 0;
}

static size_t trim_pieces(heap_t *heap) {
  size_t trimmed_bytes = 0;
  bool is_kernels = heap->reservation != NULL && !heap->options.use_file;
  uint32_t start = is_kernels ? heap_fit_next_free(heap, 0) : HEAP_FIT_NONE;
  while (start != HEAP_FIT_NONE) {
    uint32_t length = heap_fit_length(heap, start);
    trimmed_bytes += trim(heap, start, length);
    start = heap_fit_next_free(heap, start + length);
  }
  return trimmed_bytes;
}

size_t heap_trim_in(heap_t *heap) {
  uint64_t steps = heap_private_enter(heap);
  size_t trimmed_bytes =
      heap->segregated != NULL ? heap_segregated_trim(heap) : trim_pieces(heap);
  heap->steps = steps;
  heap_private_leave(heap, steps, "trim", __builtin_return_address(0));
  return trimmed_bytes;
}

static bool walk_pieces(const heap_t *heap, heap_visit_t visit, void *context) {
  bool goes_on = true;
  for (uint32_t start = 0; goes_on && start < heap->count;) {
    uint32_t length = heap_fit_length(heap, start);
    if (!heap_bit_tree_has(&heap->frees, start)) {
      goes_on = visit(context, heap_private_address(heap, start),
                      (size_t)length << heap->granule_shift);
    }
    start += length;
  }
  return goes_on;
}

bool heap_walk_in(heap_t *heap, heap_visit_t visit, void *context) {
  uint64_t steps = heap_private_enter(heap);
  bool is_done = heap->segregated != NULL
                     ? heap_segregated_walk(heap, visit, context)
                     : walk_pieces(heap, visit, context);
  heap->steps = steps;
  heap_private_leave(heap, steps, "walk", __builtin_return_address(0));
  return is_done;
}

const char *heap_check_in(heap_t *heap) {
  uint64_t steps = heap_private_enter(heap);
  const char *broken = heap->segregated != NULL ? heap_segregated_check(heap)
                                                : heap_piece_check(heap);
  heap->steps = steps;
  heap_private_leave(heap, steps, "check", __builtin_return_address(0));
  return broken;
}

static void count_free_pieces(const heap_t *heap, heap_private_stats_t *stats) {
  uint32_t largest = 0;
  uint32_t start = heap_fit_next_free(heap, 0);
  while (start != HEAP_FIT_NONE) {
    uint32_t length = heap_fit_length(heap, start);
    largest = length > largest ? length : largest;
    ++stats->num_free;
    start = heap_fit_next_free(heap, start + length);
  }
  stats->largest_free_bytes = (size_t)largest << heap->granule_shift;
}

void heap_stats_get_in(heap_t *heap, heap_private_stats_t *out_stats) {
  memset(out_stats, 0, sizeof(*out_stats));
  heap_private_enter(heap);
  out_stats->num_steps = heap->steps;
  out_stats->max_steps = heap->max_steps;
  if (heap->segregated != NULL) {
    heap_segregated_count_free(heap, out_stats);
  } else {
    count_free_pieces(heap, out_stats);
  }
  heap->steps = out_stats->num_steps;
  out_stats->mapped_bytes = (size_t)heap->count << heap->granule_shift;
  out_stats->live_bytes = (size_t)heap->live_length << heap->granule_shift;
  out_stats->num_live =
      heap->segregated != NULL
          ? heap->live_count
          : heap_piece_count(heap) - (uint32_t)out_stats->num_free;
  out_stats->free_bytes = out_stats->mapped_bytes - out_stats->live_bytes;
  out_stats->peak_live_bytes = (size_t)heap->peak_length << heap->granule_shift;
  out_stats->metadata_bytes = heap->metadata_bytes;
  heap_private_unlock(heap);
}
