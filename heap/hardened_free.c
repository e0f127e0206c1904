// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What becomes of a block that is freed, other than in the usual case.
//
// A free claims the block first, by its state or by its place in the list of
// runs that wait, so that of two frees at once one finds it taken. Then nobody
// else touches it: the canaries are checked, the block is zeroed and goes into
// quarantine (quarantine.h).

#include <errno.h>

#include "heap/central.h"
#include "heap/diagnose.h"
#include "heap/empty_block.h"
#include "heap/fast_path.h"
#include "heap/hardened_internal.h"
#include "heap/hooks.h"
#include "heap/quarantine_push.h"

// Puts a block, claimed and scrubbed, into quarantine.
static void retire_small(heap_thread_t *thread, const heap_block_t *block) {
  const heap_waiting_t waiting = {block->page, block->state};
  if (thread != NULL && heap_harden_has(HEAP_HARDEN_QUARANTINE)) {
    heap_quarantine_push(thread, waiting, block->space_bytes);
  } else {
    heap_quarantine_release(thread, waiting, block->space_bytes);
  }
}

static void free_small(const heap_block_t *block, const heap_call_t *call) {
  // First: from then on others do not believe that they are alone.
  heap_thread_t *thread = heap_thread_get();
  if (!heap_free_claim(block->state)) {
    heap_report_pointer(block->ptr, call);  // Somebody else was faster.
    return;
  }
  heap_block_check_surroundings(block, call);
  heap_free_scrub(block->ptr, block->space_bytes);
  retire_small(thread, block);
}

// Zeroes what was handed out of a block's run; all of it if that is not known.
static void scrub_run(const heap_block_t *block, size_t run_bytes) {
  size_t space_bytes = heap_guarded_bytes(run_bytes);
  if (!heap_harden_has(HEAP_HARDEN_ZERO)) {
    return;
  }
  if (!block->is_whole || block->space_bytes != space_bytes) {
    heap_zero_pages(block->ptr, space_bytes);
    return;
  }
  heap_zero_pages(block->ptr,
                  heap_block_used_bytes(block->size_bytes, space_bytes));
  heap_canary_store((uintptr_t)block->ptr + space_bytes - HEAP_CANARY_BYTES, 0);
}

// Frees a run at once, as there is no room to wait. Central lock held.
static void free_run(uintptr_t run, heap_arena_place_t place,
                     const heap_block_t *block) {
  scrub_run(block, place.size_bytes);
  heap_guard_clear_ends(run, place.size_bytes);
  heap_arena_free(run);
}

static void free_medium(const heap_block_t *block, const heap_call_t *call) {
  uintptr_t run = (uintptr_t)block->ptr - HEAP_GUARD_BYTES;
  heap_arena_place_t place;
  // It may be another's soon.
  heap_block_check_surroundings(block, call);
  heap_central_lock();
  bool is_live = heap_block_find_medium(block->ptr, &place);
  bool is_claimed = is_live && heap_run_quarantine_claim(run, place.size_bytes);
  if (is_live && !is_claimed) {
    free_run(run, place, block);
  }
  heap_central_unlock();
  if (is_claimed) {
    scrub_run(block, place.size_bytes);
    heap_central_lock();
    heap_run_quarantine_settle(run);
    heap_central_unlock();
  } else if (!is_live) {
    heap_report_pointer(block->ptr, call);
  }
}

static void free_empty(const heap_block_t *block, const heap_call_t *call) {
  heap_central_lock();
  bool is_live = heap_empty_find(block->ptr) == HEAP_EMPTY_LIVE;
  if (is_live) {
    heap_empty_free(block->ptr);
  }
  heap_central_unlock();
  if (!is_live) {
    heap_report_pointer(block->ptr, call);
  }
}

void heap_free_silently(const heap_block_t *block, const heap_call_t *call) {
  int saved_errno = errno;
  switch (block->kind) {
    case HEAP_BLOCK_IS_EMPTY:
      free_empty(block, call);
      break;
    case HEAP_BLOCK_IS_SMALL:
      free_small(block, call);
      break;
    case HEAP_BLOCK_IS_MEDIUM:
      free_medium(block, call);
      break;
    case HEAP_BLOCK_IS_MAPPED:
      heap_block_check_surroundings(block, call);
      if (!heap_mapped_free(block->ptr)) {
        heap_report_pointer(block->ptr, call);
      }
      break;
  }
  errno = saved_errno;
}

void heap_free_called(void *ptr, const void *caller) {
  const heap_call_t call = {"free", caller};
  heap_block_t block;
  if (ptr != NULL && heap_block_locate(ptr, &call, &block)) {
    heap_hook_free(ptr);
    heap_free_silently(&block, &call);
  }
}

static bool is_rounded_size(size_t rounded_bytes, size_t align_bytes,
                            size_t size_bytes) {
  size_t sum_bytes;
  return align_bytes != 0 &&
         !__builtin_add_overflow(size_bytes, align_bytes - 1, &sum_bytes) &&
         (sum_bytes & ~(align_bytes - 1)) == rounded_bytes;
}

// C++ libraries make an aligned size a multiple of the alignment, some of a
// pointer's at least, and 0 a 1, and tell the sized delete what it was before.
// `align_bytes` 0: the call names none.
static bool is_its_size(const heap_block_t *block, size_t align_bytes,
                        size_t size_bytes) {
  if (!heap_harden_has(HEAP_HARDEN_SIZED) || !block->is_whole) {
    return size_bytes <= block->size_bytes;
  }
  size_t asked_bytes = size_bytes == 0 ? 1 : size_bytes;
  if (!heap_harden_has(HEAP_HARDEN_CANARY)) {
    // Nothing but the space is known.
    if (align_bytes > HEAP_MIN_ALIGN_BYTES ||
        block->kind != HEAP_BLOCK_IS_SMALL) {
      return size_bytes <= block->size_bytes;
    }
    return block->kind == HEAP_BLOCK_IS_SMALL &&
           heap_alloc_class(HEAP_MIN_ALIGN_BYTES, asked_bytes) ==
               block->page->size_class;
  }
  return size_bytes == block->size_bytes || asked_bytes == block->size_bytes ||
         is_rounded_size(block->size_bytes, align_bytes, asked_bytes) ||
         (align_bytes != 0 && align_bytes < sizeof(void *) &&
          is_rounded_size(block->size_bytes, sizeof(void *), asked_bytes));
}

// What `realloc` made of a block in place has the size it asked for, so
// `may_have_shrunk` means nothing here.
void heap_free_sized_slow(void *ptr, size_t align_bytes, size_t size_bytes,
                          bool may_have_shrunk) {
  (void)may_have_shrunk;
  const heap_call_t call = {"sized free", __builtin_return_address(0)};
  heap_block_t block;
  if (ptr == NULL || !heap_block_locate(ptr, &call, &block)) {
    return;
  }
  if (!is_its_size(&block, align_bytes, size_bytes)) {
    heap_block_report(HEAP_MISUSE_SIZE, &block, &call);
  }
  heap_hook_free(ptr);
  heap_free_silently(&block, &call);
}
