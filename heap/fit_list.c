// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What of the lists is not called for each block.

#include "heap/fit_list.h"

#include <string.h>

void heap_fit_lists_reset(heap_t *heap) {
  memset(heap->lists, 0, sizeof(heap->lists));
  memset(heap->list_bits, 0, sizeof(heap->list_bits));
  heap->word_bits = 0;
}

uint32_t heap_fit_list_find(heap_t *heap, uint32_t list, uint32_t length,
                            uint32_t *out_piece_length) {
  uint32_t found = heap_fit_list_first(heap, list);
  heap->steps += 2;
  if (found == HEAP_FIT_NONE) {
    return HEAP_FIT_NONE;
  }
  // Links that look right may have led a piece into another's list.
  uint32_t start = heap->lists[found] - 1;
  *out_piece_length = heap_fit_length(heap, start);
  if (*out_piece_length < length) {
    heap_fit_note_broken(heap, start);
    return HEAP_FIT_BROKEN;
  }
  return start;
}

const char *heap_fit_lists_check(heap_t *heap) {
  uint32_t listed = 0;
  for (uint32_t list = 0; list < HEAP_FIT_LISTS_MAX; ++list) {
    uint32_t prev = 0;
    bool has_bit = (heap->list_bits[list / 64] >> (list % 64) & 1) != 0;
    bool has_word = (heap->word_bits >> (list / 64) & 1) != 0;
    if (has_bit != (heap->lists[list] != 0) || (has_bit && !has_word)) {
      return "private heap: a list that is empty and not, or the reverse";
    }
    for (uint32_t link = heap->lists[list]; link != 0;
         link = heap_fit_links_of(heap, link - 1)->first) {
      if (!heap_fit_is_free(heap, link) ||
          heap_fit_links_of(heap, link - 1)->second != prev ||
          heap_fit_list_of(heap, heap_fit_length(heap, link - 1)) != list) {
        return "private heap: a list that leads to what is not free in it";
      }
      prev = link;
      ++listed;
    }
  }
  uint32_t free_count = 0;
  for (uint32_t start = heap_fit_next_free(heap, 0); start != HEAP_FIT_NONE;
       start = heap_fit_next_free(heap, start + heap_fit_length(heap, start))) {
    ++free_count;
  }
  return listed == free_count ? NULL : "private heap: a free piece in no list";
}
