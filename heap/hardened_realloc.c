// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Blocks that change their size.
//
// A larger block that grows has room to grow again: as much as it is long, so
// that most steps of a buffer that grows by half move no guard and ask nobody
// (docs/heap.md). What is given up must not be read again, and what is got must
// be zero: the marks and the canary go first, the ones of the new size come
// last.

#include <errno.h>

#include "heap/central.h"
#include "heap/fast_path.h"
#include "heap/hardened_internal.h"
#include "heap/heap.h"
#include "heap/hooks.h"

enum {
  // Small blocks up to this size do not move when they shrink.
  SMALLEST_MOVED_BYTES = 64,
};

// Tells whether a run that is resized should have the size it is to get, or
// would better be a block of another kind.
static bool is_right_size(size_t old_bytes, size_t size_bytes) {
  return heap_alloc_is_medium(
      size_bytes,
      size_bytes > old_bytes && old_bytes < HEAP_MAPPED_GROWN_BYTES);
}

// Moves the guard behind a run to where the run ends now; one that grows gets
// room to grow again, if there is some. Central lock held.
static bool resize_run(uintptr_t run, size_t old_bytes, size_t size_bytes,
                       size_t reserve_bytes, size_t *out_bytes) {
  uintptr_t old_guard = run + HEAP_GUARD_BYTES + heap_guarded_bytes(old_bytes);
  // Shrinking, nothing else than zero may be left behind.
  heap_guard_clear(old_guard);
  bool done = (reserve_bytes > 0 &&
               heap_arena_resize(
                   run, heap_alloc_run_units(size_bytes + reserve_bytes))) ||
              heap_arena_resize(run, heap_alloc_run_units(size_bytes));
  *out_bytes = done ? heap_arena_find(run).size_bytes : old_bytes;
  heap_guard_set(run + HEAP_GUARD_BYTES + heap_guarded_bytes(*out_bytes));
  return done;
}

// Changes the length of a medium block where it is, all but its canary. The
// bytes behind `size_bytes` are zero.
static bool resize_medium(heap_block_t *block, size_t size_bytes) {
  uintptr_t run = (uintptr_t)block->ptr - HEAP_GUARD_BYTES;
  heap_arena_place_t place;
  size_t run_bytes = 0;
  bool is_growing = size_bytes >= block->size_bytes;
  if (is_growing &&
      size_bytes + heap_harden.canary_bytes <= block->space_bytes) {
    return true;
  }
  size_t reserve_bytes = is_growing ? heap_alloc_reserve_bytes(size_bytes) : 0;
  heap_central_lock();
  bool done =
      heap_block_find_medium(block->ptr, &place) &&
      resize_run(run, place.size_bytes, size_bytes, reserve_bytes, &run_bytes);
  heap_central_unlock();
  if (done) {
    block->space_bytes = heap_guarded_bytes(run_bytes);
  }
  return done;
}

// Tells whether a small block can be what was asked for.
static bool stays_small(const heap_block_t *block, size_t size_bytes) {
  size_t wanted_bytes = size_bytes + heap_harden.canary_bytes;
  return wanted_bytes <= block->space_bytes && size_bytes > 0 &&
         (wanted_bytes >= block->space_bytes / 2 ||
          block->space_bytes <= SMALLEST_MOVED_BYTES);
}

// Makes the bytes behind the block's first `keep_bytes` zero, canary first; of
// a mapped one those only that stay, as the kernel takes the others away.
static void clear_tail(const heap_block_t *block, size_t keep_bytes,
                       size_t new_space_bytes) {
  char *start = block->ptr;
  size_t page_mask = HEAP_GUARD_BYTES - 1;
  size_t end_bytes = block->space_bytes;
  if (block->kind == HEAP_BLOCK_IS_MAPPED && new_space_bytes < end_bytes) {
    new_space_bytes = new_space_bytes > HEAP_PAGE_BYTES
                          ? (new_space_bytes + page_mask) & ~page_mask
                          : HEAP_PAGE_BYTES;
    end_bytes = new_space_bytes < end_bytes ? new_space_bytes : end_bytes;
  }
  if (end_bytes == block->space_bytes && heap_harden_has(HEAP_HARDEN_CANARY)) {
    heap_canary_store((uintptr_t)start + end_bytes - HEAP_CANARY_BYTES, 0);
  }
  size_t used_bytes =
      heap_block_used_bytes(block->size_bytes, block->space_bytes);
  end_bytes = used_bytes < end_bytes ? used_bytes : end_bytes;
  size_t pages_bytes = (keep_bytes + page_mask) & ~page_mask;
  if (block->kind == HEAP_BLOCK_IS_SMALL || pages_bytes >= end_bytes) {
    memset(start + keep_bytes, 0, end_bytes - keep_bytes);
  } else {
    memset(start + keep_bytes, 0, pages_bytes - keep_bytes);
    heap_zero_pages(start + pages_bytes, end_bytes - pages_bytes);
  }
}

// A medium block grew, of which `old_used_bytes` had been handed out: looks
// whether what comes to it, which was free, was left alone.
static void verify_grown(const heap_block_t *block, size_t old_used_bytes,
                         size_t size_bytes, const void *caller) {
  char *start = block->ptr;
  size_t space_bytes = block->space_bytes;
  size_t used_bytes = heap_block_used_bytes(size_bytes, space_bytes);
  if (used_bytes > old_used_bytes) {
    heap_alloc_verify(start, space_bytes, start + old_used_bytes,
                      used_bytes - old_used_bytes, caller);
  }
  if (used_bytes < space_bytes) {
    heap_alloc_verify(start, space_bytes, start + space_bytes - 16, 16, caller);
  }
}

// Changes the length of a block where it is, or has the kernel move it. Returns
// where it is then; NULL: it is as it was. `in_need`: whatever is possible.
static void *resize(heap_block_t *block, size_t size_bytes, bool in_need,
                    const void *caller) {
  size_t old_used_bytes =
      heap_block_used_bytes(block->size_bytes, block->space_bytes);
  size_t space_bytes = size_bytes + heap_harden.canary_bytes;
  size_t kept_bytes =
      size_bytes < block->size_bytes ? size_bytes : block->size_bytes;
  bool done = false;
  void *ptr = block->ptr;
  if (block->kind == HEAP_BLOCK_IS_EMPTY ||
      (block->kind == HEAP_BLOCK_IS_SMALL && !stays_small(block, size_bytes)) ||
      (block->kind == HEAP_BLOCK_IS_MEDIUM && !in_need &&
       !is_right_size(block->size_bytes, size_bytes)) ||
      (block->kind == HEAP_BLOCK_IS_MAPPED && !in_need &&
       size_bytes < HEAP_MAPPED_GROWN_BYTES / 2)) {
    return NULL;
  }
  // What is given up must not be read again; what is got must be zero.
  clear_tail(block, kept_bytes, space_bytes);
  switch (block->kind) {
    case HEAP_BLOCK_IS_EMPTY:
      break;
    case HEAP_BLOCK_IS_SMALL:
      done = true;
      break;
    case HEAP_BLOCK_IS_MEDIUM:
      done = resize_medium(block, size_bytes);
      if (done && size_bytes > block->size_bytes) {
        verify_grown(block, old_used_bytes, size_bytes, caller);
      }
      break;
    case HEAP_BLOCK_IS_MAPPED:
      done = heap_mapped_resize(ptr, space_bytes);
      if (!done && size_bytes > block->size_bytes) {
        ptr = heap_mapped_move(ptr, space_bytes);
        done = ptr != NULL;
        ptr = done ? ptr : block->ptr;
      }
      block->space_bytes =
          heap_mapped_usable_size(heap_page_of((uintptr_t)ptr));
      break;
  }
  heap_block_set_canary(ptr, done ? size_bytes : block->size_bytes,
                        block->space_bytes);
  return done ? ptr : NULL;
}

// There is no memory for another block: changes this one's length where it is,
// or lets a block that was to be smaller be.
static void *realloc_in_need(heap_block_t *block, size_t size_bytes,
                             const void *caller) {
  if (block->kind == HEAP_BLOCK_IS_EMPTY) {
    return NULL;
  }
  void *ptr = resize(block, size_bytes == 0 ? 1 : size_bytes, true, caller);
  if (ptr == NULL && size_bytes <= block->size_bytes) {
    // Too much space for a canary's reach: only the size changes not.
    ptr = block->ptr;
  }
  if (ptr == block->ptr && ptr != NULL) {
    heap_hook_resize(ptr, size_bytes, heap_block_requested_bytes(ptr));
  }
  return ptr;
}

static void *realloc_by_copy(heap_block_t *block, size_t size_bytes,
                             const heap_call_t *call) {
  void *copy = NULL;
  bool fresh;
  bool is_growing = size_bytes > block->size_bytes;
  if (heap_alloc_is_absurd(size_bytes)) {
    errno = ENOMEM;
    return NULL;
  }
  if (is_growing && size_bytes >= HEAP_MAPPED_GROWN_BYTES) {
    copy = heap_alloc_mapped(HEAP_MIN_ALIGN_BYTES, size_bytes, &fresh);
  } else if (is_growing && heap_alloc_is_medium(size_bytes, true)) {
    copy = heap_alloc_medium(HEAP_MIN_ALIGN_BYTES, size_bytes,
                             heap_alloc_reserve_bytes(size_bytes), &fresh,
                             call->caller);
  }
  if (copy == NULL) {
    copy = heap_alloc_silently(HEAP_MIN_ALIGN_BYTES, size_bytes, &fresh,
                               call->caller);
  }
  if (copy == NULL) {
    return realloc_in_need(block, size_bytes, call->caller);
  }
  size_t kept_bytes = is_growing ? block->size_bytes : size_bytes;
  if (kept_bytes > 0) {
    memcpy(copy, block->ptr, kept_bytes);
  }
  heap_alloc_tell(copy, size_bytes);
  heap_hook_free(block->ptr);
  heap_free_silently(block, call);
  return copy;
}

void *heap_realloc(void *ptr, size_t size_bytes) {
  const heap_call_t call = {"realloc", __builtin_return_address(0)};
  heap_block_t block;
  if (ptr == NULL) {
    return heap_alloc_called(size_bytes, call.caller);
  }
  if (!heap_block_locate(ptr, &call, &block)) {
    errno = EINVAL;
    return NULL;
  }
  if (heap_alloc_is_absurd(size_bytes)) {
    errno = ENOMEM;
    return NULL;
  }
  if (!block.is_whole) {
    heap_block_report(HEAP_MISUSE_OVERFLOW, &block, &call);
    heap_block_set_canary(ptr, block.size_bytes, block.space_bytes);
    block.is_whole = true;
  }
  void *resized = resize(&block, size_bytes, false, call.caller);
  if (resized == ptr) {
    heap_hook_resize(ptr, size_bytes, size_bytes);
  }
  return resized != NULL ? resized : realloc_by_copy(&block, size_bytes, &call);
}
