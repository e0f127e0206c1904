// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A TLSF's alloc and free, inline: what piece.c does with any strategy, for
// plain blocks and where nothing is broken. It differs in one thing: a piece
// that shrinks or grows within the range of its list keeps its place there, and
// often no list changes at all.
//
// Whatever does not look as it should is left to piece.c, before anything was
// changed, or with a change that is whole in itself. No call takes more steps
// than the same one there.
//
// All functions: the heap's lock held.

#ifndef MY_ALLOC_HEAP_FIT_TLSF_H_
#define MY_ALLOC_HEAP_FIT_TLSF_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/fit_list.h"
#include "heap/piece.h"

#ifdef __cplusplus
extern "C" {
#endif

// A length below has a list from which on all pieces are long enough.
#define HEAP_FIT_TLSF_LENGTH_END (UINT32_C(1) << 30)

// Returns the lowest list in which all pieces are at least `length` long.
static inline uint32_t heap_fit_tlsf_list_above(const heap_t *heap,
                                                uint32_t length) {
  uint32_t shift = heap_fit_list_shift(heap, length);
  return heap_fit_list_of_tlsf(heap, length + (UINT32_C(1) << shift) - 1);
}

// Tells whether a piece may become the first of a list: the one that is has
// none before it.
static inline bool heap_fit_tlsf_accepts(const heap_t *heap, uint32_t list) {
  uint32_t head = heap->lists[list];
  return head == 0 || heap_fit_links_of(heap, head - 1)->second == 0;
}

// Puts the piece at `to` into the place of one that is the first of its list.
static inline void heap_fit_tlsf_replace_first(heap_t *heap, uint32_t list,
                                               const heap_fit_neighbours_t *at,
                                               uint32_t to) {
  if (at->next != NULL) {
    at->next->second = to + 1;
  }
  heap->lists[list] = to + 1;
  *heap_fit_links_of(heap, to) = at->links;
}

// Returns the start of a live piece of at least `length`, or NONE: ask
// heap_piece_take().
static inline uint32_t heap_fit_tlsf_take(heap_t *heap, uint32_t length) {
  if (length >= HEAP_FIT_TLSF_LENGTH_END) {
    return HEAP_FIT_NONE;
  }
  uint32_t list =
      heap_fit_list_first(heap, heap_fit_tlsf_list_above(heap, length));
  if (list == HEAP_FIT_NONE) {
    return HEAP_FIT_NONE;
  }
  uint32_t start = heap->lists[list] - 1;
  uint32_t end = heap_bit_tree_next(&heap->starts, start + 1);
  heap_fit_neighbours_t at;
  if (end - start < length || !heap_fit_list_follow(heap, list, start, &at) ||
      at.prev != NULL) {
    return HEAP_FIT_NONE;
  }
  uint32_t rest = start + length;
  if (end - rest < heap->split_length) {
    heap->steps += 8;
    heap_fit_list_unlink(heap, list, &at);
    heap_bit_tree_remove_flat(&heap->frees, end - 1);
    rest = end;
  } else {
    heap->steps += 13;
    uint32_t rest_list = heap_fit_list_of_tlsf(heap, end - rest);
    if (rest_list == list) {
      heap_fit_tlsf_replace_first(heap, list, &at, rest);
    } else if (heap_fit_tlsf_accepts(heap, rest_list)) {
      heap_fit_list_unlink(heap, list, &at);
      heap_fit_list_push(heap, rest_list, rest);
    } else {
      return HEAP_FIT_NONE;
    }
    heap_bit_tree_add_flat(&heap->frees, rest);
    heap_bit_tree_add(&heap->starts, rest);
  }
  heap_bit_tree_remove_flat(&heap->frees, start);
  heap_piece_note_live(heap, rest - start);
  return start;
}

// Takes the free piece at `end` out of its list and out of the bitmaps. Returns
// its length, 0 when its links are broken.
static inline uint32_t heap_fit_tlsf_absorb(heap_t *heap, uint32_t end) {
  uint32_t end_behind = heap_bit_tree_next(&heap->starts, end + 1);
  uint32_t list = heap_fit_list_of_tlsf(heap, end_behind - end);
  if (!heap_fit_list_remove(heap, list, end)) {
    return 0;
  }
  heap->steps += 7;
  heap_bit_tree_remove(&heap->starts, end);
  heap_bit_tree_remove_flat(&heap->frees, end);
  heap_bit_tree_remove_flat(&heap->frees, end_behind - 1);
  return end_behind - end;
}

// Makes the piece free that was live at [start, end), joined with that before
// it, at `before`. False: not done.
static inline bool heap_fit_tlsf_extend(heap_t *heap, uint32_t before,
                                        uint32_t start, uint32_t end) {
  uint32_t old_list = heap_fit_list_of_tlsf(heap, start - before);
  uint32_t list = heap_fit_list_of_tlsf(heap, end - before);
  heap->steps += 11;
  if (list != old_list) {
    if (!heap_fit_tlsf_accepts(heap, list) ||
        !heap_fit_list_remove(heap, old_list, before)) {
      return false;
    }
    heap_fit_list_push(heap, list, before);
  }
  heap_bit_tree_remove(&heap->starts, start);
  heap_bit_tree_remove_flat(&heap->frees, start - 1);
  heap_bit_tree_add_flat(&heap->frees, before);
  heap_bit_tree_add_flat(&heap->frees, end - 1);
  return true;
}

// Makes a piece that is counted as live no more free.
static inline void heap_fit_tlsf_free(heap_t *heap, uint32_t start,
                                      uint32_t length) {
  uint32_t end = start + length;
  if (heap_bit_tree_has(&heap->frees, end)) {
    uint32_t behind = heap_fit_tlsf_absorb(heap, end);
    if (behind == 0) {
      heap_piece_join(heap, start, length);
      return;
    }
    end += behind;
  }
  if (start > 0 && heap_bit_tree_has(&heap->frees, start - 1)) {
    uint32_t before = heap_bit_tree_prev(&heap->starts, start - 1);
    if (!heap_fit_tlsf_extend(heap, before, start, end)) {
      heap_piece_join(heap, start, end - start);
    }
    return;
  }
  uint32_t list = heap_fit_list_of_tlsf(heap, end - start);
  if (!heap_fit_tlsf_accepts(heap, list)) {
    heap_piece_join(heap, start, end - start);
    return;
  }
  heap->steps += 4;
  heap_bit_tree_add_flat(&heap->frees, start);
  heap_bit_tree_add_flat(&heap->frees, end - 1);
  heap_fit_list_push(heap, list, start);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_FIT_TLSF_H_
