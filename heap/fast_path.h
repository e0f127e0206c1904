// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What an allocation and a free of a small block cost when nothing special
// happens; inlined into heap_alloc/heap_free and into malloc/free.

#ifndef MY_ALLOC_HEAP_FAST_PATH_H_
#define MY_ALLOC_HEAP_FAST_PATH_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/heap.h"
#include "heap/page_table.h"
#include "heap/size_class.h"
#include "heap/span.h"
#include "heap/thread_heap.h"

#ifdef __cplusplus
extern "C" {
#endif

// Everything else: heap.c. The fast paths end in calls of these, which
// compilers make jumps: what reports name as the caller is then the caller of
// free(). Looking that up here would cost a stack frame.
void *heap_alloc_slow(size_t size_bytes);
void *heap_calloc_slow(size_t size_bytes);
// An alignment that is one, and not below HEAP_MIN_ALIGN_BYTES.
void *heap_aligned_alloc_slow(size_t align_bytes, size_t size_bytes,
                              const void *caller);
void heap_free_slow(void *ptr);
// See heap_free_sized; `may_have_shrunk` by heap_realloc.
void heap_free_sized_slow(void *ptr, size_t align_bytes, size_t size_bytes,
                          bool may_have_shrunk);

#if !HEAP_HARDENED
// Relaxed loads, compared. Where the processor compares memory itself that is
// one instruction less, which compilers do not make of an atomic load.
HEAP_FAST_PATH bool heap_state_is_live(const uint8_t *state) {
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
  bool is_live;
  __asm__("cmpb %2, %1" : "=@cce"(is_live) : "m"(*state), "i"(HEAP_BLOCK_LIVE));
  return is_live;
#else
  return __atomic_load_n(state, __ATOMIC_RELAXED) == HEAP_BLOCK_LIVE;
#endif
}

HEAP_FAST_PATH bool heap_span_is_of(const heap_page_t *page,
                                    const heap_thread_t *thread) {
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
  bool is_of;
  __asm__("cmpq %2, %1" : "=@cce"(is_of) : "m"(page->owner), "r"(thread));
  return is_of;
#else
  return __atomic_load_n(&page->owner, __ATOMIC_RELAXED) == thread;
#endif
}

// Tells whether a live small block starts at `ptr`, whose page it is. Without
// checks that is believed.
HEAP_FAST_PATH bool heap_is_live(const heap_page_t *page, const void *ptr,
                                 uint8_t **out_state) {
  if (!HEAP_CHECKED) {
    *out_state = NULL;  // Found if it is needed.
    return true;
  }
  return heap_small_block_state(page, ptr, out_state) &&
         heap_state_is_live(*out_state);
}

HEAP_FAST_PATH void *heap_alloc_fast(size_t size_bytes) {
  if (__builtin_expect(size_bytes <= HEAP_TABLE_MAX_BYTES, 1)) {
    heap_bin_t *bin =
        heap_thread_bin(heap_thread_fast, heap_bin_offset_lookup(size_bytes));
    void *ptr = heap_bin_pop(bin);
    if (__builtin_expect(ptr != NULL, 1)) {
      return ptr;
    }
    if (__builtin_expect(bin->mask != 0, 1)) {
      bool fresh;
      return heap_bin_take(bin, &fresh);
    }
  }
  return heap_alloc_slow(size_bytes);
}

HEAP_FAST_PATH void heap_free_fast(void *ptr) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  heap_thread_t *thread = heap_thread_fast;
  uint8_t *state;
  if (__builtin_expect(
          heap_is_live(page, ptr, &state) && heap_span_is_of(page, thread),
          1)) {
    heap_thread_free_own(thread, page, ptr, state);
    return;
  }
  heap_free_slow(ptr);
}

// The class of an unaligned small block tells enough of its size. Pages that
// are no spans have the first class's bin offset, but no reciprocal.
HEAP_FAST_PATH void heap_free_sized_fast(void *ptr, size_t align_bytes,
                                         size_t size_bytes,
                                         bool may_have_shrunk) {
  const heap_page_t *page = heap_page_of((uintptr_t)ptr);
  if (!HEAP_CHECKED ||
      __builtin_expect(
          align_bytes <= HEAP_MIN_ALIGN_BYTES &&
              size_bytes <= HEAP_TABLE_MAX_BYTES &&
              page->bin_offset == heap_bin_offset_lookup(size_bytes) &&
              page->reciprocal != 0,
          1)) {
    heap_free_fast(ptr);
  } else {
    heap_free_sized_slow(ptr, align_bytes, size_bytes, may_have_shrunk);
  }
}

#else  // HEAP_HARDENED: hardened.c has fast paths of its own.

HEAP_FAST_PATH void *heap_alloc_fast(size_t size_bytes) {
  return heap_alloc_slow(size_bytes);
}

HEAP_FAST_PATH void heap_free_fast(void *ptr) {
  heap_free_slow(ptr);
}

HEAP_FAST_PATH void heap_free_sized_fast(void *ptr, size_t align_bytes,
                                         size_t size_bytes,
                                         bool may_have_shrunk) {
  heap_free_sized_slow(ptr, align_bytes, size_bytes, may_have_shrunk);
}

#endif  // HEAP_HARDENED

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_FAST_PATH_H_
