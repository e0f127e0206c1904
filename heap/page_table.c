// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The near pages are one array, found by a subtraction and a shift: most
// programs have no others but those of their biggest blocks. The far ones are a
// radix tree of two levels over 48 bits of address:
//
//   address   [ leaf index : 18 | page in leaf : 14 | offset : 16 ]
//   heap_leaves[2^18] --> leaf: heap_page_t[2^14], 1 MiB, 64 bytes a page
//
// All of it is address space, not memory, until it is touched: a small heap
// touches one or two kernel pages of it.
//
// The hard problem is that any thread may look up any address at any time,
// without a lock, even one that was never ours. Nothing is therefore ever
// freed or moved, and a lookup that races with a leaf's appearance sees it or
// not. Either is right: a thread that legally holds a block got it after the
// leaf appeared, by some synchronisation that makes it visible; for any other
// address both answers are "not a block". The same goes for the base.

#include "heap/page_table.h"

#include <assert.h>

#include "heap/fatal.h"
#include "heap/kernel.h"
#include "heap/metadata.h"

static_assert(sizeof(void *) == 8, "the table is laid out for 64 bits");
static_assert(sizeof(heap_page_t) == 64, "a descriptor is one cache line");

enum {
  LEAF_BYTES = HEAP_LEAF_PAGES * sizeof(heap_page_t),
};

// An address that is not near to any of 48 bits, nor to those above.
#define NO_BASE ((uintptr_t)1 << 62)

heap_page_t heap_near_pages[HEAP_NEAR_PAGES];
uintptr_t heap_near_base = NO_BASE;
heap_page_t *heap_leaves[HEAP_LEAF_COUNT];
heap_page_t heap_no_page;

void heap_page_table_set_near(uintptr_t base) {
  HEAP_ASSERT(base % HEAP_PAGE_BYTES == 0);
  if (heap_near_base == NO_BASE) {
    heap_near_base = base;
  }
}

bool heap_page_table_cover(uintptr_t address) {
  if (heap_near_base == NO_BASE) {
    // The first block of all is a mapped one. The first arena will be here.
    uintptr_t now = (uintptr_t)heap_kernel->move_break(0);
    heap_page_table_set_near((now + HEAP_PAGE_BYTES - 1) &
                             ~(uintptr_t)(HEAP_PAGE_BYTES - 1));
  }
  if ((address - heap_near_base) >> HEAP_PAGE_SHIFT < HEAP_NEAR_PAGES) {
    return true;
  }
  uintptr_t leaf = address >> HEAP_LEAF_SHIFT;
  if (leaf >= HEAP_LEAF_COUNT) {
    return false;  // The kernel gave an address that the table cannot name.
  }
  if (__atomic_load_n(&heap_leaves[leaf], __ATOMIC_RELAXED) != NULL) {
    return true;
  }
  heap_page_t *pages = heap_metadata_map(LEAF_BYTES);
  if (pages == NULL) {
    return false;
  }
  // Pairs with the synchronisation by which blocks reach other threads.
  __atomic_store_n(&heap_leaves[leaf], pages, __ATOMIC_RELEASE);
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
