// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Spans: heap pages cut into small blocks of one size class, with one byte of
// state a block, kept outside of them. A span is named by the descriptor of
// its first page.

#ifndef MY_ALLOC_HEAP_SPAN_H_
#define MY_ALLOC_HEAP_SPAN_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/page_table.h"
#include "heap/size_class.h"

#ifdef __cplusplus
extern "C" {
#endif

// A block's state: an atomic byte. Bit 0 is set in those that a search for free
// blocks passes over.
enum {
  HEAP_BLOCK_FRESH = 0,    // Free, never handed out, all bytes zero.
  HEAP_BLOCK_LIVE = 1,     // Handed out.
  HEAP_BLOCK_FREED = 2,    // Free, contents arbitrary.
  HEAP_BLOCK_PADDING = 3,  // No block: fills up the last group.
  HEAP_BLOCK_CACHED = 5,   // Free, in a slot of its owner's bin.
  // Blocks whose states are one cache line and one word of a bit mask.
  HEAP_GROUP_BLOCKS = 64,
};

// Where a span is, seen from its owner.
typedef enum heap_span_list {
  HEAP_SPAN_CURRENT,  // Blocks of its class are taken from it.
  HEAP_SPAN_PARTIAL,  // Has free blocks.
  HEAP_SPAN_FULL,     // Had none when the owner last looked.
} heap_span_list_t;

// Returns a new span of `size_class` owned by `owner`, no block of it live, or
// NULL when there is no memory. Central lock held.
heap_page_t *heap_span_create(size_t size_class, struct heap_thread *owner);

// Makes `owner` that of the span.
void heap_span_set_owner(heap_page_t *page, struct heap_thread *owner);

// Gives back a span without live blocks, on no list. Central lock held.
void heap_span_destroy(heap_page_t *page);

// Gives back the kernel's pages of a span in which no block is live, cached or
// reserved; blocks that lie in them are as new then. Returns how many bytes. By
// the owner, central lock held.
size_t heap_span_discard(heap_page_t *page);

// Spans now in existence. Central lock held.
size_t heap_span_count(void);

// Returns one bit for each block of a group that is free. By the owner; blocks
// that other threads free meanwhile may or may not be in it.
uint64_t heap_span_free_mask(const heap_page_t *page, size_t group);

// Makes `free_groups` true and returns the number of blocks that are not free,
// cached ones included; as above.
uint32_t heap_span_recount(heap_page_t *page);

// Returns the first broken invariant's name, or NULL; `out_busy` is the number
// of blocks that are not free. Nobody else inside the heap.
const char *heap_span_check(const heap_page_t *page, uint32_t *out_busy);

// Tells whether all blocks that are said to be all zero are. Reads all of their
// memory.
bool heap_span_is_fresh_zero(const heap_page_t *page);

// Returns the first page of the span that any of its pages belongs to.
static inline heap_page_t *heap_span_of(heap_page_t *page) {
  return page->index == 0 ? page : heap_page_of(page->start);
}

static inline uint32_t heap_span_group_count(const heap_page_t *page) {
  return (heap_class_info[page->size_class].block_count + HEAP_GROUP_BLOCKS -
          1) /
         HEAP_GROUP_BLOCKS;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_SPAN_H_
