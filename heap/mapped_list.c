// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/mapped_list.h"

#include "heap/harden.h"
#include "heap/mapped.h"

// Guarded by the central lock.
static size_t total_bytes;
static heap_page_list_t blocks;

void heap_mapped_list_add(heap_page_t *page) {
  page->kind = HEAP_PAGE_MAPPED;
  heap_page_list_push_back(&blocks, page);
  total_bytes += page->mapping_bytes;
}

void heap_mapped_list_remove(heap_page_t *page) {
  page->kind = HEAP_PAGE_NONE;
  heap_page_list_remove(&blocks, page);
  total_bytes -= page->mapping_bytes;
}

void heap_mapped_list_set_bytes(heap_page_t *page, size_t mapping_bytes) {
  total_bytes += mapping_bytes - page->mapping_bytes;
  page->mapping_bytes = mapping_bytes;
}

size_t heap_mapped_total_bytes(void) {
  return total_bytes;
}

// Hardened: a guard at each end, and no slack. Otherwise slack before it.
static bool is_inside(const heap_page_t *page) {
  size_t before = page->start - page->mapping_start;
  return HEAP_HARDENED ? before == HEAP_GUARD_BYTES &&
                             page->mapping_bytes > 2 * HEAP_GUARD_BYTES
                       : page->start >= page->mapping_start &&
                             before < page->mapping_bytes;
}

static bool is_right(const heap_page_t *page, const heap_page_t *prev) {
  return page->prev == prev && page->kind == HEAP_PAGE_MAPPED &&
         heap_page_of(page->start) == page && page->reciprocal == 0 &&
         is_inside(page);
}

const char *heap_mapped_check(void) {
  size_t sum_bytes = 0;
  const heap_page_t *prev = NULL;
  for (const heap_page_t *page = blocks.first; page != NULL;
       page = page->next) {
    if (!is_right(page, prev)) {
      return "mapped: a block whose descriptor is wrong";
    }
    sum_bytes += page->mapping_bytes;
    prev = page;
  }
  if (blocks.last != prev) {
    return "mapped: a list of blocks that is broken";
  }
  return sum_bytes == total_bytes ? NULL : "mapped: wrong sum of mappings";
}

bool heap_mapped_walk(heap_visit_t visit, void *context) {
  for (const heap_page_t *page = blocks.first; page != NULL;
       page = page->next) {
    if (!visit(context, (void *)page->start, heap_mapped_usable_size(page))) {
      return false;
    }
  }
  return true;
}
