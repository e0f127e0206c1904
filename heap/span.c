// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Buffers of states are reused through free lists by length; each buffer's
// first word is the link while it is on one.

#include "heap/span.h"

#include <assert.h>
#include <string.h>

#include "heap/arena.h"
#include "heap/fatal.h"
#include "heap/guard.h"
#include "heap/kernel.h"
#include "heap/metadata.h"

enum {
  GROUPS_MAX = HEAP_PAGE_BYTES / HEAP_CLASS_QUANTUM_BYTES / HEAP_GROUP_BLOCKS,
};

static_assert(GROUPS_MAX <= 64, "one bit of free_groups a group");

// Guarded by the central lock; indexed by the number of groups.
static void *free_states[GROUPS_MAX + 1];
static size_t span_count;

static uint8_t *states_create(size_t groups) {
  uint8_t *states = free_states[groups];
  if (states == NULL) {
    return heap_metadata_alloc(groups * HEAP_GROUP_BLOCKS);
  }
  memcpy(&free_states[groups], states, sizeof(void *));
  return states;
}

static void states_destroy(uint8_t *states, size_t groups) {
  memcpy(states, &free_states[groups], sizeof(void *));
  free_states[groups] = states;
}

static bool cover_pages(uintptr_t start, size_t page_count) {
  for (size_t i = 0; i < page_count; ++i) {
    if (!heap_page_table_cover(start + i * HEAP_PAGE_BYTES)) {
      return false;
    }
  }
  return true;
}

// Takes memory and states for a span; false leaves nothing behind.
static bool take_memory(const heap_class_info_t *info, size_t groups,
                        uintptr_t *out_start, uint8_t **out_states) {
  bool zeroed;
  uintptr_t start = heap_arena_alloc(info->page_count * HEAP_PAGE_UNITS,
                                     HEAP_PAGE_BYTES, HEAP_RUN_SPAN, &zeroed);
  if (start == 0) {
    return false;
  }
  uint8_t *states =
      cover_pages(start, info->page_count) ? states_create(groups) : NULL;
  if (states == NULL) {
    heap_arena_free(start);
    return false;
  }
  if (HEAP_HARDENED) {
    heap_guard_set_ends(start, info->page_count * HEAP_PAGE_BYTES);
  }
  heap_span_state_init(states, info, zeroed);
  *out_start = start;
  *out_states = states;
  return true;
}

heap_page_t *heap_span_create(size_t size_class, struct heap_thread *owner) {
  const heap_class_info_t *info = &heap_class_info[size_class];
  size_t groups = heap_class_group_count(info);
  uintptr_t start;
  uint8_t *states;
  if (!take_memory(info, groups, &start, &states)) {
    return NULL;
  }
  for (size_t i = 0; i < info->page_count; ++i) {
    heap_page_t *page = heap_page_of(start + i * HEAP_PAGE_BYTES);
    HEAP_ASSERT(page->kind == HEAP_PAGE_NONE);
    page->start = start + HEAP_GUARD_BYTES;
    page->states = states;
    page->index = i & 15;
    page->bin_offset = (uint16_t)(size_class * HEAP_BIN_BYTES);
    // Before the hint, as in hint_owner.
    __atomic_store_n(&page->size_class, (uint8_t)size_class, __ATOMIC_SEQ_CST);
    page->reciprocal = info->reciprocal;
    page->kind = HEAP_PAGE_SPAN;
  }
  heap_page_t *first = heap_page_of(start);
  first->frees_to_go = 0;
  first->free_groups = ~UINT64_C(0) >> (64 - groups);
  // A hint that comes late, from a block of an earlier span, is harmless.
  __atomic_store_n(&first->remote_hint, 0, __ATOMIC_SEQ_CST);
  heap_span_set_owner(first, owner);
  ++span_count;
  return first;
}

void heap_span_set_owner(heap_page_t *page, struct heap_thread *owner) {
  size_t page_count = heap_class_info[page->size_class].page_count;
  for (size_t i = 0; i < page_count; ++i) {
    heap_page_t *other = heap_page_of(page->start + i * HEAP_PAGE_BYTES);
    // See thread_heap.c: before the owner counts what others freed.
    __atomic_store_n(&other->owner, owner, __ATOMIC_SEQ_CST);
  }
}

void heap_span_destroy(heap_page_t *page) {
  HEAP_ASSERT(heap_span_recount(page) == 0);
  --span_count;
  states_destroy(page->states, heap_span_group_count(page));
  uintptr_t start = page->start - HEAP_GUARD_BYTES;
  size_t page_count = heap_class_info[page->size_class].page_count;
  for (size_t i = 0; i < page_count; ++i) {
    heap_page_t *other = heap_page_of(start + i * HEAP_PAGE_BYTES);
    other->kind = HEAP_PAGE_NONE;
    other->reciprocal = 0;
    if (!HEAP_CHECKED) {
      // All that a free looks at to tell its own blocks.
      __atomic_store_n(&other->owner, NULL, __ATOMIC_SEQ_CST);
    }
  }
  if (HEAP_HARDENED) {
    heap_guard_clear_ends(start, page_count * HEAP_PAGE_BYTES);
  }
  heap_arena_free(start);
}

size_t heap_span_discard(heap_page_t *page) {
  return heap_span_discard_idle(page, heap_arena_discard);
}

size_t heap_span_count(void) {
  return span_count;
}

// Tells whether the pages behind the first say the same of the span as it.
static bool is_uniform(const heap_page_t *page, size_t page_count) {
  for (size_t i = 1; i < page_count; ++i) {
    const heap_page_t *other = heap_page_of(page->start + i * HEAP_PAGE_BYTES);
    if (other->kind != page->kind || other->start != page->start ||
        other->states != page->states || other->owner != page->owner ||
        other->reciprocal != page->reciprocal || other->index != i ||
        other->bin_offset != page->bin_offset || other->shape != page->shape ||
        other->size_class != page->size_class) {
      return false;
    }
  }
  return true;
}

const char *heap_span_check(const heap_page_t *page, uint32_t *out_busy) {
  if (page->kind != HEAP_PAGE_SPAN) {
    return "span: not a span";
  }
  const heap_class_info_t *info = &heap_class_info[page->size_class];
  heap_arena_place_t place = heap_arena_find(page->start);
  if (heap_page_of(page->start) != page || place.kind != HEAP_RUN_SPAN ||
      place.start + HEAP_GUARD_BYTES != page->start ||
      place.size_bytes != (size_t)info->page_count * HEAP_PAGE_BYTES) {
    return "span: not where its descriptor says";
  }
  if (page->reciprocal != info->reciprocal) {
    return "span: wrong reciprocal";
  }
  if (page->bin_offset != page->size_class * HEAP_BIN_BYTES) {
    return "span: wrong bin";
  }
  if (!is_uniform(page, info->page_count)) {
    return "span: pages that differ";
  }
  return heap_span_state_check(page, out_busy);
}
