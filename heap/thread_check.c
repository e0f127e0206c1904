// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What must be true of every thread's bins and spans while nobody is inside the
// heap, for tests and debuggers: bin_check.c's invariants, and that each span
// is on one list.

#include "heap/arena.h"
#include "heap/page_table.h"
#include "heap/size_class.h"
#include "heap/span.h"
#include "heap/thread_heap.h"

static const char *check_span(const void *owner, const heap_page_t *page,
                              uint32_t *out_busy) {
  return page->owner == owner
             ? heap_span_check(page, out_busy)
             : "thread heap: a span on a list that is not its own";
}

static const heap_page_t *find_span(const void *owner, uintptr_t address) {
  (void)owner;
  const heap_page_t *page = heap_page_of(address);
  return page->kind == HEAP_PAGE_SPAN ? page : NULL;
}

// A visitor of runs: counts the spans.
static bool count_span(void *context, heap_arena_place_t place) {
  size_t *num_spans = context;
  *num_spans += place.kind == HEAP_RUN_SPAN;
  return true;
}

const char *heap_thread_check_all(void) {
  heap_bin_census_t census = {0};
  size_t num_runs = 0;
  for (const heap_thread_t *thread = heap_thread_all(); thread != NULL;
       thread = thread->next) {
#if HEAP_HARDENED
    census.num_slots += heap_quarantine_count(thread);
#endif
    for (size_t i = 0; i < HEAP_CLASS_COUNT; ++i) {
      const char *broken =
          heap_class_spans_check(&thread->spans[i], &thread->bins[i], i, thread,
                                 check_span, find_span, &census);
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
