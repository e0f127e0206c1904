// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What must be true of every thread's bins and spans while nobody is inside the
// heap: the invariants of thread_heap.c, for tests and debuggers.

#include "heap/arena.h"
#include "heap/page_table.h"
#include "heap/size_class.h"
#include "heap/span.h"
#include "heap/thread_heap.h"

// What was met on the way through all threads.
typedef struct census {
  size_t num_spans;
  size_t num_cached;  // Blocks, by their states.
  size_t num_slots;   // That hold one.
} census_t;

static size_t cached_blocks(const heap_page_t *page) {
  size_t cached = 0;
  for (uint32_t i = 0; i < heap_class_info[page->size_class].block_count; ++i) {
    cached += page->states[i] == HEAP_BLOCK_CACHED;
  }
  return cached;
}

static const char *check_span(const heap_thread_t *thread,
                              const heap_page_t *page, size_t size_class,
                              heap_span_list_t list, census_t *census) {
  uint32_t busy;
  const char *broken = heap_span_check(page, &busy);
  if (broken != NULL) {
    return broken;
  }
  if (!heap_span_is_fresh_zero(page)) {
    return "thread heap: a block that is new but not zero";
  }
  ++census->num_spans;
  census->num_cached += cached_blocks(page);
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

static const char *check_list(const heap_thread_t *thread,
                              const heap_page_list_t *pages, size_t size_class,
                              heap_span_list_t list, census_t *census) {
  const heap_page_t *prev = NULL;
  for (const heap_page_t *page = pages->first; page != NULL;
       page = page->next) {
    if (page->prev != prev) {
      return "thread heap: a list of spans that is broken";
    }
    const char *broken = check_span(thread, page, size_class, list, census);
    if (broken != NULL) {
      return broken;
    }
    prev = page;
  }
  return pages->last == prev ? NULL
                             : "thread heap: a list of spans without its end";
}

#if HEAP_HARDENED
static const char *check_slots(const heap_bin_t *bin, census_t *census) {
  (void)census;
  return bin->top == bin->limit ? NULL : "thread heap: a bin with slots";
}
#else
static const char *check_slots(const heap_bin_t *bin, census_t *census) {
  const heap_slot_t *slot = bin->top;
  for (; slot->ptr != NULL; --slot) {
    ++census->num_slots;
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
#endif

static const char *check_bin(const heap_thread_t *thread, size_t size_class,
                             census_t *census) {
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
  return check_span(thread, page, size_class, HEAP_SPAN_CURRENT, census);
}

static const char *check_class(const heap_thread_t *thread, size_t size_class,
                               census_t *census) {
  const heap_class_spans_t *spans = &thread->spans[size_class];
  const char *broken = check_bin(thread, size_class, census);
  if (broken == NULL && thread != heap_thread_all()) {
    broken = check_slots(&thread->bins[size_class], census);
  }
  if (broken == NULL) {
    broken = check_list(thread, &spans->partial, size_class, HEAP_SPAN_PARTIAL,
                        census);
  }
  if (broken == NULL) {
    broken =
        check_list(thread, &spans->full, size_class, HEAP_SPAN_FULL, census);
  }
  return broken;
}

// A visitor of runs: counts the spans.
static bool count_span(void *context, heap_arena_place_t place) {
  size_t *num_spans = context;
  *num_spans += place.kind == HEAP_RUN_SPAN;
  return true;
}

const char *heap_thread_check_all(void) {
  census_t census = {0};
  size_t num_runs = 0;
  for (const heap_thread_t *thread = heap_thread_all(); thread != NULL;
       thread = thread->next) {
#if HEAP_HARDENED
    census.num_slots += heap_quarantine_count(thread);
#endif
    for (size_t i = 0; i < HEAP_CLASS_COUNT; ++i) {
      const char *broken = check_class(thread, i, &census);
      if (broken != NULL) {
        return broken;
      }
    }
  }
  heap_arena_walk(count_span, &num_runs);
  if (census.num_spans != num_runs || num_runs != heap_span_count()) {
    return "thread heap: a span on no list, or on two";
  }
  return census.num_cached == census.num_slots
             ? NULL
             : "thread heap: a cached block in no slot, or in two";
}
