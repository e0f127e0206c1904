// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The states of a span are bytes, not bits, so that two threads that free two
// blocks of one span write two different bytes and need no lock or
// read-modify-write for each other's sake; and freeing a block is nothing but
// that byte: there is no list to put it on, and so nothing in the block itself
// that a stray write could damage. The owner finds free blocks by looking at
// 64 states, one cache line, at a time:
//
//   span (64 KiB):    | block 0 | block 1 | ... | block n-1 | rest |
//   states (metadata):| s0 s1 s2 ...  s63 | s64 ...   | ... padding |
//                       \-- group 0 ----/   \- group 1 -/
//
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

static_assert((HEAP_BLOCK_FRESH & 1) == 0 && (HEAP_BLOCK_FREED & 1) == 0 &&
                  (HEAP_BLOCK_LIVE & 1) == 1 && (HEAP_BLOCK_PADDING & 1) == 1 &&
                  (HEAP_BLOCK_CACHED & 1) == 1,
              "bit 0 of a state is clear where a search finds a free block");
static_assert(GROUPS_MAX <= 64, "one bit of free_groups a group");
static_assert(HEAP_BLOCK_FRESH == 0, "zeroed states are fresh");

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
  memset(states, zeroed ? HEAP_BLOCK_FRESH : HEAP_BLOCK_FREED,
         info->block_count);
  memset(states + info->block_count, HEAP_BLOCK_PADDING,
         groups * HEAP_GROUP_BLOCKS - info->block_count);
  *out_start = start;
  *out_states = states;
  return true;
}

heap_page_t *heap_span_create(size_t size_class, struct heap_thread *owner) {
  const heap_class_info_t *info = &heap_class_info[size_class];
  size_t groups =
      (info->block_count + HEAP_GROUP_BLOCKS - 1) / HEAP_GROUP_BLOCKS;
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
    page->index = (uint8_t)i;
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
  }
  if (HEAP_HARDENED) {
    heap_guard_clear_ends(start, page_count * HEAP_PAGE_BYTES);
  }
  heap_arena_free(start);
}

// The blocks that the memory [start, end) of a span is a part of.
typedef struct block_range {
  size_t first;
  size_t end;
} block_range_t;

static block_range_t blocks_in(const heap_page_t *page, size_t start,
                               size_t end) {
  const heap_class_info_t *info = &heap_class_info[page->size_class];
  size_t end_block = (end - 1) / info->size_bytes + 1;
  return (block_range_t){
      .first = start / info->size_bytes,
      .end = end_block < info->block_count ? end_block : info->block_count};
}

// Tells whether the memory [start, end) of a span was used and is not any more.
static bool is_idle(const heap_page_t *page, size_t start, size_t end) {
  block_range_t blocks = blocks_in(page, start, end);
  bool was_used = false;
  for (size_t i = blocks.first; i < blocks.end; ++i) {
    // Acquire: what a thread wrote to the block that it freed came before.
    uint8_t state = __atomic_load_n(&page->states[i], __ATOMIC_ACQUIRE);
    if ((state & 1) != 0) {
      return false;
    }
    was_used = was_used || state == HEAP_BLOCK_FREED;
  }
  return was_used;
}

// The memory [start, end) of a span, all of it free, became zero. Clears what
// lies outside of it of the blocks at its ends, so that all blocks are as new.
static void make_fresh(const heap_page_t *page, size_t start, size_t end) {
  size_t block_bytes = heap_class_info[page->size_class].size_bytes;
  block_range_t blocks = blocks_in(page, start, end);
  unsigned char *bytes = (unsigned char *)page->start;
  size_t first_byte = blocks.first * block_bytes;
  size_t end_byte = blocks.end * block_bytes;
  memset(bytes + first_byte, 0, start - first_byte);
  if (end_byte > end) {
    memset(bytes + end, 0, end_byte - end);
  }
  for (size_t i = blocks.first; i < blocks.end; ++i) {
    __atomic_store_n(&page->states[i], HEAP_BLOCK_FRESH, __ATOMIC_RELAXED);
  }
}

size_t heap_span_discard(heap_page_t *page) {
  size_t page_bytes = heap_kernel->page_bytes();
  size_t span_bytes =
      heap_class_info[page->size_class].page_count * HEAP_PAGE_BYTES -
      2 * HEAP_GUARD_BYTES;
  size_t discarded_bytes = 0;
  size_t start = 0;  // Of the idle pages that end at `end`.
  for (size_t end = 0; start < span_bytes; end += page_bytes) {
    if (end + page_bytes <= span_bytes &&
        is_idle(page, end, end + page_bytes)) {
      continue;
    }
    if (start < end) {
      if (!heap_arena_discard(page->start + start, end - start)) {
        break;
      }
      make_fresh(page, start, end);
      discarded_bytes += end - start;
    }
    start = end + page_bytes;
  }
  return discarded_bytes;
}

size_t heap_span_count(void) {
  return span_count;
}

// Gathers bit 0 of eight states into the low eight bits: the multiplication
// adds copies shifted by 7, 14, ... so that byte i's bit lands at bit 56 + i.
static uint64_t gather_low_bits(uint64_t states) {
  return (states & UINT64_C(0x0101010101010101)) *
             UINT64_C(0x0102040810204080) >>
         56;
}

// Loads eight states. Acquire: pairs with the release of the thread that freed
// a block, whose last writes to it come before ours as its new user.
static uint64_t load_states(const uint8_t *states) {
#ifdef __SANITIZE_THREAD__
  // The thread sanitizer pairs atomics of one address and size only.
  uint64_t word = 0;
  for (size_t i = 0; i < 8; ++i) {
    word |= (uint64_t)__atomic_load_n(states + i, __ATOMIC_ACQUIRE) << (8 * i);
  }
  return word;
#else
  return __atomic_load_n((const uint64_t *)(const void *)states,
                         __ATOMIC_ACQUIRE);
#endif
}

static uint64_t busy_mask(const heap_page_t *page, size_t group) {
  const uint8_t *states = page->states + group * HEAP_GROUP_BLOCKS;
  uint64_t mask = 0;
  for (size_t i = 0; i < HEAP_GROUP_BLOCKS; i += 8) {
    mask |= gather_low_bits(load_states(states + i)) << i;
  }
  return mask;
}

uint64_t heap_span_free_mask(const heap_page_t *page, size_t group) {
  return ~busy_mask(page, group);
}

uint32_t heap_span_recount(heap_page_t *page) {
  uint32_t groups = heap_span_group_count(page);
  uint32_t free_count = 0;
  page->free_groups = 0;
  for (size_t group = 0; group < groups; ++group) {
    uint64_t mask = heap_span_free_mask(page, group);
    free_count += (uint32_t)__builtin_popcountll(mask);
    page->free_groups |= (uint64_t)(mask != 0) << group;
  }
  return heap_class_info[page->size_class].block_count - free_count;
}

// Tells whether the pages behind the first say the same of the span as it.
static bool is_uniform(const heap_page_t *page, size_t page_count) {
  for (size_t i = 1; i < page_count; ++i) {
    const heap_page_t *other = heap_page_of(page->start + i * HEAP_PAGE_BYTES);
    if (other->kind != page->kind || other->start != page->start ||
        other->states != page->states || other->owner != page->owner ||
        other->reciprocal != page->reciprocal || other->index != i ||
        other->bin_offset != page->bin_offset ||
        other->size_class != page->size_class) {
      return false;
    }
  }
  return true;
}

bool heap_span_is_fresh_zero(const heap_page_t *page) {
  const heap_class_info_t *info = &heap_class_info[page->size_class];
  for (uint32_t i = 0; i < info->block_count; ++i) {
    const uint64_t *words =
        (const uint64_t *)(page->start + (uintptr_t)i * info->size_bytes);
    for (size_t word = 0; word < info->size_bytes / sizeof(*words) &&
                          page->states[i] == HEAP_BLOCK_FRESH;
         ++word) {
      if (words[word] != 0) {
        return false;
      }
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
  *out_busy = 0;
  uint32_t end = heap_span_group_count(page) * HEAP_GROUP_BLOCKS;
  for (uint32_t i = 0; i < end; ++i) {
    uint8_t state = page->states[i];
    bool is_known = state <= HEAP_BLOCK_PADDING || state == HEAP_BLOCK_CACHED;
    bool is_padding = state == HEAP_BLOCK_PADDING;
    if (!is_known || is_padding != (i >= info->block_count)) {
      return "span: impossible state of a block";
    }
    *out_busy += !is_padding && (state & 1) != 0;
  }
  return NULL;
}
