// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A private heap is one range of addresses (private_heap_create.c), so
// everything about a pointer is arithmetic. A call takes the lock, asks
// segregated.c or piece.c, or for a TLSF's plain blocks fit_tlsf.h, which is
// inline, and grows the heap when there is nothing. What it met that was wrong
// it reports when the lock is free.

#include "heap/private_heap.h"

#include <errno.h>
#include <string.h>

#include "heap/fatal.h"
#include "heap/fit_tlsf.h"
#include "heap/kernel.h"
#include "heap/piece.h"
#include "heap/private_memory.h"
#include "heap/segregated.h"

// No block is aligned to more.
#define ALIGN_MAX_BYTES ((size_t)1 << 46)

static inline uint64_t enter(heap_t *heap) {
  if (!heap->options.single_threaded) {
    if (__builtin_expect(heap->is_destroyed, 0)) {
      HEAP_DIE("private heap: used after heap_destroy");
    }
    pthread_mutex_lock(&heap->lock);
  }
  return heap->steps;
}

static inline void unlock(heap_t *heap) {
  if (!heap->options.single_threaded) {
    pthread_mutex_unlock(&heap->lock);
  }
}

static __attribute__((cold, noinline)) void leave_broken(heap_t *heap,
                                                         const char *function,
                                                         void *caller) {
  const heap_call_t call = {function, caller};
  uint32_t broken_at = heap->broken_at;
  heap->broken_at = HEAP_FIT_NONE;
  unlock(heap);
  uintptr_t piece =
      broken_at == HEAP_FIT_NONE - 1
          ? 0
          : heap->base + ((uintptr_t)broken_at << heap->granule_shift);
  int saved_errno = errno;
  heap_report_misuse(HEAP_MISUSE_WRITTEN, &call, (void *)piece, 0, 0);
  errno = saved_errno;
}

// Ends a call that began with `steps`, and reports what it met.
static inline void leave(heap_t *heap, uint64_t steps, const char *function,
                         void *caller) {
  if (heap->steps - steps > heap->max_steps) {
    heap->max_steps = heap->steps - steps;
  }
  if (heap->broken_at != HEAP_FIT_NONE) {
    leave_broken(heap, function, caller);
    return;
  }
  unlock(heap);
}

static inline void *address_of(const heap_t *heap, uint32_t granule) {
  return (void *)(heap->base + ((uintptr_t)granule << heap->granule_shift));
}

// A live block, or none: of length 0.
typedef struct block {
  uint32_t start;
  uint32_t length;
} block_t;

// Lock held; not in a segregated heap.
static inline block_t locate(heap_t *heap, const void *ptr) {
  uintptr_t offset = (uintptr_t)ptr - heap->base;
  uintptr_t granule = offset >> heap->granule_shift;
  if (granule >= heap->count ||
      (offset & (heap->options.granule_bytes - 1)) != 0) {
    return (block_t){0};
  }
  // The start of a piece, and of none that is free.
  uint64_t live = heap->starts.levels[0][granule / 64] &
                  ~heap->frees.levels[0][granule / 64];
  if ((live >> (granule % 64) & 1) == 0) {
    return (block_t){0};
  }
  uint32_t start = (uint32_t)granule;
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
  *out_block = (uintptr_t)address_of(heap, start);
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
  leave(heap, steps, function, caller);
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
  return start == HEAP_FIT_NONE ? NULL : address_of(heap, start);
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

// The same for a block of no special alignment.
static inline void *take_plain(heap_t *heap, size_t size_bytes) {
  if (heap->is_tlsf) {
    uint32_t length = length_of(heap, size_bytes);
    uint32_t start =
        length == 0 ? HEAP_FIT_NONE : heap_fit_tlsf_take(heap, length);
    if (start != HEAP_FIT_NONE) {
      return address_of(heap, start);
    }
  }
  bool zeroed;
  return take(heap, 1, size_bytes, false, &zeroed);
}

// Lock held.
static inline void give(heap_t *heap, block_t block) {
  if (heap->is_tlsf) {
    --heap->live_count;
    heap->live_length -= block.length;
    heap_fit_tlsf_free(heap, block.start, block.length);
  } else {
    heap_piece_free(heap, block.start, block.length);
  }
}

// heap_alloc_in() for a function of another name. `is_cleared`: all zero.
static __attribute__((noinline)) void *alloc_for(
    heap_t *heap, size_t align_bytes, size_t size_bytes, bool is_cleared,
    const char *function, void *caller) {
  uint64_t steps = enter(heap);
  bool zeroed;
  void *ptr = take(heap, align_bytes, size_bytes, false, &zeroed);
  if (is_cleared && !zeroed && ptr != NULL) {
    // Not later: another thread may reset the heap, and have the memory then.
    memset(ptr, 0, size_bytes);
  }
  leave(heap, steps, function, caller);
  if (ptr == NULL) {
    errno = ENOMEM;
  }
  return ptr;
}

void *heap_alloc_in(heap_t *heap, size_t size_bytes) {
  if (heap->segregated != NULL) {
    enter(heap);
    void *ptr = heap_segregated_take_plain(heap, size_bytes);
    unlock(heap);
    return ptr != NULL ? ptr
                       : alloc_for(heap, 1, size_bytes, false, "alloc",
                                   __builtin_return_address(0));
  }
  uint64_t steps = enter(heap);
  void *ptr = take_plain(heap, size_bytes);
  leave(heap, steps, "alloc", __builtin_return_address(0));
  if (ptr == NULL) {
    errno = ENOMEM;
  }
  return ptr;
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

static inline void free_segregated(heap_t *heap, void *ptr, void *caller) {
  uint64_t steps = enter(heap);
  heap_segregated_block_t block = heap_segregated_locate(heap, ptr);
  if (block.size_bytes == 0) {
    leave_wrong(heap, ptr, steps, "free", caller);
    return;
  }
  if (block.page == NULL || !heap_segregated_give_plain(heap, ptr, &block)) {
    const heap_segregated_block_t other = block;
    heap_segregated_give(heap, ptr, &other);
    leave(heap, steps, "free", caller);
    return;
  }
  unlock(heap);
}

void heap_free_in(heap_t *heap, void *ptr) {
  if (ptr == NULL) {
    return;
  }
  if (heap->segregated != NULL) {
    free_segregated(heap, ptr, __builtin_return_address(0));
    return;
  }
  uint64_t steps = enter(heap);
  block_t block = locate(heap, ptr);
  if (block.length == 0) {
    leave_wrong(heap, ptr, steps, "free", __builtin_return_address(0));
    return;
  }
  give(heap, block);
  leave(heap, steps, "free", __builtin_return_address(0));
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
  uint64_t steps = enter(heap);
  void *result;
  bool is_live = heap->segregated != NULL
                     ? realloc_segregated(heap, ptr, size_bytes, &result)
                     : realloc_piece(heap, ptr, size_bytes, &result);
  if (!is_live) {
    leave_wrong(heap, ptr, steps, "realloc", __builtin_return_address(0));
    errno = EINVAL;
    return NULL;
  }
  leave(heap, steps, "realloc", __builtin_return_address(0));
  if (result == NULL) {
    errno = ENOMEM;
  }
  return result;
}

size_t heap_usable_size_in(heap_t *heap, const void *ptr) {
  if (ptr == NULL) {
    return 0;
  }
  uint64_t steps = enter(heap);
  size_t usable_bytes = heap->segregated != NULL
                            ? heap_segregated_locate(heap, ptr).size_bytes
                            : (size_t)locate(heap, ptr).length
                                  << heap->granule_shift;
  if (usable_bytes == 0) {
    leave_wrong(heap, ptr, steps, "usable_size", __builtin_return_address(0));
    return 0;
  }
  leave(heap, steps, "usable_size", __builtin_return_address(0));
  return usable_bytes;
}

void heap_reset(heap_t *heap) {
  uint64_t steps = enter(heap);
  if (heap->segregated != NULL) {
    heap_segregated_reset(heap);
  } else {
    heap_piece_free_all(heap);
  }
  heap->steps = steps;
  leave(heap, steps, "reset", __builtin_return_address(0));
}

// Gives back the pages of a free piece that hold nothing.
static size_t trim(const heap_t *heap, uint32_t start, uint32_t length) {
  uintptr_t first = (uintptr_t)address_of(heap, start);
  uintptr_t end = first + ((uintptr_t)length << heap->granule_shift);
  // The kernel would round up to its pages, into the next block.
  first = heap_fit_round_up(first + sizeof(heap_fit_links_t), heap->page_bytes);
  end &= ~(uintptr_t)(heap->page_bytes - 1);
  bool is_trimmed =
      first < end && heap_kernel->discard((void *)first, end - first);
  return is_trimmed ? end - first : 0;
}

static size_t trim_pieces(heap_t *heap) {
  size_t trimmed_bytes = 0;
  bool is_kernels = heap->reservation != NULL && !heap->options.use_file;
  uint32_t start = is_kernels ? heap_fit_next_free(heap, 0) : HEAP_FIT_NONE;
  while (start != HEAP_FIT_NONE) {
    uint32_t length = heap_fit_length(heap, start);
    trimmed_bytes += trim(heap, start, length);
    start = heap_fit_next_free(heap, start + length);
  }
  return trimmed_bytes;
}

size_t heap_trim_in(heap_t *heap) {
  uint64_t steps = enter(heap);
  size_t trimmed_bytes =
      heap->segregated != NULL ? heap_segregated_trim(heap) : trim_pieces(heap);
  heap->steps = steps;
  leave(heap, steps, "trim", __builtin_return_address(0));
  return trimmed_bytes;
}

static bool walk_pieces(const heap_t *heap, heap_visit_t visit, void *context) {
  bool goes_on = true;
  for (uint32_t start = 0; goes_on && start < heap->count;) {
    uint32_t length = heap_fit_length(heap, start);
    if (!heap_bit_tree_has(&heap->frees, start)) {
      goes_on = visit(context, address_of(heap, start),
                      (size_t)length << heap->granule_shift);
    }
    start += length;
  }
  return goes_on;
}

bool heap_walk_in(heap_t *heap, heap_visit_t visit, void *context) {
  uint64_t steps = enter(heap);
  bool is_done = heap->segregated != NULL
                     ? heap_segregated_walk(heap, visit, context)
                     : walk_pieces(heap, visit, context);
  heap->steps = steps;
  leave(heap, steps, "walk", __builtin_return_address(0));
  return is_done;
}

const char *heap_check_in(heap_t *heap) {
  uint64_t steps = enter(heap);
  const char *broken = heap->segregated != NULL ? heap_segregated_check(heap)
                                                : heap_piece_check(heap);
  heap->steps = steps;
  leave(heap, steps, "check", __builtin_return_address(0));
  return broken;
}

static void count_free_pieces(const heap_t *heap, heap_private_stats_t *stats) {
  uint32_t largest = 0;
  uint32_t start = heap_fit_next_free(heap, 0);
  while (start != HEAP_FIT_NONE) {
    uint32_t length = heap_fit_length(heap, start);
    largest = length > largest ? length : largest;
    ++stats->num_free;
    start = heap_fit_next_free(heap, start + length);
  }
  stats->largest_free_bytes = (size_t)largest << heap->granule_shift;
}

void heap_stats_get_in(heap_t *heap, heap_private_stats_t *out_stats) {
  memset(out_stats, 0, sizeof(*out_stats));
  enter(heap);
  out_stats->num_steps = heap->steps;
  out_stats->max_steps = heap->max_steps;
  if (heap->segregated != NULL) {
    heap_segregated_count_free(heap, out_stats);
  } else {
    count_free_pieces(heap, out_stats);
  }
  heap->steps = out_stats->num_steps;
  out_stats->mapped_bytes = (size_t)heap->count << heap->granule_shift;
  out_stats->live_bytes = (size_t)heap->live_length << heap->granule_shift;
  out_stats->num_live = heap->live_count;
  out_stats->free_bytes = out_stats->mapped_bytes - out_stats->live_bytes;
  out_stats->peak_live_bytes = (size_t)heap->peak_length << heap->granule_shift;
  out_stats->metadata_bytes = heap->metadata_bytes;
  unlock(heap);
}
