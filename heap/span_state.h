// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The states of a span's blocks: one byte a block, kept outside of them, and
// what an owner reads from them. Knows no arena, no thread and no lock; whoever
// has the span says where its memory is from.

#ifndef MY_ALLOC_HEAP_SPAN_STATE_H_
#define MY_ALLOC_HEAP_SPAN_STATE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/harden.h"
#include "heap/page_table.h"
#include "heap/size_class.h"

#ifdef __cplusplus
extern "C" {
#endif

// Or the compiler keeps one copy for free() and cfree() and jumps there.
#define HEAP_FAST_PATH static inline __attribute__((always_inline))

// A block's state: an atomic byte. Bit 0 is set in those that a search for free
// blocks passes over.
enum {
  HEAP_BLOCK_FRESH = 0,    // Free, never handed out, all bytes zero.
  HEAP_BLOCK_LIVE = 1,     // Handed out.
  HEAP_BLOCK_FREED = 2,    // Free, contents arbitrary.
  HEAP_BLOCK_PADDING = 3,  // No block: fills up the last group.
  HEAP_BLOCK_CLEAN = 4,    // Hardened: was used, and its memory given back.
  HEAP_BLOCK_CACHED = 5,   // Free, in a slot of its owner's bin.
  // Blocks whose states are one cache line and one word of a bit mask.
  HEAP_GROUP_BLOCKS = 64,
};

// Makes the states of a new span's blocks: fresh or freed, and the padding.
void heap_span_state_init(uint8_t *states, const heap_class_info_t *info,
                          bool is_zeroed);

// Returns one bit for each block of a group that is free. By the owner; blocks
// that other threads free meanwhile may or may not be in it.
uint64_t heap_span_free_mask(const heap_page_t *page, size_t group);

// Makes `free_groups` true and returns the number of blocks that are not free,
// cached ones included; as above.
uint32_t heap_span_recount(heap_page_t *page);

// The same, and the hint that others freed blocks is cleared before.
void heap_span_recount_hinted(heap_page_t *page);

// Gives whole pages of the kernel's back, which read as zero then.
typedef bool (*heap_span_discard_t)(uintptr_t address, size_t size_bytes);

// Gives those pages back in which no block is live, cached or reserved; blocks
// that lie in them are as new then. Returns how many bytes. By the owner.
size_t heap_span_discard_idle(heap_page_t *page, heap_span_discard_t discard);

// Tells whether all blocks that are said to be all zero are. Reads all of their
// memory.
bool heap_span_is_fresh_zero(const heap_page_t *page);

// Returns the first impossible state's name, or NULL; `out_busy` is the number
// of blocks that are not free.
const char *heap_span_state_check(const heap_page_t *page, uint32_t *out_busy);

// Returns the lengths of the span that the page is a part of.
static inline const heap_class_info_t *heap_span_info(const heap_page_t *page) {
  return heap_class_info_in(page->shape, page->size_class);
}

// Of its blocks and the rest behind them: without guard pages.
static inline size_t heap_span_bytes(const heap_page_t *page) {
  return (size_t)heap_span_info(page)->page_count *
             ((size_t)HEAP_PAGE_BYTES >> page->shape) -
         2 * (size_t)HEAP_GUARD_BYTES;
}

static inline uint32_t heap_class_group_count(const heap_class_info_t *info) {
  return (info->block_count + HEAP_GROUP_BLOCKS - 1) / HEAP_GROUP_BLOCKS;
}

static inline uint32_t heap_span_group_count(const heap_page_t *page) {
  return heap_class_group_count(heap_span_info(page));
}

// Finds the state of the small block that starts at `ptr`; false when that is
// not the start of a small block (without checks: the page must be a span's).
HEAP_FAST_PATH bool heap_small_block_state(const heap_page_t *page,
                                           const void *ptr,
                                           uint8_t **out_state) {
  uint64_t offset = (uintptr_t)ptr - page->start;
  uint64_t product = offset * page->reciprocal;
  if (HEAP_CHECKED &&
      __builtin_expect((uint32_t)product >= page->reciprocal, 0)) {
    return false;
  }
  *out_state = page->states + (product >> 32);
  return true;
}

// Tells which block of the span an address in it lies in; false: none, it is in
// the rest behind the last one.
static inline bool heap_span_block_at(const heap_page_t *page,
                                      uintptr_t address, size_t *out_index) {
  const heap_class_info_t *info = heap_span_info(page);
  *out_index = (address - page->start) / info->size_bytes;
  return *out_index < info->block_count;
}

// Tells whether another thread freed a block since the owner last looked.
static inline bool heap_span_is_hinted(const heap_page_t *page) {
  return __atomic_load_n(&page->remote_hint, __ATOMIC_SEQ_CST) != 0;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_SPAN_STATE_H_
