// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Per class an owner has a current span, partial ones with free blocks, and
// full ones. Its bin is a stack of the few blocks freed last, still warm in the
// cache, and behind it one group of the current span: 64 blocks as a bit mask,
// from which an allocation takes the lowest bit. A free that finds the stack
// full goes to its span; which groups of a span have free blocks is a word of
// 64 bits, so the search for the next group is one instruction.
//
// frees_to_go of a span is an upper bound of its live blocks, cached and
// reserved ones included; the owner's frees count it down, and at 0 the span
// is empty for certain. A full span has 1 there instead, so that the first free
// is noticed. What others freed, where there are others (thread_heap.c), is not
// counted before the owner counts the states.
//
// An owner that has a group left which was never used looks at a few groups of
// a hinted span first: blocks that travel would otherwise make all of each span
// dirty before one of them is used again.

#include "heap/bin.h"

#include <assert.h>

#include "heap/fatal.h"
#if HEAP_HARDENED
#include "heap/thread_heap.h"
#endif

enum {
  RETURNED_LOOKED_AT = 4,
  RETURNED_MIN_BLOCKS = HEAP_GROUP_BLOCKS / 8,
  // Blocks that are cached at least, even of small spans.
  SLOTS_MIN = 2,
};

static_assert(sizeof(heap_bin_t) == HEAP_BIN_BYTES, "a bin is one cache line");

// Returns how many blocks of a class a bin caches. Hardened: of all classes
// together no more than the second-level cache holds, as each byte is read once
// more when it is reused.
static size_t slot_count(size_t shape, size_t size_class) {
  size_t size_bytes = (size_t)heap_class_info[size_class].size_bytes << shape;
  size_t count = 4;
  if (size_bytes <= 1024) {
    count = 32;
  } else if (HEAP_HARDENED) {
    count = 4;
  } else if (size_bytes <= 4096) {
    count = 16;
  } else if (size_bytes <= HEAP_TABLE_MAX_BYTES) {
    count = 8;
  }
  return count >> shape > SLOTS_MIN ? count >> shape : SLOTS_MIN;
}

size_t heap_bins_slot_count(size_t shape, size_t class_count) {
  size_t count = 0;
  for (size_t i = 0; i < class_count; ++i) {
    count += slot_count(shape, i) + 1;
  }
  return count;
}

void heap_bins_init(heap_bin_t *bins, heap_slot_t *slots, size_t shape,
                    size_t class_count) {
  for (size_t i = 0; i < class_count; ++i) {
    bins[i] = (heap_bin_t){.top = slots,
                           .limit = slots + slot_count(shape, i),
                           .block_bytes = heap_class_info[i].size_bytes,
                           .slot_count = (uint32_t)slot_count(shape, i)};
    *slots = (heap_slot_t){0};
    slots = bins[i].limit + 1;
  }
}

// Makes the free blocks of a group, named by `mask`, the bin's.
static void fill_bin(heap_bin_t *bin, const heap_page_t *page, size_t group,
                     uint64_t mask) {
  HEAP_ASSERT(mask != 0);
  size_t block_bytes = heap_span_info(page)->size_bytes;
  bin->mask = mask;
  bin->states = page->states + group * HEAP_GROUP_BLOCKS;
  bin->base =
      (unsigned char *)page->start + group * HEAP_GROUP_BLOCKS * block_bytes;
  bin->block_bytes = (uint32_t)block_bytes;
}

// Looks at a few of the groups below `fresh_group`, the next ones at each call,
// for one of which others freed many blocks.
static bool take_returned(heap_bin_t *bin, heap_page_t *page,
                          size_t fresh_group) {
  for (int i = 0; i < RETURNED_LOOKED_AT; ++i) {
    size_t group = page->next_look++ % fresh_group;
    if ((page->free_groups >> group & 1) != 0) {
      continue;  // The bound knows of its free blocks (hardened).
    }
    uint64_t mask = heap_span_free_mask(page, group);
    if (__builtin_popcountll(mask) >= RETURNED_MIN_BLOCKS) {
      // The bound counts them as live still, and they are busy again.
      fill_bin(bin, page, group, mask);
      return true;
    }
  }
  return false;
}

// Chooses one of several groups.
static size_t choose_group(uint64_t groups) {
#if HEAP_HARDENED
  heap_thread_t *thread = heap_thread_get_existing();
  if (thread != NULL && heap_harden_has(HEAP_HARDEN_RANDOM)) {
    return heap_random_bit_of(&thread->quarantine.random, groups);
  }
#endif
  return (size_t)__builtin_ctzll(groups);
}

// Tells whether a block's memory is not there yet, or not any more.
static bool has_no_memory(const uint8_t *state) {
  // Relaxed: a hint; others may be freeing blocks of this group.
  uint8_t value = __atomic_load_n(state, __ATOMIC_RELAXED);
  return value == HEAP_BLOCK_FRESH ||
         (HEAP_HARDENED && value == HEAP_BLOCK_CLEAN);
}

// Makes the lowest group of `page` that has free blocks (hardened: any) the
// bin's. False: none.
static bool take_group(heap_bin_t *bin, heap_page_t *page) {
  if (page->free_groups == 0 && heap_span_is_hinted(page)) {
    heap_span_recount_hinted(page);
  }
  if (page->free_groups == 0) {
    return false;
  }
  size_t group = choose_group(page->free_groups);
  if (group > 0 && heap_span_is_hinted(page) &&
      has_no_memory(&page->states[group * HEAP_GROUP_BLOCKS]) &&
      take_returned(bin, page, group)) {
    return true;
  }
  page->free_groups &= ~(UINT64_C(1) << group);
  uint64_t mask = heap_span_free_mask(page, group);
  page->frees_to_go += (uint32_t)__builtin_popcountll(mask);
  fill_bin(bin, page, group, mask);
  return true;
}

void heap_class_spans_push_full(heap_class_spans_t *spans, heap_page_t *page) {
  page->list = HEAP_SPAN_FULL;
  page->frees_to_go = 1;
  heap_page_list_push_back(&spans->full, page);
}

heap_page_t *heap_class_spans_pop_partial(heap_class_spans_t *spans) {
  heap_page_t *page = spans->partial.first;
  if (page != NULL) {
    heap_page_list_remove(&spans->partial, page);
  }
  return page;
}

void heap_class_spans_set_current(heap_class_spans_t *spans,
                                  heap_page_t *page) {
  page->list = HEAP_SPAN_CURRENT;
  spans->current = page;
}

bool heap_bin_refill(heap_bin_t *bin, heap_class_spans_t *spans) {
  HEAP_ASSERT(bin->mask == 0);
  for (;;) {
    heap_page_t *page = spans->current;
    if (page != NULL) {
      if (take_group(bin, page)) {
        return true;
      }
      spans->current = NULL;
      heap_class_spans_push_full(spans, page);
    }
    page = heap_class_spans_pop_partial(spans);
    if (page == NULL) {
      return false;
    }
    heap_class_spans_set_current(spans, page);
  }
}

bool heap_class_spans_freed(heap_class_spans_t *spans, const heap_bin_t *bin,
                            heap_page_t *page) {
  (void)bin;
  switch ((heap_span_list_t)page->list) {
    case HEAP_SPAN_CURRENT:
      // So its mask is empty, and its bin's stack full of others' blocks: a
      // program that goes on finds those first.
      HEAP_ASSERT(bin->mask == 0);
      spans->current = NULL;
      return true;
    case HEAP_SPAN_FULL:
      heap_page_list_remove(&spans->full, page);
      page->list = HEAP_SPAN_PARTIAL;
      page->frees_to_go = heap_span_info(page)->block_count - 1;
      if (heap_span_is_hinted(page)) {
        // Or what others freed would never be counted.
        heap_span_recount_hinted(page);
      }
      if (page->frees_to_go == 0) {
        return true;
      }
      heap_page_list_push_front(&spans->partial, page);
      return false;
    case HEAP_SPAN_PARTIAL:
      heap_page_list_remove(&spans->partial, page);
      return true;
  }
  return false;
}

uint8_t *heap_bin_state_of(const heap_slot_t *slot) {
  uint8_t *state = slot->state;
  if (!HEAP_CHECKED) {
    heap_small_block_state(heap_page_of((uintptr_t)slot->ptr), slot->ptr,
                           &state);
  }
  return state;
}

void heap_bin_empty(heap_bin_t *bin) {
  bin->mask = 0;
  for (; bin->top->ptr != NULL; --bin->top) {
    __atomic_store_n(heap_bin_state_of(bin->top), HEAP_BLOCK_FREED,
                     __ATOMIC_RELAXED);
  }
}

void heap_bin_close(heap_bin_t *bin) {
  HEAP_ASSERT(bin->mask == 0 && bin->top->ptr == NULL);
  bin->limit = bin->top;
#if HEAP_HARDENED
  bin->slot_count = 0;  // From which what is cached is counted.
#endif
}

void heap_bin_open(heap_bin_t *bin, size_t size_class) {
  HEAP_ASSERT(heap_bin_is_closed(bin));
  bin->slot_count = (uint32_t)slot_count(0, size_class);
  bin->limit = bin->top + bin->slot_count;
}

// Puts a span, on no list, where it belongs by what is free in it now. False:
// all of it.
static bool put_back(heap_class_spans_t *spans, heap_page_t *page) {
  heap_span_recount_hinted(page);
  if (page->frees_to_go == 0) {
    return false;
  }
  if (page->free_groups == 0) {
    heap_class_spans_push_full(spans, page);
  } else {
    page->list = HEAP_SPAN_PARTIAL;
    heap_page_list_push_back(&spans->partial, page);
  }
  return true;
}

// Returns any span, on no list then, or NULL.
static heap_page_t *pop(heap_class_spans_t *spans) {
  heap_page_t *page = spans->current;
  if (page != NULL) {
    spans->current = NULL;
    return page;
  }
  page = heap_class_spans_pop_partial(spans);
  if (page == NULL && spans->full.first != NULL) {
    page = spans->full.first;
    heap_page_list_remove(&spans->full, page);
  }
  return page;
}

void heap_class_spans_settle(heap_class_spans_t *spans, heap_bin_t *bin,
                             heap_span_give_back_t give_back, void *context) {
  heap_class_spans_t old = *spans;
  heap_page_t *page;
  heap_bin_empty(bin);
  *spans = (heap_class_spans_t){0};
  while ((page = pop(&old)) != NULL) {
    if (!put_back(spans, page)) {
      give_back(context, page);
    }
  }
}

heap_page_t *heap_bin_return_group(heap_bin_t *bin, heap_class_spans_t *spans) {
  heap_page_t *page = spans->current;
  if (bin->mask == 0) {
    return NULL;
  }
  size_t group = (size_t)(bin->states - page->states) / HEAP_GROUP_BLOCKS;
  page->free_groups |= UINT64_C(1) << group;
  // Also those that take_returned took: the bound had never left them out.
  page->frees_to_go -= (uint32_t)__builtin_popcountll(bin->mask);
  bin->mask = 0;
  if (page->frees_to_go != 0) {
    return NULL;
  }
  spans->current = NULL;
  return page;
}
