// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The default heap's spans: heap pages cut into small blocks of one size class,
// with one byte of state a block (span_state.h). A span is named by the
// descriptor of its first page.

#ifndef MY_ALLOC_HEAP_SPAN_H_
#define MY_ALLOC_HEAP_SPAN_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/page_table.h"
#include "heap/size_class.h"
#include "heap/span_state.h"

#ifdef __cplusplus
extern "C" {
#endif

// Returns a new span of `size_class` owned by `owner`, no block of it live, or
// NULL when there is no memory. Central lock held.
heap_page_t *heap_span_create(size_t size_class, struct heap_thread *owner);

// Makes `owner` that of the span.
void heap_span_set_owner(heap_page_t *page, struct heap_thread *owner);

// Gives back a span without live blocks, on no list. Central lock held.
void heap_span_destroy(heap_page_t *page);

// heap_span_discard_idle() of a span of the heap. Central lock held.
size_t heap_span_discard(heap_page_t *page);

// Spans now in existence. Central lock held.
size_t heap_span_count(void);

// Returns the first broken invariant's name, or NULL; `out_busy` is the number
// of blocks that are not free. Nobody else inside the heap.
const char *heap_span_check(const heap_page_t *page, uint32_t *out_busy);

// Returns the first page of the span that any of its pages belongs to.
static inline heap_page_t *heap_span_of(heap_page_t *page) {
  return page->index == 0 ? page : heap_page_of(page->start);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_SPAN_H_
