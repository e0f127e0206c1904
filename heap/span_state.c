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

#include "heap/span_state.h"

#include <assert.h>
#include <string.h>

#include "heap/fatal.h"
#include "heap/kernel.h"

static_assert((HEAP_BLOCK_FRESH & 1) == 0 && (HEAP_BLOCK_FREED & 1) == 0 &&
                  (HEAP_BLOCK_CLEAN & 1) == 0 && (HEAP_BLOCK_LIVE & 1) == 1 &&
                  (HEAP_BLOCK_PADDING & 1) == 1 && (HEAP_BLOCK_CACHED & 1) == 1,
              "bit 0 of a state is clear where a search finds a free block");

void heap_span_state_init(uint8_t *states, const heap_class_info_t *info,
                          bool is_zeroed) {
  size_t end = heap_class_group_count(info) * HEAP_GROUP_BLOCKS;
  memset(states, is_zeroed ? HEAP_BLOCK_FRESH : HEAP_BLOCK_FREED,
         info->block_count);
  memset(states + info->block_count, HEAP_BLOCK_PADDING,
         end - info->block_count);
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
  return heap_span_info(page)->block_count - free_count;
}

void heap_span_recount_hinted(heap_page_t *page) {
  __atomic_store_n(&page->remote_hint, 0, __ATOMIC_SEQ_CST);
  page->frees_to_go = heap_span_recount(page);
}

// The blocks that the memory [start, end) of a span is a part of.
typedef struct block_range {
  size_t first;
  size_t end;
} block_range_t;

static block_range_t blocks_in(const heap_page_t *page, size_t start,
                               size_t end) {
  const heap_class_info_t *info = heap_span_info(page);
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
// (Hardened: all of it is zero already, or somebody wrote to a free block; what
// says so stays, and these blocks are looked at before they are used again.)
static void make_fresh(const heap_page_t *page, size_t start, size_t end) {
  size_t block_bytes = heap_span_info(page)->size_bytes;
  block_range_t blocks = blocks_in(page, start, end);
#if HEAP_HARDENED
  for (size_t i = blocks.first; i < blocks.end; ++i) {
    __atomic_store_n(&page->states[i], HEAP_BLOCK_CLEAN, __ATOMIC_RELAXED);
  }
  (void)block_bytes;
#else
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
#endif
}

size_t heap_span_discard_idle(heap_page_t *page, heap_span_discard_t discard) {
  size_t page_bytes = heap_kernel->page_bytes();
  size_t span_bytes = heap_span_bytes(page);
  size_t discarded_bytes = 0;
  size_t start = 0;  // Of the idle pages that end at `end`.
  for (size_t end = 0; start < span_bytes; end += page_bytes) {
    if (end + page_bytes <= span_bytes &&
        is_idle(page, end, end + page_bytes)) {
      continue;
    }
    if (start < end) {
      if (!discard(page->start + start, end - start)) {
        break;
      }
      make_fresh(page, start, end);
      discarded_bytes += end - start;
    }
    start = end + page_bytes;
  }
  return discarded_bytes;
}

bool heap_span_is_fresh_zero(const heap_page_t *page) {
  const heap_class_info_t *info = heap_span_info(page);
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

const char *heap_span_state_check(const heap_page_t *page, uint32_t *out_busy) {
  const heap_class_info_t *info = heap_span_info(page);
  *out_busy = 0;
  uint32_t end = heap_span_group_count(page) * HEAP_GROUP_BLOCKS;
  for (uint32_t i = 0; i < end; ++i) {
    uint8_t state = page->states[i];
    bool is_known = state <= HEAP_BLOCK_PADDING || state == HEAP_BLOCK_CACHED ||
                    (HEAP_HARDENED && state == HEAP_BLOCK_CLEAN);
    bool is_padding = state == HEAP_BLOCK_PADDING;
    if (!is_known || is_padding != (i >= info->block_count)) {
      return "span: impossible state of a block";
    }
    *out_busy += !is_padding && (state & 1) != 0;
  }
  return NULL;
}
