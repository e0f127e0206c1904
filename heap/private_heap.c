// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A private heap is one range of addresses (private_heap_create.c), so
// everything about a pointer is arithmetic. A call takes the lock, asks
// piece.c, or for a TLSF's plain blocks fit_tlsf.h, which is inline, and grows
// the heap when there is nothing. What it met that was wrong it reports when
// the lock is free.

#include "heap/private_heap.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "heap/fatal.h"
#include "heap/fit_tlsf.h"
#include "heap/kernel.h"
#include "heap/piece.h"

enum {
  GROWTH_SHARE = 8,  // Of what there is.
};

// No block is aligned to more.
#define ALIGN_MAX_BYTES ((size_t)1 << 46)

static inline uint64_t enter(heap_t *heap) {
  if (!heap->options.single_threaded) {
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

// Lock held.
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

// Ends a call whose pointer is not the start of a live block, and says what it
// is. Keeps errno.
static __attribute__((cold, noinline)) void leave_wrong(heap_t *heap,
                                                        const void *ptr,
                                                        uint64_t steps,
                                                        const char *function,
                                                        void *caller) {
  const heap_call_t call = {function, caller};
  uintptr_t granule = ((uintptr_t)ptr - heap->base) >> heap->granule_shift;
  heap_misuse_t misuse = HEAP_MISUSE_FOREIGN;
  uint32_t start = 0;
  uint32_t length = 0;
  if (granule < heap->count) {
    ++heap->steps;
    start = heap_bit_tree_prev(&heap->starts, (uint32_t)granule);
    misuse = HEAP_MISUSE_FREED;
    if (!heap_bit_tree_has(&heap->frees, start)) {
      misuse = HEAP_MISUSE_INTERIOR;
      length = heap_fit_length(heap, start);
    }
  }
  leave(heap, steps, function, caller);
  int saved_errno = errno;
  heap_report_misuse(misuse, &call, ptr, (uintptr_t)address_of(heap, start),
                     (size_t)length << heap->granule_shift);
  errno = saved_errno;
}

// Makes the next `size_bytes` of the reservation usable.
static bool commit(heap_t *heap, size_t size_bytes) {
  size_t used_bytes = (size_t)heap->count << heap->granule_shift;
  if (heap->options.use_file) {
    // A hole in the file would be a SIGBUS when the disk is full.
    int error;
    do {
      error = posix_fallocate(heap->options.file, (off_t)used_bytes,
                              (off_t)size_bytes);
    } while (error == EINTR);
    return error == 0;
  }
  return heap_kernel->commit(address_of(heap, heap->count), size_bytes);
}

// Adds `missing` granules at least, more if there is no need to save.
static bool extend(heap_t *heap, size_t missing) {
  size_t room = (size_t)(heap->capacity - heap->count) << heap->granule_shift;
  if (missing > room >> heap->granule_shift) {
    return false;
  }
  size_t missing_bytes =
      heap_fit_round_up(missing << heap->granule_shift, HEAP_FIT_GROWTH_BYTES);
  size_t step_bytes = heap_fit_round_up(
      ((size_t)heap->count << heap->granule_shift) / GROWTH_SHARE,
      HEAP_FIT_GROWTH_BYTES);
  step_bytes = step_bytes < missing_bytes ? missing_bytes : step_bytes;
  step_bytes = step_bytes < room ? step_bytes : room;
  if (!commit(heap, step_bytes)) {
    step_bytes = missing_bytes;
    if (!commit(heap, step_bytes)) {
      return false;
    }
  }
  heap_piece_append(heap, (uint32_t)(step_bytes >> heap->granule_shift));
  return true;
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
  bool has_grown = heap->reservation != NULL &&
                   extend(heap, end > heap->count ? end - heap->count : 1);
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

// Lock held.
static void *take(heap_t *heap, size_t align_bytes, size_t size_bytes) {
  uint32_t length = length_of(heap, size_bytes);
  if (length == 0 || align_bytes > ALIGN_MAX_BYTES) {
    return NULL;
  }
  if (align_bytes < heap->options.granule_bytes) {
    align_bytes = heap->options.granule_bytes;
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

// The same for a block of no special alignment.
static inline void *take_plain(heap_t *heap, size_t size_bytes) {
  uint32_t length = length_of(heap, size_bytes);
  if (heap->is_tlsf && length != 0) {
    uint32_t start = heap_fit_tlsf_take(heap, length);
    if (start != HEAP_FIT_NONE) {
      return address_of(heap, start);
    }
  }
  return take(heap, 1, size_bytes);
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

void *heap_alloc_in(heap_t *heap, size_t size_bytes) {
  uint64_t steps = enter(heap);
  void *ptr = take_plain(heap, size_bytes);
  leave(heap, steps, "alloc", __builtin_return_address(0));
  if (ptr == NULL) {
    errno = ENOMEM;
  }
  return ptr;
}

// heap_alloc_in() for a function of another name.
static __attribute__((noinline)) void *alloc_for(heap_t *heap,
                                                 size_t align_bytes,
                                                 size_t size_bytes,
                                                 const char *function,
                                                 void *caller) {
  uint64_t steps = enter(heap);
  void *ptr = take(heap, align_bytes, size_bytes);
  leave(heap, steps, function, caller);
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
  void *ptr =
      alloc_for(heap, 1, total_bytes, "calloc", __builtin_return_address(0));
  return ptr == NULL ? NULL : memset(ptr, 0, total_bytes);
}

void *heap_aligned_alloc_in(heap_t *heap, size_t align_bytes,
                            size_t size_bytes) {
  if (!heap_fit_is_power_of_two(align_bytes)) {
    errno = EINVAL;
    return NULL;
  }
  return alloc_for(heap, align_bytes, size_bytes, "aligned_alloc",
                   __builtin_return_address(0));
}

void heap_free_in(heap_t *heap, void *ptr) {
  if (ptr == NULL) {
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

// Moves a live block to another piece; NULL: there is none. Lock held.
static void *move(heap_t *heap, block_t old, size_t size_bytes) {
  size_t old_bytes = (size_t)old.length << heap->granule_shift;
  void *copy = take(heap, 1, size_bytes);
  if (copy != NULL) {
    memcpy(copy, address_of(heap, old.start),
           size_bytes < old_bytes ? size_bytes : old_bytes);
    heap_piece_free(heap, old.start, old.length);
  }
  return copy;
}

void *heap_realloc_in(heap_t *heap, void *ptr, size_t size_bytes) {
  if (ptr == NULL) {
    return alloc_for(heap, 1, size_bytes, "realloc",
                     __builtin_return_address(0));
  }
  uint64_t steps = enter(heap);
  block_t block = locate(heap, ptr);
  if (block.length == 0) {
    leave_wrong(heap, ptr, steps, "realloc", __builtin_return_address(0));
    errno = EINVAL;
    return NULL;
  }
  void *result = NULL;
  uint32_t length = length_of(heap, size_bytes);
  if (length != 0) {
    bool is_resized =
        heap_piece_resize(heap, block.start, block.length, length);
    result = is_resized ? ptr : move(heap, block, size_bytes);
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
  block_t block = locate(heap, ptr);
  if (block.length == 0) {
    leave_wrong(heap, ptr, steps, "usable_size", __builtin_return_address(0));
    return 0;
  }
  leave(heap, steps, "usable_size", __builtin_return_address(0));
  return (size_t)block.length << heap->granule_shift;
}

void heap_reset(heap_t *heap) {
  uint64_t steps = enter(heap);
  heap_piece_free_all(heap);
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

size_t heap_trim_in(heap_t *heap) {
  size_t trimmed_bytes = 0;
  uint64_t steps = enter(heap);
  bool is_kernels = heap->reservation != NULL && !heap->options.use_file;
  uint32_t start = is_kernels ? heap_fit_next_free(heap, 0) : HEAP_FIT_NONE;
  while (start != HEAP_FIT_NONE) {
    uint32_t length = heap_fit_length(heap, start);
    trimmed_bytes += trim(heap, start, length);
    start = heap_fit_next_free(heap, start + length);
  }
  heap->steps = steps;
  leave(heap, steps, "trim", __builtin_return_address(0));
  return trimmed_bytes;
}

bool heap_walk_in(heap_t *heap, heap_visit_t visit, void *context) {
  bool goes_on = true;
  uint64_t steps = enter(heap);
  for (uint32_t start = 0; goes_on && start < heap->count;) {
    uint32_t length = heap_fit_length(heap, start);
    if (!heap_bit_tree_has(&heap->frees, start)) {
      goes_on = visit(context, address_of(heap, start),
                      (size_t)length << heap->granule_shift);
    }
    start += length;
  }
  heap->steps = steps;
  leave(heap, steps, "walk", __builtin_return_address(0));
  return goes_on;
}

const char *heap_check_in(heap_t *heap) {
  uint64_t steps = enter(heap);
  const char *broken = heap_piece_check(heap);
  heap->steps = steps;
  leave(heap, steps, "check", __builtin_return_address(0));
  return broken;
}

void heap_stats_get_in(heap_t *heap, heap_private_stats_t *out_stats) {
  uint32_t largest = 0;
  memset(out_stats, 0, sizeof(*out_stats));
  enter(heap);
  out_stats->num_steps = heap->steps;
  out_stats->max_steps = heap->max_steps;
  uint32_t start = heap_fit_next_free(heap, 0);
  while (start != HEAP_FIT_NONE) {
    uint32_t length = heap_fit_length(heap, start);
    largest = length > largest ? length : largest;
    ++out_stats->num_free;
    start = heap_fit_next_free(heap, start + length);
  }
  heap->steps = out_stats->num_steps;
  out_stats->mapped_bytes = (size_t)heap->count << heap->granule_shift;
  out_stats->live_bytes = (size_t)heap->live_length << heap->granule_shift;
  out_stats->num_live = heap->live_count;
  out_stats->free_bytes = out_stats->mapped_bytes - out_stats->live_bytes;
  out_stats->largest_free_bytes = (size_t)largest << heap->granule_shift;
  out_stats->peak_live_bytes = (size_t)heap->peak_length << heap->granule_shift;
  out_stats->metadata_bytes = heap->metadata_bytes;
  if (!heap->options.single_threaded) {
    pthread_mutex_unlock(&heap->lock);
  }
}
