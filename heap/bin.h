// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Where small blocks come from and go to: for each size class the spans of one
// owner, a thread or a private heap, and a bin, which has the blocks freed last
// and a group of free ones. Knows no arena and no lock; what has to be made or
// given back is the owner's business.

#ifndef MY_ALLOC_HEAP_BIN_H_
#define MY_ALLOC_HEAP_BIN_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/page_table.h"
#include "heap/size_class.h"
#include "heap/span_state.h"

#ifdef __cplusplus
extern "C" {
#endif

// Where a span is, seen from its owner.
typedef enum heap_span_list {
  HEAP_SPAN_CURRENT,  // Blocks of its class are taken from it.
  HEAP_SPAN_PARTIAL,  // Has free blocks.
  HEAP_SPAN_FULL,     // Had none when the owner last looked.
} heap_span_list_t;

// A cached block: free, but kept from the searches of its span.
typedef struct heap_slot {
  void *ptr;       // NULL below the lowest block.
  uint8_t *state;  // HEAP_BLOCK_CACHED. Without checks: not written.
} heap_slot_t;

// Where the blocks of one class come from: first the ones freed last, in a
// stack of slots, then a group of the current span. Blocks whose bit is set in
// `mask` are free and reserved for this bin. To their span, cached and reserved
// blocks count as live.
typedef struct heap_bin {
  heap_slot_t *top;    // The block freed last, or the empty slot.
  heap_slot_t *limit;  // The highest slot.
  uint64_t mask;
  unsigned char *base;  // Block of bit 0.
  uint8_t *states;      // Its state; the group's others follow.
  uint32_t block_bytes;
  uint32_t slot_count;  // That it can hold.
  uint32_t reserved[4];
} heap_bin_t;

// What one owner has of one class.
typedef struct heap_class_spans {
  heap_page_t *current;  // NULL, or the span that the bin is a group of.
  heap_page_list_t partial;
  heap_page_list_t full;  // Oldest first.
} heap_class_spans_t;

// Returns the slots that the bins of the first classes have together, with one
// each that stays empty. Smaller spans have fewer.
size_t heap_bins_slot_count(size_t shape, size_t class_count);

// Makes empty bins for the first classes, of that many slots at `slots`.
void heap_bins_init(heap_bin_t *bins, heap_slot_t *slots, size_t shape,
                    size_t class_count);

// Fills the bin, whose mask is empty, from the current span or a partial one.
// False: there is none with a free block, and no current one any more.
bool heap_bin_refill(heap_bin_t *bin, heap_class_spans_t *spans);

// Returns where the state of a cached block is.
uint8_t *heap_bin_state_of(const heap_slot_t *slot);

// Frees what the bin holds back.
void heap_bin_empty(heap_bin_t *bin);

// A closed bin caches nothing. Closes one without blocks; opens one without
// cached blocks, in the first shape.
void heap_bin_close(heap_bin_t *bin);
void heap_bin_open(heap_bin_t *bin, size_t size_class);

// Tells whether a bin without cached blocks is closed.
static inline bool heap_bin_is_closed(const heap_bin_t *bin) {
  return bin->top == bin->limit;
}

// Makes a span, on no list, the one that the bin is filled from next.
void heap_class_spans_set_current(heap_class_spans_t *spans, heap_page_t *page);

// Appends a span, on no list, to the full ones.
void heap_class_spans_push_full(heap_class_spans_t *spans, heap_page_t *page);

// Returns a partial span, on no list then, or NULL.
heap_page_t *heap_class_spans_pop_partial(heap_class_spans_t *spans);

// The owner's free of a block let `page->frees_to_go` fall to 0. True: nothing
// in the span is live, it is on no list, and must be given back.
bool heap_class_spans_freed(heap_class_spans_t *spans, const heap_bin_t *bin,
                            heap_page_t *page);

// Takes a span back in which nothing is live, and which is on no list.
typedef void (*heap_span_give_back_t)(void *context, heap_page_t *page);

// Empties the bin, counts what is free in each span, gives those back in which
// nothing is live, and puts the others where they belong.
void heap_class_spans_settle(heap_class_spans_t *spans, heap_bin_t *bin,
                             heap_span_give_back_t give_back, void *context);

// Gives what is left of the bin's group back to the current span. Returns the
// span if nothing in it is live or cached: it is on no list, and must be given
// back; or NULL.
heap_page_t *heap_bin_return_group(heap_bin_t *bin, heap_class_spans_t *spans);

// What was met on the way through the spans of owners.
typedef struct heap_bin_census {
  size_t num_spans;
  size_t num_cached;  // Blocks, by their states.
  size_t num_slots;   // That hold one.
} heap_bin_census_t;

// What an owner says of a span of its own: the first broken invariant's name,
// or NULL.
typedef const char *(*heap_bin_check_span_t)(const void *owner,
                                             const heap_page_t *page,
                                             uint32_t *out_busy);

// Returns the span that the address lies in, or NULL.
typedef const heap_page_t *(*heap_bin_find_span_t)(const void *owner,
                                                   uintptr_t address);

// Returns the first broken invariant's name, or NULL. Nobody else inside the
// heap. A bin without slots is not looked at.
const char *heap_class_spans_check(const heap_class_spans_t *spans,
                                   const heap_bin_t *bin, size_t size_class,
                                   const void *owner,
                                   heap_bin_check_span_t check_span,
                                   heap_bin_find_span_t find_span,
                                   heap_bin_census_t *census);

// Returns how many blocks are cached.
static inline size_t heap_bin_cached_count(const heap_bin_t *bin) {
  return bin->slot_count - (size_t)(bin->limit - bin->top);
}

// Takes the block that was freed last; NULL when there is none. Its contents
// are not zero.
static inline void *heap_bin_pop(heap_bin_t *bin) {
  heap_slot_t *top = bin->top;
  void *ptr = top->ptr;
  if (__builtin_expect(ptr != NULL, 1)) {
    bin->top = top - 1;
    if (HEAP_CHECKED) {
      // Relaxed: whoever frees the block got it from us by some
      // synchronisation.
      __atomic_store_n(top->state, HEAP_BLOCK_LIVE, __ATOMIC_RELAXED);
    }
  }
  return ptr;
}

// Takes the lowest block of a group whose mask is not empty. `out_fresh` tells
// whether all its bytes are zero.
static inline void *heap_bin_take(heap_bin_t *bin, bool *out_fresh) {
  uint64_t mask = bin->mask;
  size_t bit = (size_t)__builtin_ctzll(mask);
  bin->mask = mask & (mask - 1);
  uint8_t *state = bin->states + bit;
  *out_fresh = *state == HEAP_BLOCK_FRESH;  // Ours alone while reserved.
  __atomic_store_n(state, HEAP_BLOCK_LIVE, __ATOMIC_RELAXED);
  return bin->base + bit * bin->block_bytes;
}

// Frees a live block, given the address of its state (without checks: NULL will
// do). True: the bin has it. Otherwise it is to be its span's again:
// heap_span_note_freed() comes next.
static inline bool heap_bin_put(heap_bin_t *bin, void *ptr, uint8_t *state) {
  heap_slot_t *top = bin->top;
  if (__builtin_expect(top != bin->limit, 1)) {
    ++top;
    top->ptr = ptr;
    if (HEAP_CHECKED) {
      __atomic_store_n(state, HEAP_BLOCK_CACHED, __ATOMIC_RELAXED);
      top->state = state;
    }
    bin->top = top;
    return true;
  }
  return false;
}

// The owner's free of a block that no bin has, given the address of its state,
// to the span. True: heap_class_spans_freed() comes next.
static inline bool heap_span_note_freed(heap_page_t *span, uint8_t *state) {
  // Relaxed: only we hand the block out again, or adopters behind the lock.
  __atomic_store_n(state, HEAP_BLOCK_FREED, __ATOMIC_RELAXED);
  span->free_groups |= UINT64_C(1)
                       << ((size_t)(state - span->states) / HEAP_GROUP_BLOCKS);
  return --span->frees_to_go == 0;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_BIN_H_
