// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// From any address to what the heap knows of its page, by arithmetic alone for
// most of it and by one load more for the rest.
//
// A heap page is HEAP_PAGE_BYTES of addresses. Pages cut into small blocks (a
// span is one page or a few) and pages in which a mapped block starts have a
// descriptor that says so; all others, the whole address space, read as
// HEAP_PAGE_NONE.

#ifndef MY_ALLOC_HEAP_PAGE_TABLE_H_
#define MY_ALLOC_HEAP_PAGE_TABLE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  HEAP_PAGE_SHIFT = 16,
  HEAP_PAGE_BYTES = 1 << HEAP_PAGE_SHIFT,
  // User addresses of x86-64 and aarch64 with four-level tables.
  HEAP_ADDRESS_BITS = 48,
  HEAP_LEAF_SHIFT = 30,  // A leaf of the table covers 1 GiB.
  HEAP_LEAF_PAGES = 1 << (HEAP_LEAF_SHIFT - HEAP_PAGE_SHIFT),
  HEAP_LEAF_COUNT = 1 << (HEAP_ADDRESS_BITS - HEAP_LEAF_SHIFT),
  HEAP_NEAR_PAGES = 1 << 16,  // 4 GiB.
};

typedef enum heap_page_kind {
  HEAP_PAGE_NONE = 0,  // Ours or not, no small and no mapped block starts here.
  HEAP_PAGE_SPAN,      // Cut into blocks of one size class.
  HEAP_PAGE_MAPPED,    // The start of one block with a mapping of its own.
} heap_page_kind_t;

struct heap_thread;

// One cache line. The fields are stable while a block of the page is live, so
// whoever holds such a block may read them without a lock. All pages of a span
// have the fields from `start` to `reciprocal`, `kind`, `size_class`,
// `bin_offset` and `index`; the others are used in its first page only.
typedef struct __attribute__((aligned(64))) heap_page {
  // Address of the first block. Central lock, written before blocks go out.
  uintptr_t start;
  union {
    uint8_t *states;          // SPAN: the state of each block (span.h).
    uintptr_t mapping_start;  // MAPPED: at or before `start`.
  };
  // SPAN: whose span it is. Atomic; written under the central lock. A thread
  // may ask relaxed whether that is itself; otherwise see thread_heap.c.
  struct heap_thread *owner;
  // SPAN: ceil(2^32 / block size), otherwise 0. For an offset into a
  // span, offset * reciprocal has the block's index in its upper 32 bits, and
  // its lower 32 bits are below the reciprocal exactly when the offset is a
  // multiple of the size (Lemire, Kaser, Kurz 2019, "Faster remainder by direct
  // computation").
  uint32_t reciprocal;
  // Frees by the owner until it must look at the span again. Owner only.
  uint32_t frees_to_go;
  uint8_t kind;        // heap_page_kind_t.
  uint8_t size_class;  // SPAN.
  uint8_t list;        // heap_span_list_t. Owner only.
  // Another thread freed a block since the owner last looked. Atomic.
  uint8_t remote_hint;
  // SPAN: where the class's bin is in a heap_thread_t, bytes.
  uint16_t bin_offset;
  // SPAN: 0 in its first page; and the lengths it has (size_class.h).
  unsigned index : 4;
  unsigned shape : 4;
  // The group that is looked at next for blocks freed by others. Owner only.
  uint8_t next_look;
  union {
    // SPAN: one bit a group (span.h) that has free blocks, those that others
    // freed since the last count not included. Owner only.
    uint64_t free_groups;
    size_t mapping_bytes;  // MAPPED.
  };
  // SPAN: of the owner's list, owner only. MAPPED: of all, central lock.
  struct heap_page *next;
  struct heap_page *prev;
} heap_page_t;

// The descriptors of the pages from `heap_near_base` on, where the first arena
// lies. The base is a multiple of the heap page and written once, under the
// central lock and before any block is handed out; before that no address is
// near. Hidden: its use in free() is then one instruction, without its address.
extern heap_page_t heap_near_pages[HEAP_NEAR_PAGES];
extern uintptr_t heap_near_base __attribute__((visibility("hidden")));

// For all other pages, leaves of descriptors; zero: a leaf nobody needed yet.
// Atomic, release when a leaf appears, relaxed when read.
extern heap_page_t *heap_leaves[HEAP_LEAF_COUNT];

// What is known of a page without a descriptor of its own. Never written.
extern heap_page_t heap_no_page;

// Returns the descriptor of the page that `address` lies in; one of kind NONE
// when the heap has none for it. Never NULL.
static inline heap_page_t *heap_page_of(uintptr_t address) {
  uintptr_t near = (address - heap_near_base) >> HEAP_PAGE_SHIFT;
  if (__builtin_expect(near < HEAP_NEAR_PAGES, 1)) {
    return &heap_near_pages[near];
  }
  uintptr_t leaf = address >> HEAP_LEAF_SHIFT;
  heap_page_t *pages =
      leaf < HEAP_LEAF_COUNT
          ? __atomic_load_n(&heap_leaves[leaf], __ATOMIC_RELAXED)
          : NULL;
  return pages == NULL ? &heap_no_page
                       : &pages[(address >> HEAP_PAGE_SHIFT) % HEAP_LEAF_PAGES];
}

// Makes the pages from `base` on the near ones, unless there are some already.
// Central lock held.
void heap_page_table_set_near(uintptr_t base);

// Pages linked through their descriptors; zeroed is empty.
typedef struct heap_page_list {
  heap_page_t *first;
  heap_page_t *last;
} heap_page_list_t;

void heap_page_list_push_front(heap_page_list_t *list, heap_page_t *page);
void heap_page_list_push_back(heap_page_list_t *list, heap_page_t *page);
void heap_page_list_remove(heap_page_list_t *list, heap_page_t *page);

// Makes sure that the page of `address` has a descriptor of its own. False when
// there is no memory for it. Central lock held.
bool heap_page_table_cover(uintptr_t address);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_PAGE_TABLE_H_
