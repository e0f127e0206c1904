// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Best fit: the free pieces are a search tree by length and, of one length, by
// address; it lies in the pieces. It is a treap (Seidel, Aragon 1996,
// "Randomized search trees"): a heap by a priority that is a hash of the
// piece's number, hence as flat as a tree of random insertions, about
// 2 log2(n) deep. A descent that finds no free piece, or does not end, was led
// by what somebody wrote after a free.

#include "heap/fit.h"

typedef struct key {
  uint32_t length;
  uint32_t start;
} key_t_;

static void reset(heap_t *heap) {
  heap->root = 0;
  heap->tree_count = 0;
}

static uint32_t priority(uint32_t start) {
  uint32_t hash = start * UINT32_C(0x9E3779B1);
  return (hash ^ hash >> 15) * UINT32_C(0x85EBCA77);
}

static bool is_below(key_t_ a, key_t_ b) {
  return a.length != b.length ? a.length < b.length : a.start < b.start;
}

// A descent: no path is longer than there are pieces, unless it goes in
// circles. Where two become one, each step reads a piece of both.
typedef struct descent {
  uint64_t steps_left;
  uint32_t at;  // The piece whose links were read last, or NONE.
} descent_t;

static descent_t begin(const heap_t *heap) {
  return (descent_t){.steps_left = 2 * (uint64_t)heap->tree_count,
                     .at = HEAP_FIT_NONE};
}

// Reads the node at `link`; false: broken.
static bool visit(heap_t *heap, uint32_t link, descent_t *descent,
                  key_t_ *out_key) {
  ++heap->steps;
  if (!heap_fit_is_free(heap, link) || descent->steps_left == 0) {
    heap_fit_note_broken(heap, descent->at);
    return false;
  }
  --descent->steps_left;
  descent->at = link - 1;
  *out_key =
      (key_t_){.length = heap_fit_length(heap, link - 1), .start = link - 1};
  return true;
}

// `first` of the links is the lower subtree, `second` the higher one.
static bool insert(heap_t *heap, uint32_t start, uint32_t length) {
  key_t_ own = {.length = length, .start = start};
  descent_t descent = begin(heap);
  uint32_t *link = &heap->root;
  key_t_ key;
  while (*link != 0) {
    if (!visit(heap, *link, &descent, &key)) {
      return false;
    }
    if (priority(key.start) < priority(start)) {
      break;
    }
    heap_fit_links_t *links = heap_fit_links_of(heap, key.start);
    link = is_below(key, own) ? &links->second : &links->first;
  }
  // The subtree at `link` is split into what is below and what is above.
  uint32_t rest = *link;
  *link = start + 1;
  uint32_t *low = &heap_fit_links_of(heap, start)->first;
  uint32_t *high = &heap_fit_links_of(heap, start)->second;
  while (rest != 0) {
    if (!visit(heap, rest, &descent, &key)) {
      return false;
    }
    heap_fit_links_t *links = heap_fit_links_of(heap, key.start);
    if (is_below(key, own)) {
      *low = rest;
      low = &links->second;
    } else {
      *high = rest;
      high = &links->first;
    }
    rest = is_below(key, own) ? links->second : links->first;
  }
  *low = 0;
  *high = 0;
  ++heap->tree_count;
  return true;
}

static bool remove_piece(heap_t *heap, uint32_t start, uint32_t length) {
  key_t_ own = {.length = length, .start = start};
  descent_t descent = begin(heap);
  uint32_t *link = &heap->root;
  key_t_ key;
  while (*link != start + 1) {
    if (*link == 0 || !visit(heap, *link, &descent, &key)) {
      return false;
    }
    heap_fit_links_t *links = heap_fit_links_of(heap, key.start);
    link = is_below(key, own) ? &links->second : &links->first;
  }
  // Its two subtrees become one.
  uint32_t low = heap_fit_links_of(heap, start)->first;
  uint32_t high = heap_fit_links_of(heap, start)->second;
  while (low != 0 && high != 0) {
    key_t_ low_key;
    key_t_ high_key;
    if (!visit(heap, low, &descent, &low_key) ||
        !visit(heap, high, &descent, &high_key)) {
      return false;
    }
    if (priority(low_key.start) > priority(high_key.start)) {
      *link = low;
      link = &heap_fit_links_of(heap, low_key.start)->second;
      low = *link;
    } else {
      *link = high;
      link = &heap_fit_links_of(heap, high_key.start)->first;
      high = *link;
    }
  }
  *link = low != 0 ? low : high;
  --heap->tree_count;
  return true;
}

static uint64_t sure_length(const heap_t *heap, uint32_t length,
                            size_t align_bytes) {
  return (uint64_t)length + ((align_bytes - 1) >> heap->granule_shift);
}

static uint32_t find(heap_t *heap, uint32_t length, size_t align_bytes,
                     uint32_t *out_piece_length) {
  uint64_t wanted = sure_length(heap, length, align_bytes);
  descent_t descent = begin(heap);
  uint32_t best = HEAP_FIT_NONE;
  key_t_ key;
  for (uint32_t link = heap->root; link != 0;) {
    if (!visit(heap, link, &descent, &key)) {
      return HEAP_FIT_BROKEN;
    }
    heap_fit_links_t *links = heap_fit_links_of(heap, key.start);
    if (key.length >= wanted) {
      best = key.start;
      *out_piece_length = key.length;
      link = links->first;
    } else {
      link = links->second;
    }
  }
  return best;
}

// Every free piece is where a search for it ends, and its place in the order
// and in the heap by priority is right.
static const char *check(heap_t *heap) {
  for (uint32_t start = heap_fit_next_free(heap, 0); start != HEAP_FIT_NONE;
       start = heap_fit_next_free(heap, start + heap_fit_length(heap, start))) {
    key_t_ own = {.length = heap_fit_length(heap, start), .start = start};
    descent_t descent = begin(heap);
    uint32_t above = UINT32_MAX;
    uint32_t link = heap->root;
    while (link != start + 1) {
      key_t_ key;
      if (link == 0 || !visit(heap, link, &descent, &key) ||
          priority(key.start) > above) {
        return "private heap: a free piece that its tree does not lead to";
      }
      above = priority(key.start);
      heap_fit_links_t *links = heap_fit_links_of(heap, key.start);
      link = is_below(key, own) ? links->second : links->first;
    }
  }
  return NULL;
}

const heap_fit_t heap_fit_best = {
    .reset = reset,
    .insert = insert,
    .remove = remove_piece,
    .find = find,
    .sure_length = sure_length,
    .check = check,
};
