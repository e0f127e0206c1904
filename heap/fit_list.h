// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Lists of free pieces, linked through them. Heads are outside; a link read
// from a piece is followed only to a free piece that links back, so that what a
// program wrote into a block after its free leads nowhere. TLSF and
// buddy heaps have them. What each alloc and free needs is inline, in both.

#ifndef MY_ALLOC_HEAP_FIT_LIST_H_
#define MY_ALLOC_HEAP_FIT_LIST_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/fit.h"

#ifdef __cplusplus
extern "C" {
#endif

static inline uint32_t heap_fit_order(uint32_t length) {
  return length <= 1 ? 0 : 32 - (uint32_t)__builtin_clz(length - 1);
}

// Returns the list of free pieces of `length`, which is not 0: one an order in
// a buddy heap, 2^tlsf_lists_log2 a doubling in a TLSF.
static inline uint32_t heap_fit_list_of(const heap_t *heap, uint32_t length) {
  if (heap->is_buddy) {
    return heap_fit_order(length);
  }
  uint32_t log2_lists = heap->options.tlsf_lists_log2;
  if (length >> log2_lists == 0) {
    return length;
  }
  uint32_t shift = 31 - (uint32_t)__builtin_clz(length) - log2_lists;
  // The bit that `length` starts with counts as one more shift.
  return (shift << log2_lists) + (length >> shift);
}

static inline void heap_fit_list_set_head(heap_t *heap, uint32_t list,
                                          uint32_t link) {
  heap->lists[list] = link;
  if (link != 0) {
    heap->list_bits[list / 32] |= UINT32_C(1) << (list % 32);
    heap->word_bits |= UINT32_C(1) << (list / 32);
    return;
  }
  heap->list_bits[list / 32] &= ~(UINT32_C(1) << (list % 32));
  if (heap->list_bits[list / 32] == 0) {
    heap->word_bits &= ~(UINT32_C(1) << (list / 32));
  }
}

// `first` of the links is the next piece, `second` the one before.
static inline bool heap_fit_list_push(heap_t *heap, uint32_t list,
                                      uint32_t start) {
  uint32_t head = heap->lists[list];
  *heap_fit_links_of(heap, start) = (heap_fit_links_t){.first = head};
  if (head != 0) {
    heap_fit_links_t *links = heap_fit_links_of(heap, head - 1);
    if (links->second != 0) {
      return false;
    }
    links->second = start + 1;
  }
  heap_fit_list_set_head(heap, list, start + 1);
  return true;
}

static inline bool heap_fit_list_remove(heap_t *heap, uint32_t list,
                                        uint32_t start) {
  heap_fit_links_t links = *heap_fit_links_of(heap, start);
  heap_fit_links_t *next = NULL;
  heap_fit_links_t *prev = NULL;
  if (links.first != 0) {
    if (!heap_fit_is_free(heap, links.first)) {
      return false;
    }
    next = heap_fit_links_of(heap, links.first - 1);
    if (next->second != start + 1) {
      return false;
    }
  }
  if (links.second != 0) {
    if (!heap_fit_is_free(heap, links.second)) {
      return false;
    }
    prev = heap_fit_links_of(heap, links.second - 1);
  }
  if (prev != NULL ? prev->first != start + 1
                   : heap->lists[list] != start + 1) {
    return false;
  }
  if (next != NULL) {
    next->second = links.second;
  }
  if (prev != NULL) {
    prev->first = links.first;
  } else {
    heap_fit_list_set_head(heap, list, links.first);
  }
  return true;
}

void heap_fit_lists_reset(heap_t *heap);

// Returns the first piece of the lowest list from `list` on that is not empty;
// NONE, or BROKEN when it is shorter than `length`.
uint32_t heap_fit_list_find(heap_t *heap, uint32_t list, uint32_t length,
                            uint32_t *out_piece_length);

// Every free piece must be in its list, once.
const char *heap_fit_lists_check(heap_t *heap);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_FIT_LIST_H_
