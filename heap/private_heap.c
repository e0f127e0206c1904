// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A private heap is one range of addresses (private_heap_create.c), so
// everything about a pointer is arithmetic. A call takes the lock, asks
// segregated.c or piece.c, or for a TLSF's plain blocks fit_tlsf.h, which is
// inline, and grows the heap when there is nothing. What it met that was wrong
// it reports when the lock is free.
//
// Where there is no lock, an alloc or a free of a TLSF or of a segregated heap
// tries the inline functions at once; what these do not do, and whatever looks
// wrong, is left to the long way, which begins anew.

#include "heap/private_heap.h"

#include <errno.h>
#include <string.h>

#include "heap/fatal.h"
#include "heap/fit_tlsf.h"
#include "heap/piece.h"
#include "heap/private_heap_call.h"
#include "heap/private_memory.h"
#include "heap/segregated.h"

// No block is aligned to more.
#define ALIGN_MAX_BYTES ((size_t)1 << 46)

void heap_private_leave_broken(heap_t *heap, const char *function,
                               void *caller) {
  const heap_call_t call = {function, caller};
  uint32_t broken_at = heap->broken_at;
  heap->broken_at = HEAP_FIT_NONE;
  heap_private_unlock(heap);
  uintptr_t piece =
      broken_at == HEAP_FIT_NONE - 1
          ? 0
          : heap->base + ((uintptr_t)broken_at << heap->granule_shift);
  int saved_errno = errno;
  heap_report_misuse(HEAP_MISUSE_WRITTEN, &call, (void *)piece, 0, 0);
  errno = saved_errno;
}

// A live block, or none: of length 0.
typedef struct block {
  uint32_t start;
  uint32_t length;
} block_t;

// Tells whether a block of `heap`, which is not segregated, starts at `ptr`,
// and where: it is the start of a piece, and of none that is free.
static inline bool is_live(const heap_t *heap, uint32_t granule_shift,
                           const void *ptr, uint32_t *out_start) {
  uintptr_t offset = (uintptr_t)ptr - heap->base;
  // What is no multiple of a granule becomes far too large.
  uintptr_t granule = offset >> granule_shift | offset << (64 - granule_shift);
  if (granule >= heap->count) {
    return false;
  }
  uint64_t live = heap->starts.levels[0][granule / 64] &
                  ~heap->frees.levels[0][granule / 64];
  *out_start = (uint32_t)granule;
  return (live >> (granule % 64) & 1) != 0;
}

// Lock held; not in a segregated heap.
static inline block_t locate(heap_t *heap, const void *ptr) {
  uint32_t start;
  if (!is_live(heap, heap->granule_shift, ptr, &start)) {
    return (block_t){0};
  }
  ++heap->steps;
  return (block_t){
      .start = start,
      .length = heap_bit_tree_next(&heap->starts, start + 1) - start};
}

// Tells what `ptr` is, which is not the start of a live block.
static heap_misuse_t diagnose(heap_t *heap, const void *ptr,
                              uintptr_t *out_block, size_t *out_block_bytes) {
  if (heap->segregated != NULL) {
    return heap_segregated_diagnose(heap, (uintptr_t)ptr, out_block,
                                    out_block_bytes);
  }
  uintptr_t granule = ((uintptr_t)ptr - heap->base) >> heap->granule_shift;
  if (granule >= heap->count) {
    return HEAP_MISUSE_FOREIGN;
  }
  ++heap->steps;
  uint32_t start = heap_bit_tree_prev(&heap->starts, (uint32_t)granule);
  *out_block = (uintptr_t)heap_private_address(heap, start);
  if (heap_bit_tree_has(&heap->frees, start)) {
    return HEAP_MISUSE_FREED;
  }
  *out_block_bytes = (size_t)heap_fit_length(heap, start)
                     << heap->granule_shift;
  return HEAP_MISUSE_INTERIOR;
}

// Ends a call whose pointer is not the start of a live block, and says what it
// is. Keeps errno.
static __attribute__((cold, noinline)) void leave_wrong(heap_t *heap,
                                                        const void *ptr,
                                                        uint64_t steps,
                                                        const char *function,
                                                        void *caller) {
  const heap_call_t call = {function, caller};
  uintptr_t block = heap->base;
  size_t block_bytes = 0;
  heap_misuse_t misuse = diagnose(heap, ptr, &block, &block_bytes);
  heap_private_leave(heap, steps, function, caller);
  int saved_errno = errno;
  heap_report_misuse(misuse, &call, ptr, block, block_bytes);
  errno = saved_errno;
}

// Returns where the granules that are free up to the end start.
static uint32_t free_end(const heap_t *heap) {
  uint32_t end = heap->count;
  while (end > 0 && heap_bit_tree_has(&heap->frees, end - 1)) {
    end = heap_bit_tree_prev(&heap->starts, end - 1);
  }
  return end;
}

// Adds memory so that a free piece of `wanted` granules is at the end.
static bool grow(heap_t *heap, uint64_t wanted) {
  uint64_t start = free_end(heap);
  if (heap->is_buddy) {
    // At a multiple of its length.
    start = (start + wanted - 1) / wanted * wanted;
  }
  uint64_t end = start + wanted;
  uint64_t steps = heap->steps;
  // It may be there but in a list that was not looked at: one granule more.
  bool has_grown =
      heap_private_extend(heap, end > heap->count ? end - heap->count : 1);
  heap->steps = steps;  // See piece.c.
  return has_grown;
}

// Returns the granules of a block, or 0: more than there can be.
static inline uint32_t length_of(const heap_t *heap, size_t size_bytes) {
  if (size_bytes > (size_t)heap->capacity << heap->granule_shift) {
    return 0;
  }
  size_t length =
      (size_bytes + heap->options.granule_bytes - 1) >> heap->granule_shift;
  return length == 0 ? 1 : (uint32_t)length;
}

static void *take_piece(heap_t *heap, size_t align_bytes, size_t size_bytes) {
  uint32_t length = length_of(heap, size_bytes);
  if (length == 0) {
    return NULL;
  }
  uint32_t start = heap_piece_take(heap, length, align_bytes);
  if (start == HEAP_FIT_NONE) {
    uint64_t wanted = heap->fit->sure_length(heap, length, align_bytes);
    if (wanted == 0 || !grow(heap, wanted)) {
      return NULL;
    }
    start = heap_piece_take(heap, length, align_bytes);
  }
  return start == HEAP_FIT_NONE ? NULL : heap_private_address(heap, start);
}

// Lock held. `is_growing`: for what a smaller block has. `out_zeroed` tells
// whether the block is known to be all zero.
static void *take(heap_t *heap, size_t align_bytes, size_t size_bytes,
                  bool is_growing, bool *out_zeroed) {
  *out_zeroed = false;
  if (align_bytes > ALIGN_MAX_BYTES) {
    return NULL;
  }
  if (align_bytes < heap->options.granule_bytes) {
    align_bytes = heap->options.granule_bytes;
  }
  return heap->segregated != NULL
             ? heap_segregated_take(heap, align_bytes, size_bytes, is_growing,
                                    out_zeroed)
             : take_piece(heap, align_bytes, size_bytes);
}

static __attribute__((cold, noinline)) void end_free(
    heap_t *heap, heap_fit_tlsf_freed_t freed, block_t block, uint32_t end) {
  heap_bit_tree_settle(&heap->starts, block.start);
  heap_bit_tree_settle(&heap->starts, block.start + block.length);
  if (freed == HEAP_FIT_TLSF_BROKEN) {
    heap_piece_join(heap, block.start, end - block.start);
  }
}

// Lock held.
static void give(heap_t *heap, block_t block) {
  if (!heap->is_tlsf) {
    heap_piece_free(heap, block.start, block.length);
    return;
  }
  uint32_t end = block.start + block.length;
  heap_fit_tlsf_freed_t freed = heap_fit_tlsf_free(
      heap, heap_fit_tlsf_tuning_of(heap), block.start, &end, true);
  if (freed != HEAP_FIT_TLSF_DONE) {
    end_free(heap, freed, block, end);
  }
}

// heap_alloc_in() for a function of another name. `is_cleared`: all zero.
static __attribute__((noinline)) void *alloc_for(
    heap_t *heap, size_t align_bytes, size_t size_bytes, bool is_cleared,
    const char *function, void *caller) {
  uint64_t steps = heap_private_enter(heap);
  bool zeroed;
  void *ptr = take(heap, align_bytes, size_bytes, false, &zeroed);
  if (is_cleared && !zeroed && ptr != NULL) {
    // Not later: another thread may reset the heap, and have the memory then.
    memset(ptr, 0, size_bytes);
  }
  heap_private_leave(heap, steps, function, caller);
  if (ptr == NULL) {
    errno = ENOMEM;
  }
  return ptr;
}

// Lock held.
static void *take_plain(heap_t *heap, size_t size_bytes) {
  if (heap->segregated != NULL) {
    return heap_segregated_take_plain(heap, size_bytes);
  }
  uint32_t start = HEAP_FIT_NONE;
  if (heap->is_tlsf) {
    start = heap_fit_tlsf_take(
        heap, heap_fit_tlsf_length(heap_fit_tlsf_tuning_of(heap), size_bytes));
  }
  return start == HEAP_FIT_NONE ? NULL : heap_private_address(heap, start);
}

// heap_alloc_in() for any heap.
static __attribute__((noinline)) void *alloc(heap_t *heap, size_t size_bytes,
                                             void *caller) {
  uint64_t steps = heap_private_enter(heap);
  void *ptr = take_plain(heap, size_bytes);
  bool zeroed;
  ptr = ptr != NULL ? ptr : take(heap, 1, size_bytes, false, &zeroed);
  heap_private_leave(heap, steps, "alloc", caller);
  if (ptr == NULL) {
    errno = ENOMEM;
  }
  return ptr;
}

// heap_alloc_in() for a TLSF without a lock: two functions, as each saves as
// many registers as it needs. This one ends an alloc of [start, rest).
static __attribute__((noinline)) void *alloc_part(heap_t *heap, uint32_t list,
                                                  uint32_t start, uint32_t end,
                                                  uint32_t rest, void *caller) {
  uint64_t steps = heap->steps;
  bool is_above;
  if (!heap_fit_tlsf_take_part(heap, HEAP_FIT_TLSF_TUNING, list, start, end,
                               rest, &is_above)) {
    return alloc(heap, (size_t)(rest - start) << HEAP_FIT_GRANULE_SHIFT,
                 caller);
  }
  if (__builtin_expect(is_above, 0)) {
    heap_bit_tree_settle(&heap->starts, rest);
  }
  heap_private_note_longest(heap, steps);
  return heap_fit_tlsf_links(heap, HEAP_FIT_TLSF_TUNING, start);
}

static __attribute__((noinline)) void *alloc_plain_tlsf(heap_t *heap,
                                                        size_t size_bytes,
                                                        void *caller) {
  const heap_fit_tlsf_tuning_t tuning = HEAP_FIT_TLSF_TUNING;
  uint32_t length = heap_fit_tlsf_length(tuning, size_bytes);
  uint32_t list;
  uint32_t end;
  uint32_t start = length == 0 ? HEAP_FIT_NONE
                               : heap_fit_tlsf_find(heap, tuning, length, false,
                                                    &list, &end);
  if (__builtin_expect(start == HEAP_FIT_NONE, 0)) {
    return alloc(heap, size_bytes, caller);
  }
  if (end - start - length >= heap->split_length) {
    return alloc_part(heap, list, start, end, start + length, caller);
  }
  uint64_t steps = heap->steps;
  if (!heap_fit_tlsf_take_whole(heap, tuning, list, start, end)) {
    return alloc(heap, size_bytes, caller);
  }
  heap_private_note_longest(heap, steps);
  return heap_fit_tlsf_links(heap, tuning, start);
}

void *heap_alloc_in(heap_t *heap, size_t size_bytes) {
  void *caller = __builtin_return_address(0);
  if (heap->plain == HEAP_FIT_PLAIN_SEGREGATED) {
    void *ptr = heap_segregated_take_plain(heap, size_bytes);
    return ptr != NULL ? ptr : alloc(heap, size_bytes, caller);
  }
  return heap->plain == HEAP_FIT_PLAIN_TLSF
             ? alloc_plain_tlsf(heap, size_bytes, caller)
             : alloc(heap, size_bytes, caller);
}

void *heap_calloc_in(heap_t *heap, size_t count, size_t size_bytes) {
  size_t total_bytes;
  if (__builtin_mul_overflow(count, size_bytes, &total_bytes)) {
    errno = ENOMEM;
    return NULL;
  }
  return alloc_for(heap, 1, total_bytes, true, "calloc",
                   __builtin_return_address(0));
}

void *heap_aligned_alloc_in(heap_t *heap, size_t align_bytes,
                            size_t size_bytes) {
  if (!heap_fit_is_power_of_two(align_bytes)) {
    errno = EINVAL;
    return NULL;
  }
  return alloc_for(heap, align_bytes, size_bytes, false, "aligned_alloc",
                   __builtin_return_address(0));
}

// heap_free_in() for any heap and pointer.
static __attribute__((noinline)) void free_in(heap_t *heap, void *ptr,
                                              void *caller) {
  if (ptr == NULL) {
    return;
  }
  uint64_t steps = heap_private_enter(heap);
  if (heap->segregated != NULL) {
    const heap_segregated_block_t block = heap_segregated_locate(heap, ptr);
    if (block.size_bytes == 0) {
      leave_wrong(heap, ptr, steps, "free", caller);
      return;
    }
    if (block.page == NULL || !heap_segregated_give_plain(heap, ptr, &block)) {
      heap_segregated_give(heap, ptr, &block);
    }
  } else {
    block_t block = locate(heap, ptr);
    if (block.length == 0) {
      leave_wrong(heap, ptr, steps, "free", caller);
      return;
    }
    give(heap, block);
  }
  heap_private_leave(heap, steps, "free", caller);
}

// heap_free_in() for a TLSF without a lock, as above. This one is for a piece
// that may have free neighbours; its length was looked for.
static __attribute__((noinline)) void free_joined(heap_t *heap, void *ptr,
                                                  uint32_t start, uint32_t end,
                                                  void *caller) {
  uint64_t steps = heap->steps;
  uint32_t new_end = end;
  heap_fit_tlsf_freed_t freed =
      heap_fit_tlsf_free(heap, HEAP_FIT_TLSF_TUNING, start, &new_end, false);
  if (__builtin_expect(freed == HEAP_FIT_TLSF_NOT, 0)) {
    free_in(heap, ptr, caller);
    return;
  }
  heap->steps += 3;
  if (__builtin_expect(freed != HEAP_FIT_TLSF_DONE, 0)) {
    end_free(heap, freed, (block_t){start, end - start}, new_end);
    heap_private_leave(heap, steps, "free", caller);
    return;
  }
  heap_private_note_longest(heap, steps);
}

static __attribute__((noinline)) void free_plain_tlsf(heap_t *heap, void *ptr,
                                                      void *caller) {
  uint32_t start;
  uint32_t end = HEAP_BIT_NONE;
  if (is_live(heap, HEAP_FIT_GRANULE_SHIFT, ptr, &start)) {
    end = heap_bit_tree_next_near(&heap->starts, start + 1);
  }
  if (__builtin_expect(end == HEAP_BIT_NONE, 0)) {
    free_in(heap, ptr, caller);
    return;
  }
  uint64_t steps = heap->steps;
  if (heap_bit_tree_has(&heap->frees, end) || start == 0 ||
      heap_bit_tree_has(&heap->frees, start - 1) ||
      !heap_fit_tlsf_free_alone(heap, HEAP_FIT_TLSF_TUNING, start, end)) {
    free_joined(heap, ptr, start, end, caller);
    return;
  }
  heap->steps += 3;
  heap_private_note_longest(heap, steps);
}

// heap_free_in() for a segregated heap without a lock.
static __attribute__((noinline)) void free_plain_segregated(heap_t *heap,
                                                            void *ptr,
                                                            void *caller) {
  heap_segregated_block_t block = heap_segregated_locate(heap, ptr);
  if (block.size_bytes == 0 || block.page == NULL ||
      !heap_segregated_give_plain(heap, ptr, &block)) {
    free_in(heap, ptr, caller);
  }
}

void heap_free_in(heap_t *heap, void *ptr) {
  void *caller = __builtin_return_address(0);
  if (heap->plain == HEAP_FIT_PLAIN_TLSF) {
    free_plain_tlsf(heap, ptr, caller);
  } else if (heap->plain == HEAP_FIT_PLAIN_SEGREGATED) {
    free_plain_segregated(heap, ptr, caller);
  } else {
    free_in(heap, ptr, caller);
  }
}

// Changes the length of the live block at `ptr` where it is, or moves it. NULL:
// there is no room. False: there is no such block. Lock held.
static bool realloc_piece(heap_t *heap, void *ptr, size_t size_bytes,
                          void **out_result) {
  block_t block = locate(heap, ptr);
  uint32_t length = length_of(heap, size_bytes);
  *out_result = NULL;
  if (block.length == 0) {
    return false;
  }
  if (length == 0) {
    return true;
  }
  if (heap_piece_resize(heap, block.start, block.length, length)) {
    *out_result = ptr;
    return true;
  }
  bool zeroed;
  void *copy = take(heap, 1, size_bytes, false, &zeroed);
  if (copy != NULL) {
    size_t old_bytes = (size_t)block.length << heap->granule_shift;
    memcpy(copy, ptr, size_bytes < old_bytes ? size_bytes : old_bytes);
    give(heap, block);
  }
  *out_result = copy;
  return true;
}

// The same in a segregated heap.
static bool realloc_segregated(heap_t *heap, void *ptr, size_t size_bytes,
                               void **out_result) {
  const heap_segregated_block_t block = heap_segregated_locate(heap, ptr);
  *out_result = NULL;
  if (block.size_bytes == 0) {
    return false;
  }
  if (length_of(heap, size_bytes) == 0) {
    return true;
  }
  if (heap_segregated_resize(heap, ptr, &block, size_bytes, false)) {
    *out_result = ptr;
    return true;
  }
  bool zeroed;
  bool is_growing = size_bytes > block.size_bytes;
  void *copy = take(heap, 1, size_bytes, is_growing, &zeroed);
  if (copy != NULL) {
    memcpy(copy, ptr, is_growing ? block.size_bytes : size_bytes);
    heap_segregated_give(heap, ptr, &block);
  } else if (heap_segregated_resize(heap, ptr, &block, size_bytes, true)) {
    copy = ptr;
  }
  *out_result = copy;
  return true;
}

void *heap_realloc_in(heap_t *heap, void *ptr, size_t size_bytes) {
  if (ptr == NULL) {
    return alloc_for(heap, 1, size_bytes, false, "realloc",
                     __builtin_return_address(0));
  }
  uint64_t steps = heap_private_enter(heap);
  void *result;
  bool is_live = heap->segregated != NULL
                     ? realloc_segregated(heap, ptr, size_bytes, &result)
                     : realloc_piece(heap, ptr, size_bytes, &result);
  if (!is_live) {
    leave_wrong(heap, ptr, steps, "realloc", __builtin_return_address(0));
    errno = EINVAL;
    return NULL;
  }
  heap_private_leave(heap, steps, "realloc", __builtin_return_address(0));
  if (result == NULL) {
    errno = ENOMEM;
  }
  return result;
}

size_t heap_usable_size_in(heap_t *heap, const void *ptr) {
  if (ptr == NULL) {
    return 0;
  }
  uint64_t steps = heap_private_enter(heap);
  size_t usable_bytes = heap->segregated != NULL
                            ? heap_segregated_locate(heap, ptr).size_bytes
                            : (size_t)locate(heap, ptr).length
                                  << heap->granule_shift;
  if (usable_bytes == 0) {
    leave_wrong(heap, ptr, steps, "usable_size", __builtin_return_address(0));
    return 0;
  }
  heap_private_leave(heap, steps, "usable_size", __builtin_return_address(0));
  return usable_bytes;
}
