// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What a pointer given to the heap is. A small block needs no lock for that:
// its descriptor cannot change while it is live. The others are located under
// the central lock, and again when they are freed.

#include "heap/central.h"
#include "heap/diagnose.h"
#include "heap/empty_block.h"
#include "heap/hardened_internal.h"
#include "heap/quarantine.h"

bool heap_block_find_medium(const void *ptr, heap_arena_place_t *out_place) {
  uintptr_t run = (uintptr_t)ptr - HEAP_GUARD_BYTES;
  *out_place = heap_arena_find(run);
  return out_place->kind == HEAP_RUN_BLOCK && out_place->start == run &&
         !heap_run_quarantine_has(run);
}

static bool locate_under_lock(void *ptr, heap_block_t *out_block) {
  heap_arena_place_t place;
  bool is_empty = heap_empty_find(ptr) == HEAP_EMPTY_LIVE;
  if (is_empty) {
    *out_block = (heap_block_t){.kind = HEAP_BLOCK_IS_EMPTY, .ptr = ptr};
  } else if (heap_block_find_medium(ptr, &place)) {
    *out_block =
        (heap_block_t){.kind = HEAP_BLOCK_IS_MEDIUM,
                       .ptr = ptr,
                       .space_bytes = heap_guarded_bytes(place.size_bytes)};
  } else {
    return false;
  }
  return true;
}

static bool find_block(void *ptr, heap_block_t *out_block) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  if (page->kind == HEAP_PAGE_SPAN) {
    uint8_t *state;
    if (!heap_block_state(page, ptr, &state) ||
        __atomic_load_n(state, __ATOMIC_RELAXED) != HEAP_BLOCK_LIVE) {
      return false;
    }
    *out_block = (heap_block_t){
        .kind = HEAP_BLOCK_IS_SMALL,
        .ptr = ptr,
        .space_bytes = heap_class_info[page->size_class].size_bytes,
        .page = page,
        .state = state};
    return true;
  }
  if (page->kind == HEAP_PAGE_MAPPED && page->start == (uintptr_t)ptr) {
    *out_block = (heap_block_t){.kind = HEAP_BLOCK_IS_MAPPED,
                                .ptr = ptr,
                                .space_bytes = heap_mapped_usable_size(page),
                                .page = page};
    return true;
  }
  heap_central_lock();
  bool is_found = locate_under_lock(ptr, out_block);
  heap_central_unlock();
  return is_found;
}

// Finds out which size was asked for.
static void read_size(heap_block_t *block) {
  block->is_whole = true;
  if (block->kind == HEAP_BLOCK_IS_EMPTY) {
    block->size_bytes = 0;
  } else if (!heap_harden_has(HEAP_HARDEN_CANARY)) {
    block->size_bytes = block->space_bytes;
  } else if (!heap_canary_check(block->ptr, block->space_bytes,
                                &block->size_bytes)) {
    block->is_whole = false;
    block->size_bytes = block->space_bytes - HEAP_CANARY_BYTES;
  }
}

bool heap_block_locate(void *ptr, const heap_call_t *call,
                       heap_block_t *out_block) {
  if (!find_block(ptr, out_block)) {
    heap_report_pointer(ptr, call);
    return false;
  }
  read_size(out_block);
  return true;
}

size_t heap_block_requested_bytes(void *ptr) {
  heap_block_t block;
  if (!find_block(ptr, &block)) {
    return 0;
  }
  read_size(&block);
  return block.size_bytes;
}

void heap_block_report(heap_misuse_t misuse, const heap_block_t *block,
                       const heap_call_t *call) {
  heap_report_misuse(misuse, call, block->ptr, (uintptr_t)block->ptr,
                     block->space_bytes);
}

// Of a block that a guard stands before: if that is not there, the page is
// zero.
static bool is_guard_whole(const void *ptr) {
  if (!heap_guard_may_be_missing() || !heap_harden_has(HEAP_HARDEN_CANARY)) {
    return true;
  }
  heap_central_lock();
  bool is_missing = heap_guard_is_missing((uintptr_t)ptr - HEAP_GUARD_BYTES);
  heap_central_unlock();
  return !is_missing ||
         heap_canary_load((uintptr_t)ptr - HEAP_CANARY_BYTES) == 0;
}

static bool has_underflow(const heap_block_t *block) {
  if (block->kind == HEAP_BLOCK_IS_MEDIUM ||
      (block->kind == HEAP_BLOCK_IS_SMALL &&
       (uintptr_t)block->ptr == block->page->start)) {
    return !is_guard_whole(block->ptr);
  }
  return block->kind == HEAP_BLOCK_IS_SMALL &&
         !heap_block_is_whole_before(block->page, block->ptr);
}

void heap_block_check_surroundings(const heap_block_t *block,
                                   const heap_call_t *call) {
  if (!block->is_whole) {
    heap_block_report(HEAP_MISUSE_OVERFLOW, block, call);
  }
  if (has_underflow(block)) {
    heap_block_report(HEAP_MISUSE_UNDERFLOW, block, call);
    // Or the next block here would be reported, too.
    heap_canary_store((uintptr_t)block->ptr - HEAP_CANARY_BYTES, 0);
  }
}
