// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A mapped block's descriptor is that of the heap page in which the block
// starts. Mappings are at least one heap page long and do not overlap, so no
// two blocks start in the same page; an arena's pages are all its own.
//
//   mapping_start      start (aligned)                       mapping end
//   | slack, untouched | block, a multiple of the heap page  |
//
// The hard problem is that the kernel may hand the addresses of a mapping to
// another thread as soon as it is gone. So a descriptor is cleared before its
// mapping goes, and a move happens with the lock held: whoever gets the old
// addresses registers them after the move is through.

#include "heap/mapped.h"

#include "heap/central.h"
#include "heap/fatal.h"
#include "heap/hooks.h"
#include "heap/kernel.h"
#include "heap/mapped_list.h"

enum {
  // Every mapping starts at a multiple of this at least.
  KERNEL_PAGE_MIN_BYTES = 4096,
};

static size_t round_up_to_page(size_t size_bytes) {
  return (size_bytes + HEAP_PAGE_BYTES - 1) & ~(size_t)(HEAP_PAGE_BYTES - 1);
}

// Makes the page of `start` describe a block. Central lock held.
static bool describe(uintptr_t start, uintptr_t mapping_start,
                     size_t mapping_bytes) {
  if (!heap_page_table_cover(start)) {
    return false;
  }
  heap_page_t *page = heap_page_of(start);
  HEAP_ASSERT(page->kind == HEAP_PAGE_NONE);
  page->start = start;
  page->mapping_start = mapping_start;
  page->mapping_bytes = mapping_bytes;
  heap_mapped_list_add(page);
  return true;
}

void *heap_mapped_alloc(size_t align_bytes, size_t size_bytes) {
  // An empty block has a heap page as well: see the top of this file.
  size_t mapping_bytes = round_up_to_page(size_bytes == 0 ? 1 : size_bytes);
  if (align_bytes > KERNEL_PAGE_MIN_BYTES &&
      __builtin_add_overflow(mapping_bytes, align_bytes, &mapping_bytes)) {
    return NULL;
  }
  void *mapping = heap_kernel->map(mapping_bytes, false);
  if (mapping == NULL) {
    return NULL;
  }
  uintptr_t start = ((uintptr_t)mapping + align_bytes - 1) & ~(align_bytes - 1);
  heap_central_lock();
  heap_central_count_kernel_call();
  bool described = describe(start, (uintptr_t)mapping, mapping_bytes);
  if (described) {
    heap_hook_map(mapping, mapping_bytes);
  }
  heap_central_unlock();
  if (!described) {
    heap_kernel->unmap(mapping, mapping_bytes);
    return NULL;
  }
  return (void *)start;
}

bool heap_mapped_free(void *ptr) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  heap_central_lock();
  if (page->kind != HEAP_PAGE_MAPPED || page->start != (uintptr_t)ptr) {
    heap_central_unlock();
    return false;
  }
  void *mapping = (void *)page->mapping_start;
  size_t mapping_bytes = page->mapping_bytes;
  heap_mapped_list_remove(page);
  heap_hook_unmap(mapping, mapping_bytes);
  heap_central_count_kernel_call();
  heap_central_unlock();
  // A refusal (the limit on the number of mappings, when this one lies inside a
  // bigger area) leaves addresses that nobody uses, but not their memory.
  if (!heap_kernel->unmap(mapping, mapping_bytes)) {
    heap_kernel->discard(mapping, mapping_bytes);
  }
  return true;
}

size_t heap_mapped_usable_size(const heap_page_t *page) {
  return page->mapping_start + page->mapping_bytes - page->start;
}

bool heap_mapped_can_have_size(const heap_page_t *page, size_t align_bytes,
                               size_t size_bytes) {
  // Of an aligned block's slack some may be behind it.
  size_t slack_bytes = align_bytes > KERNEL_PAGE_MIN_BYTES ? align_bytes : 0;
  return heap_mapped_usable_size(page) - size_bytes <
         HEAP_PAGE_BYTES + slack_bytes;
}

bool heap_mapped_resize(void *ptr, size_t size_bytes) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  heap_central_lock();
  size_t old_bytes = page->mapping_bytes;
  size_t new_bytes =
      round_up_to_page(page->start - page->mapping_start + size_bytes);
  bool done = new_bytes == old_bytes;
  if (!done) {
    heap_central_count_kernel_call();
    void *mapping = (void *)page->mapping_start;
    done = heap_kernel->resize(mapping, old_bytes, new_bytes);
    if (done && new_bytes > old_bytes) {
      heap_hook_map((char *)mapping + old_bytes, new_bytes - old_bytes);
    } else if (done) {
      heap_hook_unmap((char *)mapping + new_bytes, old_bytes - new_bytes);
    }
  }
  if (done) {
    heap_mapped_list_set_bytes(page, new_bytes);
  }
  heap_central_unlock();
  return done;
}

// Central lock held. The target is a reservation without a descriptor.
static bool move_to(void *ptr, uintptr_t target, size_t new_bytes) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  void *mapping = (void *)page->mapping_start;
  size_t old_bytes = page->mapping_bytes;
  if (!describe(target, target, new_bytes)) {
    return false;
  }
  heap_central_count_kernel_call();
  if (!heap_kernel->move(mapping, old_bytes, (void *)target, new_bytes)) {
    heap_mapped_list_remove(heap_page_of(target));
    return false;
  }
  heap_mapped_list_remove(page);
  heap_hook_unmap(mapping, old_bytes);
  heap_hook_map((void *)target, new_bytes);
  return true;
}

void *heap_mapped_move(void *ptr, size_t size_bytes) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  if (page->mapping_start != page->start) {
    return NULL;  // Only whole mappings move; the caller copies.
  }
  size_t usable_bytes = heap_mapped_usable_size(page);
  size_t new_bytes = round_up_to_page(size_bytes);
  void *target = heap_kernel->map(new_bytes, true);
  if (target == NULL) {
    return NULL;
  }
  heap_hook_free(ptr);
  heap_central_lock();
  heap_central_count_kernel_call();
  bool moved = move_to(ptr, (uintptr_t)target, new_bytes);
  heap_central_unlock();
  if (!moved) {
    // If the target is still there, its addresses are lost: see kernel.h.
    heap_hook_alloc(ptr, usable_bytes, usable_bytes);
    return NULL;
  }
  heap_hook_alloc(target, size_bytes, new_bytes);
  return target;
}
