// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Two-level segregated fit (Masmano, Ripoll, Crespo, Real 2004, "TLSF: a new
// dynamic memory allocator for real-time systems"): a list for each of 2^n
// ranges of length in each doubling, and two levels of bits that tell which are
// not empty. A search rounds the length up to the next range's start, so that
// any piece it finds is long enough: no list is walked. What is between the
// two, at most 1/2^n of the length, may be missed.

#include "heap/fit_list.h"

static bool insert(heap_t *heap, uint32_t start, uint32_t length) {
  return heap_fit_list_push(heap, heap_fit_list_of(heap, length), start);
}

static bool remove_piece(heap_t *heap, uint32_t start, uint32_t length) {
  return heap_fit_list_remove(heap, heap_fit_list_of(heap, length), start);
}

static uint64_t sure_length(const heap_t *heap, uint32_t length,
                            size_t align_bytes) {
  uint32_t log2_lists = heap->options.tlsf_lists_log2;
  uint64_t wanted =
      (uint64_t)length + ((align_bytes - 1) >> heap->granule_shift);
  if (wanted >> log2_lists != 0) {
    unsigned log2_length = 63 - (unsigned)__builtin_clzll(wanted);
    uint64_t range = UINT64_C(1) << (log2_length - log2_lists);
    wanted = (wanted + range - 1) & ~(range - 1);
  }
  return wanted;
}

static uint32_t find(heap_t *heap, uint32_t length, size_t align_bytes,
                     uint32_t *out_piece_length) {
  uint64_t wanted = sure_length(heap, length, align_bytes);
  if (wanted > heap->count) {
    return HEAP_FIT_NONE;
  }
  return heap_fit_list_find(heap, heap_fit_list_of(heap, (uint32_t)wanted),
                            (uint32_t)wanted, out_piece_length);
}

static const char *check(heap_t *heap) {
  return heap_fit_lists_check(heap);
}

const heap_fit_t heap_fit_tlsf = {
    .reset = heap_fit_lists_reset,
    .insert = insert,
    .remove = remove_piece,
    .find = find,
    .sure_length = sure_length,
    .check = check,
};
