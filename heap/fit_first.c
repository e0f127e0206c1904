// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// First fit and next fit (Knuth, The Art of Computer Programming 1, 2.5) keep
// no list: the free pieces are read off the bitmap, lowest address first. Each
// search looks at every free piece in its way.

#include "heap/fit.h"

static void reset(heap_t *heap) {
  heap->rover = 0;
}

static bool insert(heap_t *heap, uint32_t start, uint32_t length) {
  (void)heap;
  (void)start;
  (void)length;
  return true;
}

// Returns the first piece that starts in [from, end) and fits.
static uint32_t search(heap_t *heap, uint32_t from, uint32_t end,
                       uint32_t length, size_t align_bytes,
                       uint32_t *out_piece_length) {
  uint32_t start = heap_bit_tree_next(&heap->frees, from);
  if (start < end && !heap_bit_tree_has(&heap->starts, start)) {
    // The last granule of a piece that starts before.
    start = heap_bit_tree_next(&heap->frees, start + 1);
  }
  while (start < end) {  // HEAP_BIT_NONE is not.
    heap->steps += 2;
    uint32_t piece_length = heap_fit_length(heap, start);
    uint32_t piece_end = start + piece_length;
    if (heap_fit_align(heap, start, align_bytes) + length <= piece_end) {
      *out_piece_length = piece_length;
      return start;
    }
    start = heap_bit_tree_next(&heap->frees, piece_end);
  }
  return HEAP_FIT_NONE;
}

static uint32_t find_first(heap_t *heap, uint32_t length, size_t align_bytes,
                           uint32_t *out_piece_length) {
  return search(heap, 0, heap->count, length, align_bytes, out_piece_length);
}

static uint32_t find_next(heap_t *heap, uint32_t length, size_t align_bytes,
                          uint32_t *out_piece_length) {
  uint32_t rover = heap->rover < heap->count ? heap->rover : 0;
  uint32_t start =
      search(heap, rover, heap->count, length, align_bytes, out_piece_length);
  if (start == HEAP_FIT_NONE) {
    start = search(heap, 0, rover, length, align_bytes, out_piece_length);
  }
  return start;
}

static uint64_t sure_length(const heap_t *heap, uint32_t length,
                            size_t align_bytes) {
  return (uint64_t)length + ((align_bytes - 1) >> heap->granule_shift);
}

static const char *check(heap_t *heap) {
  (void)heap;
  return NULL;
}

const heap_fit_t heap_fit_first = {
    .reset = reset,
    .insert = insert,
    .remove = insert,
    .find = find_first,
    .sure_length = sure_length,
    .check = check,
};

const heap_fit_t heap_fit_next = {
    .reset = reset,
    .insert = insert,
    .remove = insert,
    .find = find_next,
    .sure_length = sure_length,
    .check = check,
};
