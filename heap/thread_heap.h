// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// One thread's part of the heap: for each size class the spans it owns and a
// bin, the group of free blocks that the next allocations come from.

#ifndef MY_ALLOC_HEAP_THREAD_HEAP_H_
#define MY_ALLOC_HEAP_THREAD_HEAP_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/page_table.h"
#include "heap/size_class.h"
#include "heap/span.h"

#ifdef __cplusplus
extern "C" {
#endif

// A group of the current span. Blocks whose bit is set are free and reserved
// for this bin: the span counts them as live.
typedef struct heap_bin {
  uint64_t mask;
  unsigned char *base;  // Block of bit 0.
  uint8_t *states;      // Its state; the group's others follow.
  uint32_t block_bytes;
} heap_bin_t;

typedef struct heap_class_spans {
  heap_page_t *current;  // NULL, or the span that the bin is a group of.
  heap_span_list_head_t partial;
  heap_span_list_head_t full;  // Oldest first.
} heap_class_spans_t;

// Written by its thread only, but for `remote_hints`.
typedef struct heap_thread {
  heap_bin_t bins[HEAP_CLASS_COUNT];
  heap_class_spans_t spans[HEAP_CLASS_COUNT];
  struct heap_thread *next;       // Of all. Immutable once published.
  struct heap_thread *next_free;  // Of the unused. Central lock.
  // One bit a size class: another thread freed a block of one of our spans.
  // Atomic; on a line of its own, since other threads write it.
  uint64_t remote_hints __attribute__((aligned(64)));
} heap_thread_t;

// The calling thread's heap as the fast paths see it: an empty one, from which
// every allocation and free takes the slow path, until the thread has its own,
// and for ever where hooks are set. Never NULL.
extern _Thread_local heap_thread_t *heap_thread_fast
    __attribute__((tls_model("initial-exec")));

// Returns the calling thread's heap, made at its first use; NULL without
// memory for it.
heap_thread_t *heap_thread_get(void);

// Returns the calling thread's heap if it has one.
heap_thread_t *heap_thread_get_existing(void);

// Fills the bin of `size_class`, whose mask is empty; false without memory.
bool heap_thread_refill(heap_thread_t *thread, size_t size_class);

// The owner's free of a block let `page->frees_to_go` fall to 0.
void heap_thread_span_freed(heap_thread_t *thread, heap_page_t *page);

// Tells the owner of `page` that another thread set a block's state to freed.
void heap_thread_hint(heap_page_t *page);

// Returns the first broken invariant's name, or NULL. Central lock held,
// nobody else inside the heap.
const char *heap_thread_check_all(void);

// Takes one block out of a bin whose mask is not empty. `out_fresh` tells
// whether all its bytes are zero.
static inline void *heap_bin_take(heap_bin_t *bin, bool *out_fresh) {
  uint64_t mask = bin->mask;
  unsigned bit = (unsigned)__builtin_ctzll(mask);
  bin->mask = mask & (mask - 1);
  uint8_t *state = bin->states + bit;
  *out_fresh = __atomic_load_n(state, __ATOMIC_RELAXED) == HEAP_BLOCK_FRESH;
  // Relaxed: whoever frees the block got it from us by some synchronisation.
  __atomic_store_n(state, HEAP_BLOCK_LIVE, __ATOMIC_RELAXED);
  return bin->base + (size_t)bit * bin->block_bytes;
}

// The owner's free of a live block, given the address of its state.
static inline void heap_thread_free_own(heap_thread_t *thread,
                                        heap_page_t *page, uint8_t *state) {
  // Relaxed: only we hand the block out again, or adopters behind the lock.
  __atomic_store_n(state, HEAP_BLOCK_FREED, __ATOMIC_RELAXED);
  heap_bin_t *bin = &thread->bins[page->size_class];
  size_t bit = (size_t)(state - bin->states);
  if (bit < HEAP_GROUP_BLOCKS) {
    bin->mask |= UINT64_C(1) << bit;
  } else if (--page->frees_to_go == 0) {
    heap_thread_span_freed(thread, page);
  }
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_THREAD_HEAP_H_
