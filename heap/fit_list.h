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

// Returns log2 of how many lengths the list of `length` in a TLSF with
// 2^lists_log2 lists a doubling is for.
static inline uint32_t heap_fit_list_shift(uint32_t lists_log2,
                                           uint32_t length) {
  return 31 - (uint32_t)__builtin_clz(length | UINT32_C(1) << lists_log2) -
         lists_log2;
}

// Returns the list of free pieces of `length`, which is not 0, in a TLSF:
// 2^lists_log2 lists a doubling, and one a length where there are not so many.
static inline uint32_t heap_fit_list_of_tlsf(uint32_t lists_log2,
                                             uint32_t length) {
  uint32_t shift = heap_fit_list_shift(lists_log2, length);
  // The bit that `length` starts with counts as one more shift.
  return (shift << lists_log2) + (length >> shift);
}

// The same in a buddy heap too, which has a list an order.
static inline uint32_t heap_fit_list_of(const heap_t *heap, uint32_t length) {
  return heap->is_buddy ? heap_fit_order(length)
                        : heap_fit_list_of_tlsf(heap->lists_log2, length);
}

static inline void heap_fit_list_set_head(heap_t *heap, uint32_t list,
                                          uint32_t link) {
  heap->lists[list] = link;
  if (link == 0) {
    uint64_t bits = heap->list_bits[list / 64] & ~(UINT64_C(1) << (list % 64));
    heap->list_bits[list / 64] = bits;
    heap->word_bits &= ~((uint32_t)(bits == 0) << (list / 64));
  }
}

// The same for a list that is empty.
static inline void heap_fit_list_start(heap_t *heap, uint32_t list,
                                       uint32_t link) {
  heap->lists[list] = link;
  heap->list_bits[list / 64] |= UINT64_C(1) << (list % 64);
  heap->word_bits |= UINT32_C(1) << (list / 64);
}

// Returns the lowest list from `list` on that is not empty, or NONE.
static inline uint32_t heap_fit_list_first(const heap_t *heap, uint32_t list) {
  uint32_t word = list / 64;
  uint64_t bits = heap->list_bits[word] >> (list % 64);
  if (bits != 0) {
    return list + (uint32_t)__builtin_ctzll(bits);
  }
  uint32_t words = heap->word_bits >> word >> 1;
  if (words == 0) {
    return HEAP_FIT_NONE;
  }
  word += 1 + (uint32_t)__builtin_ctz(words);
  return word * 64 + (uint32_t)__builtin_ctzll(heap->list_bits[word]);
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
    heap->lists[list] = start + 1;
    return true;
  }
  heap_fit_list_start(heap, list, start + 1);
  return true;
}

// The neighbours of a piece in its list; NULL where it has none.
typedef struct heap_fit_neighbours {
  heap_fit_links_t links;
  heap_fit_links_t *next;
  heap_fit_links_t *prev;
} heap_fit_neighbours_t;

// Follows a piece's links; false: they lead to what does not lead back.
static inline bool heap_fit_list_follow(const heap_t *heap, uint32_t list,
                                        uint32_t start,
                                        heap_fit_neighbours_t *out) {
  // One by one: they were often written so a moment ago, and a load of both
  // would wait until these stores are done.
  const heap_fit_links_t *links = heap_fit_links_of(heap, start);
  out->links.first = links->first;
  out->links.second = links->second;
  out->next = NULL;
  out->prev = NULL;
  if (out->links.first != 0) {
    if (!heap_fit_is_free(heap, out->links.first)) {
      return false;
    }
    out->next = heap_fit_links_of(heap, out->links.first - 1);
    if (out->next->second != start + 1) {
      return false;
    }
  }
  if (out->links.second == 0) {
    return heap->lists[list] == start + 1;
  }
  if (!heap_fit_is_free(heap, out->links.second)) {
    return false;
  }
  out->prev = heap_fit_links_of(heap, out->links.second - 1);
  return out->prev->first == start + 1;
}

// Takes a piece out of its list, with what heap_fit_list_follow() found.
static inline void heap_fit_list_unlink(heap_t *heap, uint32_t list,
                                        const heap_fit_neighbours_t *at) {
  if (at->next != NULL) {
    at->next->second = at->links.second;
  }
  if (at->prev != NULL) {
    at->prev->first = at->links.first;
  } else {
    heap_fit_list_set_head(heap, list, at->links.first);
  }
}

static inline bool heap_fit_list_remove(heap_t *heap, uint32_t list,
                                        uint32_t start) {
  heap_fit_neighbours_t at;
  if (!heap_fit_list_follow(heap, list, start, &at)) {
    return false;
  }
  heap_fit_list_unlink(heap, list, &at);
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
