// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A radix tree of two levels over 48 bits of address:
//
//   address   [ leaf index : 18 | page in leaf : 14 | offset : 16 ]
//   heap_leaves[2^18] --> leaf: heap_page_t[2^14], 1 MiB, 64 bytes a page
//
// Both levels are address space, not memory, until they are touched: a heap of
// 1 GiB touches one leaf, a small heap one or two kernel pages of it.
//
// The hard problem is that any thread may look up any address at any time,
// without a lock, even one that was never ours. Leaves therefore are never
// freed or moved, and a lookup that races with a leaf's appearance sees it or
// the empty one. Either is right: a thread that legally holds a block got it
// after the leaf appeared, by some synchronisation that makes it visible; for
// any other address both answers are "not a block".

#include "heap/page_table.h"

#include <assert.h>

#include "heap/fatal.h"
#include "heap/metadata.h"

static_assert(sizeof(void *) == 8, "the table is laid out for 64 bits");
static_assert(sizeof(heap_page_t) == 64, "a descriptor is one cache line");

uintptr_t heap_leaves[HEAP_LEAF_COUNT];
heap_page_t heap_empty_leaf[HEAP_LEAF_PAGES];

bool heap_page_table_cover(uintptr_t address) {
  uintptr_t leaf = address >> HEAP_LEAF_SHIFT;
  if (leaf >= HEAP_LEAF_COUNT) {
    return false;  // The kernel gave an address that the table cannot name.
  }
  if (__atomic_load_n(&heap_leaves[leaf], __ATOMIC_RELAXED) != 0) {
    return true;
  }
  void *pages = heap_metadata_map(sizeof(heap_empty_leaf));
  if (pages == NULL) {
    return false;
  }
  // Pairs with the synchronisation by which blocks reach other threads.
  __atomic_store_n(&heap_leaves[leaf],
                   (uintptr_t)pages - (uintptr_t)heap_empty_leaf,
                   __ATOMIC_RELEASE);
  return true;
}

void heap_page_list_push_front(heap_page_list_t *list, heap_page_t *page) {
  page->prev = NULL;
  page->next = list->first;
  if (list->first != NULL) {
    list->first->prev = page;
  } else {
    list->last = page;
  }
  list->first = page;
}

void heap_page_list_push_back(heap_page_list_t *list, heap_page_t *page) {
  page->next = NULL;
  page->prev = list->last;
  if (list->last != NULL) {
    list->last->next = page;
  } else {
    list->first = page;
  }
  list->last = page;
}

void heap_page_list_remove(heap_page_list_t *list, heap_page_t *page) {
  if (page->prev != NULL) {
    page->prev->next = page->next;
  } else {
    list->first = page->next;
  }
  if (page->next != NULL) {
    page->next->prev = page->prev;
  } else {
    list->last = page->prev;
  }
  page->next = NULL;
  page->prev = NULL;
}
