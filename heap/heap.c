// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The public functions: which kind of block a size becomes, what a pointer is,
// and what the hooks are told.
//
//   size                  block                                found by
//   0 .. 32 KiB           small: in a span of its class        page table
//   .. below 32 MiB       medium: a run of 1 KiB units         arena's tags
//   from 32 MiB           mapped: a mapping of its own         page table
//
// A block that grows to 4 MiB is mapped all the same, since the kernel then
// moves it without a copy; and one that grows beyond 8 KiB becomes a run, which
// can go on growing where it is. So can one that was larger from the start, if
// there is room behind it.
//
// Every call that takes a pointer locates it first. A small block needs no
// lock for that: its descriptor can't change while it is live. The others are
// located under the central lock, and again when they are freed, so that of
// two frees at once one finds nothing.

#include "heap/heap.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "heap/arena.h"
#include "heap/central.h"
#include "heap/diagnose.h"
#include "heap/fast_path.h"
#include "heap/fatal.h"
#include "heap/hooks.h"
#include "heap/mapped.h"
#include "heap/trim.h"

// A request for more fails without a search for what could be given back: it
// asks more often whether the size is possible than for the memory.
#define RECLAIM_MAX_BYTES ((size_t)1 << 30)

// A block was made smaller and, without memory for another, stayed what it was;
// its size says nothing of the request any more. Atomic, relaxed.
static bool shrunk_in_need;

typedef enum block_kind {
  BLOCK_SMALL,
  BLOCK_MEDIUM,
  BLOCK_MAPPED,
} block_kind_t;

typedef struct block {
  block_kind_t kind;
  size_t usable_bytes;
  heap_page_t *page;  // SMALL and MAPPED.
  uint8_t *state;     // SMALL.
} block_t;

static size_t units_of(size_t size_bytes) {
  return (size_bytes + HEAP_UNIT_BYTES - 1) >> HEAP_UNIT_SHIFT;
}

// Tells whether a run may have this size; that of a block that grew may have
// what a new block would not, and the reverse.
static bool is_medium(size_t size_bytes, bool is_growing) {
  return size_bytes > HEAP_TABLE_MAX_BYTES &&
         size_bytes <
             (is_growing ? HEAP_MAPPED_GROWN_BYTES : HEAP_MAPPED_MIN_BYTES);
}

// Returns a block without looking beyond the bin, or NULL.
HEAP_FAST_PATH void *bin_alloc(heap_bin_t *bin, bool *out_zeroed) {
  void *ptr = heap_bin_pop(bin);
  *out_zeroed = false;
  if (ptr == NULL && bin->mask != 0) {
    ptr = heap_bin_take(bin, out_zeroed);
  }
  return ptr;
}

static void *small_alloc(size_t size_class, size_t size_bytes,
                         bool *out_zeroed) {
  heap_thread_t *thread = heap_thread_get();
  if (thread == NULL) {
    return NULL;
  }
  heap_bin_t *bin = &thread->bins[size_class];
  void *ptr = bin_alloc(bin, out_zeroed);
  if (ptr == NULL && heap_thread_refill(thread, size_class)) {
    heap_thread_note_refill(thread, size_class, size_bytes);
    ptr = heap_bin_take(bin, out_zeroed);
  }
  return ptr;
}

static void *medium_alloc(size_t align_bytes, size_t size_bytes,
                          bool *out_zeroed) {
  heap_central_lock();
  heap_thread_sweep();
  uintptr_t start = heap_arena_alloc(units_of(size_bytes), align_bytes,
                                     HEAP_RUN_BLOCK, out_zeroed);
  heap_central_unlock();
  return (void *)start;
}

// Returns the smallest class whose blocks all start at multiples of
// `align_bytes`, or HEAP_CLASS_COUNT. Spans start at multiples of a heap page.
static size_t aligned_class(size_t align_bytes, size_t size_bytes) {
  if (size_bytes > HEAP_SMALL_MAX_BYTES || align_bytes > HEAP_TABLE_MAX_BYTES) {
    return HEAP_CLASS_COUNT;
  }
  size_t size_class = heap_class_of_size(size_bytes);
  while (size_class < HEAP_CLASS_COUNT &&
         (heap_class_info[size_class].size_bytes & (align_bytes - 1)) != 0) {
    ++size_class;
  }
  return size_class;
}

// Returns a block of the kind that its size and alignment ask for, or NULL.
static void *try_alloc(size_t align_bytes, size_t size_bytes,
                       bool *out_zeroed) {
  size_t size_class = aligned_class(align_bytes, size_bytes);
  if (size_class < HEAP_CLASS_COUNT) {
    return small_alloc(size_class, size_bytes, out_zeroed);
  }
  bool is_mapped =
      size_bytes >= HEAP_MAPPED_MIN_BYTES || align_bytes > HEAP_PAGE_BYTES;
  void *ptr = NULL;
  if (!is_mapped) {
    ptr = medium_alloc(align_bytes, size_bytes, out_zeroed);
  }
  // Where no arena can grow there may be room for a mapping, and the reverse.
  if (ptr == NULL && (is_mapped || size_bytes >= HEAP_MAPPED_GROWN_BYTES)) {
    ptr = heap_mapped_alloc(align_bytes, size_bytes);
    *out_zeroed = true;
  }
  if (ptr == NULL && is_mapped) {
    ptr = medium_alloc(align_bytes, size_bytes, out_zeroed);
  }
  return ptr;
}

// Allocates without telling the hooks; sets `errno`.
static void *alloc_silently(size_t align_bytes, size_t size_bytes,
                            bool *out_zeroed) {
  *out_zeroed = false;
  if (size_bytes > PTRDIFF_MAX) {
    errno = ENOMEM;
    return NULL;
  }
  void *ptr = try_alloc(align_bytes, size_bytes, out_zeroed);
  if (ptr == NULL && size_bytes <= RECLAIM_MAX_BYTES &&
      align_bytes <= RECLAIM_MAX_BYTES) {
    // What lies idle, here or where threads exited, may be what is missing.
    heap_trim_all(0, false);
    ptr = try_alloc(align_bytes, size_bytes, out_zeroed);
  }
  if (ptr == NULL) {
    errno = ENOMEM;
  }
  return ptr;
}

static bool locate_medium(const void *ptr, block_t *out_block) {
  heap_central_lock();
  heap_arena_place_t place = heap_arena_find((uintptr_t)ptr);
  heap_central_unlock();
  if (place.kind != HEAP_RUN_BLOCK || place.start != (uintptr_t)ptr) {
    return false;
  }
  *out_block =
      (block_t){.kind = BLOCK_MEDIUM, .usable_bytes = place.size_bytes};
  return true;
}

// Tells what live block starts at `ptr`; reports and returns false if none.
static bool locate(const void *ptr, const heap_call_t *call,
                   block_t *out_block) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  if (page->kind == HEAP_PAGE_SPAN) {
    uint8_t *state;
    if (heap_small_block_state(page, ptr, &state) &&
        heap_state_is_live(state)) {
      *out_block = (block_t){
          .kind = BLOCK_SMALL,
          .usable_bytes = heap_class_info[page->size_class].size_bytes,
          .page = page,
          .state = state};
      return true;
    }
  } else if (page->kind == HEAP_PAGE_MAPPED && page->start == (uintptr_t)ptr) {
    *out_block = (block_t){.kind = BLOCK_MAPPED,
                           .usable_bytes = heap_mapped_usable_size(page),
                           .page = page};
    return true;
  } else if (locate_medium(ptr, out_block)) {
    return true;
  }
  heap_report_pointer(ptr, call);
  return false;
}

static void free_small(void *ptr, const block_t *block,
                       const heap_call_t *call) {
  heap_thread_t *thread = heap_thread_get_existing();
  if (thread != NULL &&
      __atomic_load_n(&block->page->owner, __ATOMIC_RELAXED) == thread) {
    heap_thread_free_own(thread, block->page, ptr, block->state);
  } else if (!heap_thread_free_foreign(block->page, block->state)) {
    heap_report_pointer(ptr, call);  // Somebody else was faster.
  }
}

static void free_medium(void *ptr, const heap_call_t *call) {
  heap_central_lock();
  heap_arena_place_t place = heap_arena_find((uintptr_t)ptr);
  bool is_live = place.kind == HEAP_RUN_BLOCK && place.start == (uintptr_t)ptr;
  if (is_live) {
    heap_arena_free((uintptr_t)ptr);
  }
  heap_central_unlock();
  if (!is_live) {
    heap_report_pointer(ptr, call);
  }
}

// Frees a located block without telling the hooks; preserves `errno`.
static void free_silently(void *ptr, const block_t *block,
                          const heap_call_t *call) {
  int saved_errno = errno;
  switch (block->kind) {
    case BLOCK_SMALL:
      free_small(ptr, block, call);
      break;
    case BLOCK_MEDIUM:
      free_medium(ptr, call);
      break;
    case BLOCK_MAPPED:
      if (!heap_mapped_free(ptr)) {
        heap_report_pointer(ptr, call);
      }
      break;
  }
  errno = saved_errno;
}

static size_t usable_size_of_live(const void *ptr) {
  const heap_call_t call = {"alloc", __builtin_return_address(0)};
  block_t block;
  return locate(ptr, &call, &block) ? block.usable_bytes : 0;
}

static void *tell_alloc(void *ptr, size_t size_bytes) {
  if (ptr != NULL && heap_hooks() != NULL) {
    heap_hook_alloc(ptr, size_bytes, usable_size_of_live(ptr));
  }
  return ptr;
}

void *heap_alloc_slow(size_t size_bytes) {
  bool zeroed;
  if (size_bytes <= HEAP_SMALL_MAX_BYTES) {
    // Most often one of a class that is not in the table, and cached.
    size_t size_class = heap_class_of_size(size_bytes);
    void *ptr = bin_alloc(&heap_thread_fast->bins[size_class], &zeroed);
    if (ptr != NULL) {
      return ptr;
    }
  }
  return tell_alloc(alloc_silently(HEAP_MIN_ALIGN_BYTES, size_bytes, &zeroed),
                    size_bytes);
}

void *heap_calloc_slow(size_t size_bytes) {
  bool zeroed;
  void *ptr = alloc_silently(HEAP_MIN_ALIGN_BYTES, size_bytes, &zeroed);
  if (ptr != NULL && !zeroed) {
    memset(ptr, 0, size_bytes);
  }
  return tell_alloc(ptr, size_bytes);
}

static void free_called(void *ptr, const heap_call_t *call) {
  block_t block;
  if (ptr == NULL) {
    return;
  }
  if (heap_hooks() == NULL) {
    heap_page_t *page = heap_page_of((uintptr_t)ptr);
    if (page->kind == HEAP_PAGE_NONE) {
      // Not located first, for one lock less.
      block = (block_t){.kind = BLOCK_MEDIUM};
      free_silently(ptr, &block, call);
      return;
    }
    uint8_t *state;
    if ((HEAP_CHECKED || page->kind == HEAP_PAGE_SPAN) &&
        heap_small_block_state(page, ptr, &state) &&
        heap_thread_free_foreign(page, state)) {
      return;  // Another thread's: heap_free_fast took the own ones.
    }
  }
  if (!locate(ptr, call, &block)) {
    return;
  }
  heap_hook_free(ptr);
  free_silently(ptr, &block, call);
}

void heap_free_slow(void *ptr) {
  const heap_call_t call = {"free", __builtin_return_address(0)};
  free_called(ptr, &call);
}

// As below, but for what C++'s aligned new rounds up.
static bool can_have_exactly(const block_t *block, size_t align_bytes,
                             size_t size_bytes, bool may_have_shrunk) {
  size_t usable_bytes = block->usable_bytes;
  if (size_bytes > usable_bytes) {
    return false;
  }
  if (may_have_shrunk && __atomic_load_n(&shrunk_in_need, __ATOMIC_RELAXED)) {
    return true;
  }
  if (block->kind == BLOCK_MAPPED) {
    return heap_mapped_can_have_size(block->page, align_bytes, size_bytes);
  }
  if (block->kind == BLOCK_MEDIUM) {
    size_t units = units_of(size_bytes);
    return usable_bytes >> HEAP_UNIT_SHIFT ==
           (units < HEAP_RUN_MIN_UNITS ? HEAP_RUN_MIN_UNITS : units);
  }
  size_t size_class = aligned_class(align_bytes, size_bytes);
  return size_class == block->page->size_class ||
         (may_have_shrunk && heap_class_keeps(usable_bytes, size_bytes));
}

// Tells whether a block that was asked for with this size and alignment can be
// `block`; `may_have_shrunk` in place since. C++ libraries make an aligned size
// a multiple of the alignment, and tell the sized delete what it was before.
static bool can_have_size(const block_t *block, size_t align_bytes,
                          size_t size_bytes, bool may_have_shrunk) {
  size_t asked_bytes = size_bytes == 0 ? 1 : size_bytes;
  size_t rounded_bytes = (asked_bytes + align_bytes - 1) & ~(align_bytes - 1);
  return can_have_exactly(block, align_bytes, size_bytes, may_have_shrunk) ||
         (rounded_bytes > size_bytes &&
          can_have_exactly(block, align_bytes, rounded_bytes, may_have_shrunk));
}

void heap_free_sized_slow(void *ptr, size_t align_bytes, size_t size_bytes,
                          bool may_have_shrunk) {
  const heap_call_t call = {"sized free", __builtin_return_address(0)};
  block_t block;
  if (ptr == NULL || !locate(ptr, &call, &block)) {
    return;
  }
  if (align_bytes < HEAP_MIN_ALIGN_BYTES) {
    align_bytes = HEAP_MIN_ALIGN_BYTES;
  }
  if (!can_have_size(&block, align_bytes, size_bytes, may_have_shrunk)) {
    heap_report_misuse(HEAP_MISUSE_SIZE, &call, ptr, (uintptr_t)ptr,
                       block.usable_bytes);
  }
  free_called(ptr, &call);
}

void heap_free_sized(void *ptr, size_t align_bytes, size_t size_bytes) {
  heap_free_sized_fast(ptr, align_bytes, size_bytes, false);
}

void heap_free(void *ptr) {
  heap_free_fast(ptr);
}

void *heap_alloc(size_t size_bytes) {
  return heap_alloc_fast(size_bytes);
}

void *heap_calloc(size_t count, size_t size_bytes) {
  size_t total_bytes;
  if (__builtin_mul_overflow(count, size_bytes, &total_bytes)) {
    errno = ENOMEM;
    return NULL;
  }
  if (total_bytes <= HEAP_TABLE_MAX_BYTES) {
    heap_bin_t *bin =
        heap_thread_bin(heap_thread_fast, heap_bin_offset_lookup(total_bytes));
    bool zeroed;
    void *ptr = bin_alloc(bin, &zeroed);
    if (ptr != NULL) {
      return zeroed ? ptr : memset(ptr, 0, total_bytes);
    }
  }
  return heap_calloc_slow(total_bytes);
}

// Tells whether a run that is resized should have the size it is to get, or
// would better be a block of another kind.
static bool is_right_size(const heap_arena_place_t *place, size_t size_bytes) {
  return is_medium(size_bytes, size_bytes > place->size_bytes &&
                                   place->size_bytes < HEAP_MAPPED_GROWN_BYTES);
}

// Changes the length of a medium block where it is; false when `ptr` is none,
// or it cannot, or, unless `in_need`, had better move.
static bool resize_medium(void *ptr, size_t size_bytes, bool in_need) {
  heap_central_lock();
  heap_arena_place_t place = heap_arena_find((uintptr_t)ptr);
  bool done = place.kind == HEAP_RUN_BLOCK && place.start == (uintptr_t)ptr &&
              (in_need || is_right_size(&place, size_bytes)) &&
              heap_arena_resize((uintptr_t)ptr, units_of(size_bytes));
  heap_central_unlock();
  return done;
}

// Changes the length of a block where it is; false when it must move.
static bool resize_in_place(void *ptr, const block_t *block,
                            size_t size_bytes) {
  switch (block->kind) {
    case BLOCK_SMALL:
      return size_bytes <= block->usable_bytes &&
             heap_class_keeps(block->usable_bytes, size_bytes);
    case BLOCK_MEDIUM:
      return false;  // resize_medium tried.
    case BLOCK_MAPPED:
      return size_bytes >= HEAP_MAPPED_GROWN_BYTES / 2 &&
             heap_mapped_resize(ptr, size_bytes);
  }
  return false;
}

// There is no memory for another block: changes this one's length where it is,
// or lets a block that was to be smaller be. NULL: neither.
static void *realloc_in_need(void *ptr, const block_t *block,
                             size_t size_bytes) {
  size_t wanted_bytes = size_bytes == 0 ? 1 : size_bytes;
  bool done =
      (block->kind == BLOCK_MEDIUM && resize_medium(ptr, wanted_bytes, true)) ||
      (block->kind == BLOCK_MAPPED && heap_mapped_resize(ptr, wanted_bytes));
  if (!done && size_bytes > block->usable_bytes) {
    return NULL;
  }
  if (!done) {
    __atomic_store_n(&shrunk_in_need, true, __ATOMIC_RELAXED);
  }
  heap_hook_resize(ptr, size_bytes, usable_size_of_live(ptr));
  return ptr;
}

static void *realloc_by_copy(void *ptr, const block_t *block, size_t size_bytes,
                             const heap_call_t *call) {
  void *copy = NULL;
  bool zeroed;
  bool is_growing = size_bytes > block->usable_bytes;
  if (is_growing && size_bytes >= HEAP_MAPPED_GROWN_BYTES) {
    copy = heap_mapped_alloc(HEAP_MIN_ALIGN_BYTES, size_bytes);
  } else if (is_growing && is_medium(size_bytes, true)) {
    copy = medium_alloc(HEAP_MIN_ALIGN_BYTES, size_bytes, &zeroed);
  }
  if (copy == NULL) {
    copy = alloc_silently(HEAP_MIN_ALIGN_BYTES, size_bytes, &zeroed);
  }
  if (copy == NULL) {
    return realloc_in_need(ptr, block, size_bytes);
  }
  memcpy(copy, ptr, is_growing ? block->usable_bytes : size_bytes);
  tell_alloc(copy, size_bytes);
  heap_hook_free(ptr);
  free_silently(ptr, block, call);
  return copy;
}

void *heap_realloc(void *ptr, size_t size_bytes) {
  const heap_call_t call = {"realloc", __builtin_return_address(0)};
  block_t block;
  if (ptr == NULL) {
    return heap_alloc_fast(size_bytes);
  }
  if (heap_page_of((uintptr_t)ptr)->kind == HEAP_PAGE_NONE &&
      resize_medium(ptr, size_bytes, false)) {
    heap_hook_resize(ptr, size_bytes, units_of(size_bytes) << HEAP_UNIT_SHIFT);
    return ptr;
  }
  if (!locate(ptr, &call, &block)) {
    errno = EINVAL;
    return NULL;
  }
  if (size_bytes > PTRDIFF_MAX) {
    errno = ENOMEM;
    return NULL;
  }
  if (resize_in_place(ptr, &block, size_bytes)) {
    heap_hook_resize(ptr, size_bytes,
                     block.kind == BLOCK_MAPPED
                         ? heap_mapped_usable_size(block.page)
                         : block.usable_bytes);
    return ptr;
  }
  if (block.kind == BLOCK_MAPPED && size_bytes > block.usable_bytes) {
    void *moved = heap_mapped_move(ptr, size_bytes);
    if (moved != NULL) {
      return moved;
    }
  }
  return realloc_by_copy(ptr, &block, size_bytes, &call);
}

void *heap_aligned_alloc_slow(size_t align_bytes, size_t size_bytes,
                              const void *caller) {
  (void)caller;
  bool zeroed;
  return tell_alloc(alloc_silently(align_bytes, size_bytes, &zeroed),
                    size_bytes);
}

size_t heap_usable_size(void *ptr) {
  const heap_call_t call = {"usable_size", __builtin_return_address(0)};
  block_t block;
  if (ptr == NULL || !locate(ptr, &call, &block)) {
    return 0;
  }
  return block.usable_bytes;
}
