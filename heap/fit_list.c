// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Lists of free pieces, linked through them. Heads are outside; a link read
// from a piece is followed only to a free piece that links back, so that what a
// program wrote into a block after its free leads nowhere.

#include "heap/fit.h"

#include <string.h>

void heap_fit_lists_reset(heap_t *heap) {
  memset(heap->lists, 0, sizeof(heap->lists));
  memset(heap->list_bits, 0, sizeof(heap->list_bits));
  heap->word_bits = 0;
}

static void set_head(heap_t *heap, uint32_t list, uint32_t link) {
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
bool heap_fit_list_push(heap_t *heap, uint32_t list, uint32_t start) {
  uint32_t head = heap->lists[list];
  *heap_fit_links(heap, start) = (heap_fit_links_t){.first = head};
  if (head != 0) {
    heap_fit_links_t *links = heap_fit_links(heap, head - 1);
    if (links->second != 0) {
      return false;
    }
    links->second = start + 1;
  }
  set_head(heap, list, start + 1);
  return true;
}

bool heap_fit_list_remove(heap_t *heap, uint32_t list, uint32_t start) {
  heap_fit_links_t links = *heap_fit_links(heap, start);
  heap_fit_links_t *next = NULL;
  heap_fit_links_t *prev = NULL;
  if (links.first != 0) {
    if (!heap_fit_is_free(heap, links.first)) {
      return false;
    }
    next = heap_fit_links(heap, links.first - 1);
    if (next->second != start + 1) {
      return false;
    }
  }
  if (links.second != 0) {
    if (!heap_fit_is_free(heap, links.second)) {
      return false;
    }
    prev = heap_fit_links(heap, links.second - 1);
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
    set_head(heap, list, links.first);
  }
  return true;
}

uint32_t heap_fit_list_find(heap_t *heap, uint32_t list) {
  ++heap->steps;
  uint32_t word = list / 32;
  uint32_t bits = heap->list_bits[word] & (UINT32_MAX << (list % 32));
  if (bits == 0) {
    uint32_t words =
        word == 31 ? 0 : heap->word_bits & (UINT32_MAX << (word + 1));
    if (words == 0) {
      return HEAP_FIT_NONE;
    }
    word = (uint32_t)__builtin_ctz(words);
    bits = heap->list_bits[word];
  }
  return word * 32 + (uint32_t)__builtin_ctz(bits);
}

const char *heap_fit_lists_check(heap_t *heap,
                                 uint32_t (*list_of)(const heap_t *heap,
                                                     uint32_t length)) {
  uint32_t listed = 0;
  for (uint32_t list = 0; list < HEAP_FIT_LISTS_MAX; ++list) {
    uint32_t prev = 0;
    bool has_bit = (heap->list_bits[list / 32] >> (list % 32) & 1) != 0;
    bool has_word = (heap->word_bits >> (list / 32) & 1) != 0;
    if (has_bit != (heap->lists[list] != 0) || (has_bit && !has_word)) {
      return "private heap: a list that is empty and not, or the reverse";
    }
    for (uint32_t link = heap->lists[list]; link != 0;
         link = heap_fit_links(heap, link - 1)->first) {
      if (!heap_fit_is_free(heap, link) ||
          heap_fit_links(heap, link - 1)->second != prev ||
          list_of(heap, heap_fit_length(heap, link - 1)) != list) {
        return "private heap: a list that leads to what is not free in it";
      }
      prev = link;
      ++listed;
    }
  }
  uint32_t free_count = 0;
  for (uint32_t start = heap_bit_tree_next(&heap->frees, 0);
       start != HEAP_BIT_NONE;
       start = heap_bit_tree_next(&heap->frees, start + 1)) {
    ++free_count;
  }
  return listed == free_count ? NULL : "private heap: a free piece in no list";
}
