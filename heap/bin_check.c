// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What must be true of an owner's bins and spans while nobody is inside the
// heap: the invariants of bin.c, for tests and debuggers.

#include "heap/bin.h"

// Whose spans are looked at, and how.
typedef struct checker {
  const heap_bin_t *bin;
  size_t size_class;
  const void *owner;
  heap_bin_check_span_t check_span;
  heap_bin_find_span_t find_span;
  heap_bin_census_t *census;
} checker_t;

static size_t cached_blocks(const heap_page_t *page) {
  size_t cached = 0;
  for (uint32_t i = 0; i < heap_span_info(page)->block_count; ++i) {
    cached += page->states[i] == HEAP_BLOCK_CACHED;
  }
  return cached;
}

static const char *check_span(const checker_t *checker, const heap_page_t *page,
                              heap_span_list_t list) {
  uint32_t busy;
  const char *broken = checker->check_span(checker->owner, page, &busy);
  if (broken != NULL) {
    return broken;
  }
  if (!heap_span_is_fresh_zero(page)) {
    return "thread heap: a block that is new but not zero";
  }
  ++checker->census->num_spans;
  checker->census->num_cached += cached_blocks(page);
  if (page->size_class != checker->size_class || page->list != list) {
    return "thread heap: a span on a list that is not its own";
  }
  if (list == HEAP_SPAN_CURRENT) {
    busy += (uint32_t)__builtin_popcountll(checker->bin->mask);
  }
  if (list != HEAP_SPAN_FULL && page->frees_to_go < busy) {
    return "thread heap: more live blocks in a span than counted";
  }
  if (list == HEAP_SPAN_FULL &&
      (page->frees_to_go != 1 || page->free_groups != 0)) {
    return "thread heap: a full span that would not notice a free";
  }
  return NULL;
}

static const char *check_list(const checker_t *checker,
                              const heap_page_list_t *pages,
                              heap_span_list_t list) {
  const heap_page_t *prev = NULL;
  for (const heap_page_t *page = pages->first; page != NULL;
       page = page->next) {
    if (page->prev != prev) {
      return "thread heap: a list of spans that is broken";
    }
    const char *broken = check_span(checker, page, list);
    if (broken != NULL) {
      return broken;
    }
    prev = page;
  }
  return pages->last == prev ? NULL
                             : "thread heap: a list of spans without its end";
}

static const char *check_slots(const checker_t *checker) {
  if (!HEAP_CHECKED || checker->bin->top == NULL) {
    return NULL;
  }
  for (const heap_slot_t *slot = checker->bin->top; slot->ptr != NULL; --slot) {
    ++checker->census->num_slots;
    uintptr_t address = (uintptr_t)slot->ptr;
    const heap_page_t *page = checker->find_span(checker->owner, address);
    if (page == NULL ||
        slot->state != page->states + (address - page->start) /
                                          heap_span_info(page)->size_bytes ||
        *slot->state != HEAP_BLOCK_CACHED) {
      return "thread heap: a cached block that is not free";
    }
  }
  return NULL;
}

static const char *check_bin(const checker_t *checker,
                             const heap_page_t *current) {
  const heap_bin_t *bin = checker->bin;
  if (current == NULL) {
    return bin->mask == 0 ? NULL : "thread heap: a bin without a span";
  }
  for (size_t i = 0; i < HEAP_GROUP_BLOCKS && bin->mask != 0; ++i) {
    bool is_free = (bin->states[i] & 1) == 0;
    if ((bin->mask >> i & 1) != 0 && !is_free) {
      return "thread heap: a reserved block that is not free";
    }
  }
  return check_span(checker, current, HEAP_SPAN_CURRENT);
}

const char *heap_class_spans_check(const heap_class_spans_t *spans,
                                   const heap_bin_t *bin, size_t size_class,
                                   const void *owner,
                                   heap_bin_check_span_t check_owned,
                                   heap_bin_find_span_t find_span,
                                   heap_bin_census_t *census) {
  const checker_t checker = {bin,         size_class, owner,
                             check_owned, find_span,  census};
  const char *broken = check_bin(&checker, spans->current);
  if (broken == NULL) {
    broken = check_slots(&checker);
  }
  if (broken == NULL) {
    broken = check_list(&checker, &spans->partial, HEAP_SPAN_PARTIAL);
  }
  if (broken == NULL) {
    broken = check_list(&checker, &spans->full, HEAP_SPAN_FULL);
  }
  return broken;
}
