// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Binary buddies (Knowlton 1965, "A fast storage allocator"): pieces are powers
// of two long and lie at multiples of their length, with a list for each order.
// piece.c splits and joins them.

#include "heap/fit_list.h"

static bool insert(heap_t *heap, uint32_t start, uint32_t length) {
  return heap_fit_list_push(heap, heap_fit_list_of(heap, length), start);
}

static bool remove_piece(heap_t *heap, uint32_t start, uint32_t length) {
  return heap_fit_list_remove(heap, heap_fit_list_of(heap, length), start);
}

static uint64_t sure_length(const heap_t *heap, uint32_t length,
                            size_t align_bytes) {
  if (align_bytes > heap->base_align_bytes) {
    return 0;
  }
  uint64_t align_length = align_bytes >> heap->granule_shift;
  uint64_t wanted = UINT64_C(1) << heap_fit_order(length);
  return wanted > align_length ? wanted : align_length;
}

static uint32_t find(heap_t *heap, uint32_t length, size_t align_bytes,
                     uint32_t *out_piece_length) {
  uint64_t wanted = sure_length(heap, length, align_bytes);
  if (wanted == 0 || wanted > heap->count) {
    return HEAP_FIT_NONE;
  }
  return heap_fit_list_find(heap, heap_fit_list_of(heap, (uint32_t)wanted),
                            (uint32_t)wanted, out_piece_length);
}

static const char *check(heap_t *heap) {
  for (uint32_t start = 0; start < heap->count;) {
    uint32_t length = heap_fit_length(heap, start);
    if ((length & (length - 1)) != 0 || start % length != 0) {
      return "private heap: a piece that is no buddy";
    }
    uint32_t buddy = start ^ length;
    if (heap_bit_tree_has(&heap->frees, start) && buddy < heap->count &&
        heap_bit_tree_has(&heap->frees, buddy) &&
        heap_fit_length(heap, buddy) == length) {
      return "private heap: two free buddies";
    }
    start += length;
  }
  return heap_fit_lists_check(heap);
}

const heap_fit_t heap_fit_buddy = {
    .reset = heap_fit_lists_reset,
    .insert = insert,
    .remove = remove_piece,
    .find = find,
    .sure_length = sure_length,
    .check = check,
};
