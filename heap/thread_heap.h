// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// One thread's part of the default heap: for each size class the spans it owns
// and a bin (bin.h), from which the next allocations come.

#ifndef MY_ALLOC_HEAP_THREAD_HEAP_H_
#define MY_ALLOC_HEAP_THREAD_HEAP_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/bin.h"
#include "heap/harden.h"
#include "heap/page_table.h"
#include "heap/size_class.h"
#include "heap/span.h"

#if HEAP_HARDENED
#include "heap/quarantine.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
  // Slots of all bins: heap_bins_slot_count() of all classes.
  HEAP_SLOT_COUNT = HEAP_HARDENED ? 1256 : 1480,
  HEAP_HINT_WORDS = (HEAP_CLASS_COUNT + 63) / 64,
};

// Bins that were empty, and the allocations that found them so.
typedef struct heap_refill_totals {
  size_t count;
  size_t request_bytes;  // Asked for by these.
  size_t block_bytes;    // What they got.
} heap_refill_totals_t;

// Written by its thread only, but for `remote_hints`.
typedef struct heap_thread {
  heap_bin_t bins[HEAP_CLASS_COUNT];
  heap_class_spans_t spans[HEAP_CLASS_COUNT];
#if HEAP_HARDENED
  heap_quarantine_t quarantine;  // Through which a block comes to its bin.
#endif
  heap_slot_t slots[HEAP_SLOT_COUNT];
  // Spans that its frees gave back since it last needed a group of blocks.
  uint32_t spans_freed;
  heap_refill_totals_t refills;   // Atomic, relaxed: read by statistics.
  struct heap_thread *next;       // Of all. Central lock.
  struct heap_thread *next_free;  // Of the unused, parked. Central lock.
  // One bit a size class: another thread freed a block of one of our spans.
  // Atomic; on a line of its own, since other threads write it.
  uint64_t remote_hints[HEAP_HINT_WORDS] __attribute__((aligned(64)));
} heap_thread_t;

// The calling thread's heap as the fast paths see it: an empty one, from which
// every allocation and free takes the slow path, until the thread has its own,
// and for ever where hooks are set. Never NULL.
extern __thread heap_thread_t *heap_thread_fast
    __attribute__((tls_model("initial-exec")));

// Whether a second thread has ever had a heap, or the first another. Atomic.
extern bool heap_threads_were_two;

// Returns the calling thread's heap, made at its first use; NULL without
// memory for it.
heap_thread_t *heap_thread_get(void);

// Returns the calling thread's heap if it has one.
heap_thread_t *heap_thread_get_existing(void);

// Gives back the spans of `size_class` without live blocks that the calling
// thread has or exited threads left; `with_pages`, of the other ones the pages
// without. Returns how many bytes of the latter. Central lock held.
size_t heap_thread_give_back(size_t size_class, bool with_pages);

// Leaves what waits for new threads to whoever adopts it. Central lock held.
void heap_thread_retire_parked(void);

// Gives back a few of the calling thread's spans that others emptied. Central
// lock held.
void heap_thread_sweep(void);

// Fills the bin of `size_class`, whose mask is empty; false without memory.
bool heap_thread_refill(heap_thread_t *thread, size_t size_class);

// Counts a refill for a request of `size_bytes`.
void heap_thread_note_refill(heap_thread_t *thread, size_t size_class,
                             size_t size_bytes);

// Returns the heap of what exited threads left, which has no bins; `next` leads
// to all others. Central lock held.
const heap_thread_t *heap_thread_all(void);

// Sums over all threads. Central lock held.
heap_refill_totals_t heap_thread_refill_totals(void);

// The owner's free of a block let `page->frees_to_go` fall to 0.
void heap_thread_span_freed(heap_thread_t *thread, heap_page_t *page);

// Frees a small block of another thread's span, given the address of its
// state. False, and nothing done, when the block is not live (any more).
bool heap_thread_free_foreign(heap_page_t *page, uint8_t *state);

#if HEAP_HARDENED
// Frees a small block in state CACHED, of another thread's span.
void heap_thread_release_foreign(heap_page_t *page, uint8_t *state);
#endif

// Returns the first broken invariant's name, or NULL. Central lock held,
// nobody else inside the heap.
const char *heap_thread_check_all(void);

// Returns the bin that is `offset` bytes into the thread's heap.
static inline heap_bin_t *heap_thread_bin(heap_thread_t *thread,
                                          size_t offset) {
  return (heap_bin_t *)(void *)((unsigned char *)thread + offset);
}

// The owner's free of a block in a page of its span that is not the first. Out
// of line, and called last, so that the first pages' free needs no stack frame.
void heap_thread_freed_behind(heap_thread_t *thread, heap_page_t *page,
                              uint8_t *state);

// The owner's free of a block in the first page of its span, as below.
static inline void heap_thread_note_freed(heap_thread_t *thread,
                                          heap_page_t *span, uint8_t *state) {
  if (heap_span_note_freed(span, state)) {
    heap_thread_span_freed(thread, span);
  }
}

// The owner's free of a block that no bin takes.
static inline void heap_thread_release_own(heap_thread_t *thread,
                                           heap_page_t *page, uint8_t *state) {
  if (page->index != 0) {
    heap_thread_freed_behind(thread, page, state);
  } else {
    heap_thread_note_freed(thread, page, state);
  }
}

// The owner's free of a live block, given the address of its state.
static inline void heap_thread_free_own(heap_thread_t *thread,
                                        heap_page_t *page, void *ptr,
                                        uint8_t *state) {
  heap_bin_t *bin = heap_thread_bin(thread, page->bin_offset);
  if (__builtin_expect(heap_bin_put(bin, ptr, state), 1)) {
    return;
  }
  if (!HEAP_CHECKED) {
    heap_small_block_state(page, ptr, &state);
  }
  heap_thread_release_own(thread, page, state);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_THREAD_HEAP_H_
