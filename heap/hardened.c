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
// Here is what most calls do: a block of the thread's bin is chosen, of those
// in its slots or else of its group, looked at and finished; a small block of
// any thread with nothing wrong about it is claimed, zeroed and put into the
// calling thread's quarantine, from where it goes to its bin. Both are there
// twice: with all defences on their way, for blocks so short that there is no
// loop, and for all small blocks. Everything else is in hardened_alloc.c,
// hardened_free.c, hardened_realloc.c.
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

enum {
  // What can be asked for of blocks of 32 to HEAP_SHORT_BYTES.
  SHORT_MIN_BYTES = 16 - HEAP_CANARY_BYTES + 1,
  SHORT_MAX_BYTES = HEAP_SHORT_BYTES - HEAP_CANARY_BYTES,
};

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

static __attribute__((noinline)) void *alloc_other(size_t size_bytes,
                                                   const void *caller) {
  bool fresh;
  void *ptr = alloc_at_hand(size_bytes, &fresh, caller);
  return __builtin_expect(ptr != NULL, 1)
             ? ptr
             : heap_alloc_called(size_bytes, caller);
}

// Cleans a block that somebody wrote to, and finishes it.
static __attribute__((noinline)) void *alloc_written(void *ptr,
                                                     size_t size_bytes,
                                                     size_t space_bytes,
                                                     const void *caller) {
  heap_alloc_verify(ptr, space_bytes, ptr, space_bytes, caller);
  heap_canary_set_short(ptr, size_bytes, space_bytes);
  return ptr;
}

// Takes a short block of the bin's group.
static __attribute__((noinline)) void *alloc_short_of_group(
    heap_thread_t *thread, heap_bin_t *bin, size_t size_bytes,
    const void *caller) {
  size_t space_bytes = bin->block_bytes;
  bool fresh;
  void *ptr = heap_alloc_reserved(
      bin, heap_random_take_bit_of(&thread->quarantine.random, bin->mask),
      &fresh);
  if (__builtin_expect(!fresh && !heap_is_zero_short(ptr, space_bytes), 0)) {
    return alloc_written(ptr, size_bytes, space_bytes, caller);
  }
  heap_canary_set_short(ptr, size_bytes, space_bytes);
  return ptr;
}

// Here nothing is called but last, so that no register has to be saved.
void *heap_alloc_slow(size_t size_bytes) {
  if (__builtin_expect(
          size_bytes - SHORT_MIN_BYTES <= SHORT_MAX_BYTES - SHORT_MIN_BYTES &&
              heap_harden_has(HEAP_HARDEN_SHORT),
          1)) {
    heap_thread_t *thread = heap_thread_fast;
    heap_bin_t *bin = heap_thread_bin(
        thread, heap_bin_offset_lookup(size_bytes + HEAP_CANARY_BYTES));
    size_t cached_count = heap_bin_cached_count(bin);
    // Not of a thread without a heap: nothing of that is there but the bins.
    if (__builtin_expect((cached_count | bin->mask) != 0 &&
                             heap_random_has_bytes(&thread->quarantine.random),
                         1)) {
      if (__builtin_expect(cached_count == 0, 0)) {
        return alloc_short_of_group(thread, bin, size_bytes,
                                    __builtin_return_address(0));
      }
      size_t space_bytes = bin->block_bytes;
      void *ptr = heap_alloc_choose(
          bin,
          heap_random_take(&thread->quarantine.random) * cached_count >> 8);
      if (__builtin_expect(!heap_is_zero_short(ptr, space_bytes), 0)) {
        return alloc_written(ptr, size_bytes, space_bytes,
                             __builtin_return_address(0));
      }
      heap_canary_set_short(ptr, size_bytes, space_bytes);
      return ptr;
    }
  }
  return alloc_other(size_bytes, __builtin_return_address(0));
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

// Tells whether the block at `ptr` is live and small, and its state.
HEAP_FAST_PATH bool is_live_small(const heap_page_t *page, const void *ptr,
                                  uint8_t **out_state) {
  return heap_block_state(page, ptr, out_state) &&
         __atomic_load_n(*out_state, __ATOMIC_RELAXED) == HEAP_BLOCK_LIVE;
}

// Tells whether the thread has a heap of its own, and no hooks are set.
HEAP_FAST_PATH bool has_quarantine(heap_thread_t *thread,
                                   const heap_page_t *page) {
  return heap_thread_bin(thread, page->bin_offset)->slot_count != 0;
}

static __attribute__((noinline)) void free_other(void *ptr,
                                                 const void *caller) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  heap_thread_t *thread = heap_thread_fast;
  size_t space_bytes = heap_class_info[page->size_class].size_bytes;
  uint8_t *state;
  size_t size_bytes;
  if (__builtin_expect(heap_harden_has(HEAP_HARDEN_WAITS) &&
                           is_live_small(page, ptr, &state) &&
                           has_quarantine(thread, page) &&
                           heap_canary_check(ptr, space_bytes, &size_bytes) &&
                           heap_block_is_whole_before(page, ptr) &&
                           heap_free_claim(state),
                       1)) {
    heap_free_scrub(ptr, space_bytes);
    heap_quarantine_push(thread, (heap_waiting_t){page, state}, space_bytes);
    return;
  }
  heap_free_called(ptr, caller);
}

// A block, if there is one, has left the quarantine, in which there is too much
// still.
static __attribute__((noinline)) void release_and_shrink(heap_thread_t *thread,
                                                         heap_page_t *page,
                                                         uint8_t *state) {
  if (page != NULL) {
    heap_waiting_t block = {page, state};
    heap_quarantine_release(thread, block, heap_waiting_bytes(block));
  }
  heap_quarantine_shrink(thread);
}

// As heap_quarantine_push(), but that nothing is called but last.
HEAP_FAST_PATH void push_short(heap_thread_t *thread, heap_waiting_t block,
                               size_t block_bytes) {
  heap_quarantine_t *waiting = &thread->quarantine;
  size_t sum_bytes = waiting->bytes + block_bytes;
  size_t left_bytes = 0;
  block = heap_quarantine_shuffle(waiting, block,
                                  heap_random_take(&waiting->random));
  if (__builtin_expect(block.page != NULL, 1)) {
    block = heap_quarantine_enqueue(waiting, block);
  }
  if (__builtin_expect(block.page != NULL, 1)) {
    left_bytes = heap_waiting_bytes(block);
    sum_bytes -= left_bytes;
  }
  waiting->bytes = sum_bytes;
  if (__builtin_expect(sum_bytes > HEAP_QUARANTINE_BYTES, 0)) {
    release_and_shrink(thread, block.page, block.state);
  } else if (__builtin_expect(block.page != NULL, 1)) {
    heap_quarantine_release(thread, block, left_bytes);
  }
}

// As heap_alloc_slow().
void heap_free_slow(void *ptr) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  heap_thread_t *thread = heap_thread_fast;
  size_t space_bytes = heap_class_info[page->size_class].size_bytes;
  uint8_t *state;
  // Both canaries, of which neither may be in a cache.
  __builtin_prefetch((const void *)((uintptr_t)ptr - HEAP_CANARY_BYTES));
  __builtin_prefetch(
      (const void *)((uintptr_t)ptr + space_bytes - HEAP_CANARY_BYTES));
  if (__builtin_expect(space_bytes - 32 <= HEAP_SHORT_BYTES - 32 &&
                           heap_harden_has(HEAP_HARDEN_SHORT) &&
                           is_live_small(page, ptr, &state) &&
                           has_quarantine(thread, page) &&
                           heap_random_has_bytes(&thread->quarantine.random) &&
                           heap_canary_check_short(ptr, space_bytes) &&
                           (uintptr_t)ptr != page->start &&
                           heap_canary_is_whole_before(ptr) &&
                           heap_free_claim(state),
                       1)) {
    heap_zero_short(ptr, space_bytes);
    push_short(thread, (heap_waiting_t){page, state}, space_bytes);
    return;
  }
  free_other(ptr, __builtin_return_address(0));
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
