// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The public functions of the hardened variant, instead of heap.c. The engine
// below is the same: page table, spans with states out of line, run maps,
// threads' heaps. What is different:
//
//   size                   block                               guards
//   0                      an address without memory           all of it
//   .. 32 KiB - 8          small, in a span of its class       the span's
//   .. below 32 MiB        medium, a run                       its own
//   from 32 MiB            mapped, a mapping of its own        its own
//
// Each block but the empty ones ends in a canary (canary.h), from which the
// requested size follows: that is its usable size, and what sized frees are
// compared with.
//
// Invariant, with zeroing on: memory that is in no live block is zero, whatever
// it was before and becomes next. An allocation looks whether it is, and if
// not, somebody wrote to a block that was freed. calloc writes nothing.
//
// Here is what most calls do: a block of the thread's bin is found, looked at
// and finished; a block of the calling thread with nothing wrong about it is
// claimed, zeroed and put into the thread's quarantine. Everything else is in
// hardened_alloc.c, hardened_free.c, hardened_realloc.c.
//
// Deliberately not done: the order in which a thread's spans are used is not
// random, only groups and blocks within them.

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "heap/fast_path.h"
#include "heap/hardened_internal.h"
#include "heap/heap.h"
#include "heap/quarantine_push.h"

// Returns a block that is at hand, or NULL.
HEAP_FAST_PATH void *alloc_at_hand(size_t size_bytes, bool *out_fresh,
                                   const void *caller) {
  // Not 0.
  if (size_bytes - 1 < HEAP_TABLE_MAX_BYTES - HEAP_CANARY_BYTES) {
    heap_thread_t *thread = heap_thread_fast;
    heap_bin_t *bin = heap_thread_bin(
        thread, heap_bin_offset_lookup(size_bytes + heap_harden.canary_bytes));
    size_t cached_count = heap_bin_cached_count(bin);
    if (__builtin_expect(cached_count != 0, 1)) {
      *out_fresh = false;
      return heap_alloc_pop(thread, bin, cached_count, size_bytes, caller);
    }
    if (__builtin_expect(bin->mask != 0, 1)) {
      return heap_alloc_take(thread, bin, size_bytes, out_fresh, caller);
    }
  }
  return NULL;
}

void *heap_alloc_called(size_t size_bytes, const void *caller) {
  bool fresh;
  return heap_alloc_tell(
      heap_alloc_silently(HEAP_MIN_ALIGN_BYTES, size_bytes, &fresh, caller),
      size_bytes);
}

void *heap_alloc_slow(size_t size_bytes) {
  bool fresh;
  const void *caller = __builtin_return_address(0);
  void *ptr = alloc_at_hand(size_bytes, &fresh, caller);
  return __builtin_expect(ptr != NULL, 1)
             ? ptr
             : heap_alloc_called(size_bytes, caller);
}

void *heap_alloc(size_t size_bytes) {
  return heap_alloc_slow(size_bytes);
}

// Tells whether calloc has to write: what was handed out may not be zero.
static bool must_clear(bool is_fresh) {
  return !is_fresh && !heap_harden_has(HEAP_HARDEN_LOOKS);
}

void *heap_calloc(size_t count, size_t size_bytes) {
  size_t total_bytes;
  bool fresh;
  const void *caller = __builtin_return_address(0);
  if (__builtin_mul_overflow(count, size_bytes, &total_bytes)) {
    errno = ENOMEM;
    return NULL;
  }
  void *ptr = alloc_at_hand(total_bytes, &fresh, caller);
  bool is_told = ptr != NULL;
  if (ptr == NULL) {
    ptr =
        heap_alloc_silently(HEAP_MIN_ALIGN_BYTES, total_bytes, &fresh, caller);
  }
  if (ptr != NULL && total_bytes > 0 && must_clear(fresh)) {
    memset(ptr, 0, total_bytes);
  }
  return is_told ? ptr : heap_alloc_tell(ptr, total_bytes);
}

void heap_free_slow(void *ptr) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  heap_thread_t *thread = heap_thread_fast;
  size_t space_bytes = heap_class_info[page->size_class].size_bytes;
  uint8_t *state;
  // Both canaries, of which neither may be in a cache.
  __builtin_prefetch((const char *)ptr - HEAP_CANARY_BYTES);
  __builtin_prefetch((const char *)ptr + space_bytes - HEAP_CANARY_BYTES);
  size_t size_bytes;
  if (__builtin_expect(
          heap_harden_has(HEAP_HARDEN_WAITS) &&
              heap_block_state(page, ptr, &state) &&
              __atomic_load_n(state, __ATOMIC_RELAXED) == HEAP_BLOCK_LIVE &&
              __atomic_load_n(&page->owner, __ATOMIC_RELAXED) == thread &&
              heap_canary_check(ptr, space_bytes, &size_bytes) &&
              heap_block_is_whole_before(page, ptr) && heap_free_claim(state),
          1)) {
    heap_free_scrub(ptr, space_bytes);
    heap_quarantine_push(thread, (heap_waiting_t){page, state}, space_bytes);
    return;
  }
  heap_free_called(ptr, __builtin_return_address(0));
}

void heap_free(void *ptr) {
  heap_free_slow(ptr);
}

void heap_free_sized(void *ptr, size_t align_bytes, size_t size_bytes) {
  heap_free_sized_slow(ptr, align_bytes, size_bytes, false);
}

void *heap_aligned_alloc_slow(size_t align_bytes, size_t size_bytes,
                              const void *caller) {
  bool fresh;
  return heap_alloc_tell(
      heap_alloc_silently(align_bytes, size_bytes, &fresh, caller), size_bytes);
}

size_t heap_usable_size(void *ptr) {
  const heap_call_t call = {"usable_size", __builtin_return_address(0)};
  heap_block_t block;
  if (ptr == NULL || !heap_block_locate(ptr, &call, &block)) {
    return 0;
  }
  return block.size_bytes;
}
