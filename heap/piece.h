// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The pieces of a private heap: taken, freed, cut and joined in its bitmaps,
// with its strategy told of each free one. Lengths and starts are in granules.
//
// All functions: the heap's lock held.

#ifndef MY_ALLOC_HEAP_PIECE_H_
#define MY_ALLOC_HEAP_PIECE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/fit.h"

#ifdef __cplusplus
extern "C" {
#endif

// A free piece became live.
static inline void heap_piece_note_live(heap_t *heap, uint32_t length) {
  heap->live_length += length;
  if (heap->live_length > heap->peak_length) {
    heap->peak_length = heap->live_length;
  }
}

// Returns the start of a live piece of at least `length`, at a multiple of
// `align_bytes`, or HEAP_FIT_NONE.
uint32_t heap_piece_take(heap_t *heap, uint32_t length, size_t align_bytes);

// Frees a live piece.
void heap_piece_free(heap_t *heap, uint32_t start, uint32_t length);

// Returns how many pieces there are, live and free.
uint32_t heap_piece_count(const heap_t *heap);

// Makes a piece that is counted as live no more free, joined with its
// neighbours; not in a buddy heap.
void heap_piece_join(heap_t *heap, uint32_t start, uint32_t length);

// Changes the length of a live piece to at least `wanted`, with new memory when
// it is the last but for what is free; false when what is behind it is not free
// or not enough. To make it shorter never fails.
bool heap_piece_resize(heap_t *heap, uint32_t start, uint32_t length,
                       uint32_t wanted);

// `length` more granules follow the last one; they are free. In a buddy heap
// they may be several pieces.
void heap_piece_append(heap_t *heap, uint32_t length);

// Makes all that there is one free piece, or as few as there can be.
void heap_piece_free_all(heap_t *heap);

// Returns the first broken invariant's name, or NULL.
const char *heap_piece_check(heap_t *heap);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_PIECE_H_
