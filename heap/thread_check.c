// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What must be true of every thread's bins and spans while nobody is inside the
// heap: the invariants of thread_heap.c, for tests and debuggers.

#include "heap/page_table.h"
#include "heap/size_class.h"
#include "heap/span.h"
#include "heap/thread_heap.h"

static const char *check_span(const heap_thread_t *thread,
                              const heap_page_t *page, size_t size_class,
                              heap_span_list_t list) {
  uint32_t busy;
  const char *broken = heap_span_check(page, &busy);
  if (broken != NULL) {
    return broken;
  }
  if (page->owner != thread || page->size_class != size_class ||
      page->list != list) {
    return "thread heap: a span on a list that is not its own";
  }
  if (list == HEAP_SPAN_CURRENT) {
    busy += (uint32_t)__builtin_popcountll(thread->bins[size_class].mask);
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

static const char *check_list(const heap_thread_t *thread, heap_page_t *first,
                              size_t size_class, heap_span_list_t list) {
  const heap_page_t *prev = NULL;
  for (const heap_page_t *page = first; page != NULL; page = page->next) {
    if (page->prev != prev) {
      return "thread heap: a list of spans that is broken";
    }
    const char *broken = check_span(thread, page, size_class, list);
    if (broken != NULL) {
      return broken;
    }
    prev = page;
  }
  return NULL;
}

static const char *check_slots(const heap_bin_t *bin) {
  const heap_slot_t *slot = bin->top;
  for (; slot->ptr != NULL; --slot) {
    const heap_page_t *page = heap_page_of((uintptr_t)slot->ptr);
    size_t index = ((uintptr_t)slot->ptr - page->start) /
                   heap_class_info[page->size_class].size_bytes;
    if (page->kind != HEAP_PAGE_SPAN || slot->state != page->states + index ||
        *slot->state != HEAP_BLOCK_CACHED) {
      return "thread heap: a cached block that is not free";
    }
  }
  return NULL;
}

static const char *check_bin(const heap_thread_t *thread, size_t size_class) {
  const heap_bin_t *bin = &thread->bins[size_class];
  const heap_page_t *page = thread->spans[size_class].current;
  if (page == NULL) {
    return bin->mask == 0 ? NULL : "thread heap: a bin without a span";
  }
  for (size_t i = 0; i < HEAP_GROUP_BLOCKS && bin->mask != 0; ++i) {
    bool is_free = (bin->states[i] & 1) == 0;
    if ((bin->mask >> i & 1) != 0 && !is_free) {
      return "thread heap: a reserved block that is not free";
    }
  }
  return check_span(thread, page, size_class, HEAP_SPAN_CURRENT);
}

static const char *check_thread(const heap_thread_t *thread) {
  for (size_t i = 0; i < HEAP_CLASS_COUNT; ++i) {
    const heap_class_spans_t *spans = &thread->spans[i];
    const char *broken = check_bin(thread, i);
    if (broken == NULL && thread != heap_thread_all()) {
      broken = check_slots(&thread->bins[i]);
    }
    if (broken == NULL) {
      broken = check_list(thread, spans->partial.first, i, HEAP_SPAN_PARTIAL);
    }
    if (broken == NULL) {
      broken = check_list(thread, spans->full.first, i, HEAP_SPAN_FULL);
    }
    if (broken != NULL) {
      return broken;
    }
  }
  return NULL;
}

const char *heap_thread_check_all(void) {
  const char *broken = NULL;
  for (const heap_thread_t *thread = heap_thread_all();
       thread != NULL && broken == NULL; thread = thread->next) {
    broken = check_thread(thread);
  }
  return broken;
}
