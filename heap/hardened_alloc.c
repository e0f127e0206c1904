// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Where the hardened variant's blocks come from, when hardened.c has none at
// hand.
//
// Only memory that was never used is not looked at: so what was given back to
// the kernel never counts as fresh again (HEAP_BLOCK_CLEAN, HEAP_PAGE_PURGED).

#include <errno.h>

#include "heap/central.h"
#include "heap/empty_block.h"
#include "heap/hardened_internal.h"
#include "heap/hooks.h"
#include "heap/quarantine.h"
#include "heap/random.h"
#include "heap/trim.h"

// No program needs a block above this; a size that is comes from arithmetic
// that went wrong.
#define ABSURD_BYTES ((size_t)1 << 40)

// See heap.c.
#define RECLAIM_MAX_BYTES ((size_t)1 << 30)

static bool is_started;  // Atomic; written with the central lock held.

void heap_hardened_start(void) {
  heap_central_lock();
  bool is_first = !__atomic_load_n(&is_started, __ATOMIC_RELAXED);
  if (is_first) {
    heap_harden_start();
    heap_zero_start(SIZE_MAX);
    // Release: the defences and secrets, for those who do not take the lock.
    __atomic_store_n(&is_started, true, __ATOMIC_RELEASE);
  }
  heap_central_unlock();
  if (is_first) {
    heap_random_watch_forks();  // May allocate.
  }
}

// The first allocations may be those of several threads: pthread_create need
// not have called us.
static void start_once(void) {
  if (__builtin_expect(!__atomic_load_n(&is_started, __ATOMIC_ACQUIRE), 0)) {
    heap_hardened_start();
  }
}

void heap_alloc_report_written(void *ptr, size_t space_bytes,
                               const void *caller) {
  const heap_call_t call = {"alloc", caller};
  heap_report_misuse(HEAP_MISUSE_WRITTEN, &call, ptr, (uintptr_t)ptr,
                     space_bytes);
}

static size_t units_of(size_t size_bytes) {
  return (size_bytes + HEAP_UNIT_BYTES - 1) >> HEAP_UNIT_SHIFT;
}

// An aligned block of size 0 has a page as well.
size_t heap_alloc_run_units(size_t size_bytes) {
  size_t mask = HEAP_GUARD_BYTES - 1;
  size_bytes += size_bytes == 0;
  size_t space_bytes = (size_bytes + heap_harden.canary_bytes + mask) & ~mask;
  return units_of(space_bytes + 2 * (size_t)HEAP_GUARD_BYTES);
}

size_t heap_alloc_reserve_bytes(size_t size_bytes) {
  // Without a canary nobody would know where it begins.
  if (!heap_harden_has(HEAP_HARDEN_CANARY) ||
      size_bytes >= HEAP_MAPPED_GROWN_BYTES / 2) {
    return 0;
  }
  return size_bytes;
}

bool heap_alloc_is_medium(size_t size_bytes, bool is_growing) {
  return size_bytes > HEAP_TABLE_MAX_BYTES &&
         size_bytes <
             (is_growing ? HEAP_MAPPED_GROWN_BYTES : HEAP_MAPPED_MIN_BYTES);
}

static void *small_alloc(size_t size_class, size_t size_bytes, bool *out_fresh,
                         const void *caller) {
  heap_thread_t *thread = heap_thread_get();
  if (thread == NULL) {
    return NULL;
  }
  heap_bin_t *bin = &thread->bins[size_class];
  size_t cached_count = heap_bin_cached_count(bin);
  if (cached_count != 0) {
    *out_fresh = false;
    return heap_alloc_pop(thread, bin, cached_count, size_bytes, caller);
  }
  if (bin->mask == 0) {
    if (!heap_thread_refill(thread, size_class)) {
      return NULL;
    }
    heap_thread_note_refill(thread, size_class, size_bytes);
  }
  return heap_alloc_take(thread, bin, size_bytes, out_fresh, caller);
}

// Takes a run for a block and its guards.
static uintptr_t take_run(size_t align_bytes, size_t size_bytes,
                          bool *out_fresh, size_t *out_bytes) {
  if (align_bytes < HEAP_GUARD_BYTES) {
    align_bytes = HEAP_GUARD_BYTES;
  }
  heap_central_lock();
  heap_thread_sweep();
  uintptr_t run = heap_arena_alloc(heap_alloc_run_units(size_bytes),
                                   align_bytes, HEAP_RUN_BLOCK, out_fresh);
  if (run != 0) {
    *out_bytes = heap_arena_find(run).size_bytes;
    heap_guard_set_ends(run, *out_bytes);
  }
  heap_central_unlock();
  return run;
}

// Looks at what is handed out of a run: the room to grow is not.
static void verify_run(void *ptr, size_t used_bytes, size_t space_bytes,
                       const void *caller) {
  heap_alloc_verify(ptr, space_bytes, ptr, used_bytes, caller);
  if (used_bytes < space_bytes) {
    heap_alloc_verify(ptr, space_bytes, (char *)ptr + space_bytes - 16, 16,
                      caller);
  }
}

void *heap_alloc_medium(size_t align_bytes, size_t size_bytes,
                        size_t reserve_bytes, bool *out_fresh,
                        const void *caller) {
  size_t run_bytes = 0;
  uintptr_t run = 0;
  if (reserve_bytes > 0) {
    run = take_run(align_bytes, size_bytes + reserve_bytes, out_fresh,
                   &run_bytes);
  }
  if (run == 0) {
    run = take_run(align_bytes, size_bytes, out_fresh, &run_bytes);
  }
  if (run == 0) {
    return NULL;
  }
  void *ptr = (void *)(run + HEAP_GUARD_BYTES);
  size_t space_bytes = heap_guarded_bytes(run_bytes);
  if (!*out_fresh) {
    verify_run(ptr, heap_block_used_bytes(size_bytes, space_bytes), space_bytes,
               caller);
  }
  heap_block_set_canary(ptr, size_bytes, space_bytes);
  return ptr;
}

void *heap_alloc_mapped(size_t align_bytes, size_t size_bytes,
                        bool *out_fresh) {
  *out_fresh = true;
  void *ptr =
      heap_mapped_alloc(align_bytes, size_bytes + heap_harden.canary_bytes);
  if (ptr != NULL) {
    heap_block_set_canary(
        ptr, size_bytes, heap_mapped_usable_size(heap_page_of((uintptr_t)ptr)));
  }
  return ptr;
}

static void *empty_alloc(size_t align_bytes) {
  heap_central_lock();
  void *ptr = heap_empty_alloc(align_bytes);
  heap_central_unlock();
  return ptr;
}

// The first block of a span is at a multiple of the guard's size.
size_t heap_alloc_class(size_t align_bytes, size_t size_bytes) {
  size_t space_bytes = size_bytes + heap_harden.canary_bytes;
  if (space_bytes > HEAP_SMALL_MAX_BYTES || align_bytes > HEAP_GUARD_BYTES) {
    return HEAP_CLASS_COUNT;
  }
  size_t size_class = heap_class_of_size(space_bytes);
  while (size_class < HEAP_CLASS_COUNT &&
         (heap_class_info[size_class].size_bytes & (align_bytes - 1)) != 0) {
    ++size_class;
  }
  return size_class;
}

// Returns a block of the kind that its size and alignment ask for, or NULL.
static void *try_alloc(size_t align_bytes, size_t size_bytes, bool *out_fresh,
                       const void *caller) {
  if (size_bytes == 0 && align_bytes <= HEAP_EMPTY_MAX_ALIGN_BYTES &&
      heap_harden_has(HEAP_HARDEN_EMPTY)) {
    return empty_alloc(align_bytes);
  }
  size_t size_class = heap_alloc_class(align_bytes, size_bytes);
  if (size_class < HEAP_CLASS_COUNT) {
    return small_alloc(size_class, size_bytes, out_fresh, caller);
  }
  bool is_mapped =
      size_bytes >= HEAP_MAPPED_MIN_BYTES || align_bytes > HEAP_PAGE_BYTES;
  void *ptr = NULL;
  if (!is_mapped) {
    ptr = heap_alloc_medium(align_bytes, size_bytes, 0, out_fresh, caller);
  }
  if (ptr == NULL && (is_mapped || size_bytes >= HEAP_MAPPED_GROWN_BYTES)) {
    ptr = heap_alloc_mapped(align_bytes, size_bytes, out_fresh);
  }
  if (ptr == NULL && is_mapped) {
    ptr = heap_alloc_medium(align_bytes, size_bytes, 0, out_fresh, caller);
  }
  return ptr;
}

bool heap_alloc_is_absurd(size_t size_bytes) {
  return size_bytes > (heap_harden_has(HEAP_HARDEN_LIMIT)
                           ? ABSURD_BYTES
                           : (size_t)PTRDIFF_MAX);
}

void *heap_alloc_silently(size_t align_bytes, size_t size_bytes,
                          bool *out_fresh, const void *caller) {
  *out_fresh = false;
  start_once();
  if (heap_alloc_is_absurd(size_bytes) || align_bytes > PTRDIFF_MAX / 2) {
    errno = ENOMEM;
    return NULL;
  }
  void *ptr = try_alloc(align_bytes, size_bytes, out_fresh, caller);
  if (ptr == NULL && size_bytes <= RECLAIM_MAX_BYTES &&
      align_bytes <= RECLAIM_MAX_BYTES) {
    // What waits or lies idle may be what is missing.
    heap_hardened_trim(0, false);
    ptr = try_alloc(align_bytes, size_bytes, out_fresh, caller);
  }
  if (ptr == NULL) {
    errno = ENOMEM;
  }
  return ptr;
}

void *heap_alloc_tell(void *ptr, size_t size_bytes) {
  if (ptr != NULL && heap_hooks() != NULL) {
    heap_hook_alloc(ptr, size_bytes, heap_block_requested_bytes(ptr));
  }
  return ptr;
}

// Before that, what this thread freed waits no longer.
size_t heap_hardened_trim(size_t keep_bytes, bool with_pages) {
  heap_thread_t *thread = heap_thread_get_existing();
  if (thread != NULL) {
    heap_quarantine_flush(thread);
  }
  heap_central_lock();
  heap_run_quarantine_flush();
  heap_mapped_flush();
  heap_central_unlock();
  return heap_trim_all(keep_bytes, with_pages);
}
