// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The heap of a region, byte for byte. Internal.
//
//   heap_offset        head: mutexes, hint
//   + 4096             roots
//   + 4096 + 16 KiB    heads of pages: 8 bytes each
//                      notes of pages: 8 bytes each
//                      words of pages: 64 bytes each
//   pages_offset       pages of 64 KiB: as many as the capacity has room for;
//                      the file has the first of them
//
// All zero is a heap without blocks.

#ifndef MY_ALLOC_SHMIPC_BLOCK_LAYOUT_H_
#define MY_ALLOC_SHMIPC_BLOCK_LAYOUT_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shmipc/mutex.h"
#include "shmipc/root.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHMIPC_PAGE_SHIFT 16
#define SHMIPC_PAGE_BYTES (1u << SHMIPC_PAGE_SHIFT)
#define SHMIPC_HEAP_HEAD_BYTES 4096u
// Of the whole region; twice what a region may have is not reached.
#define SHMIPC_PAGES_MAX (1u << 30)
// Blocks of a page whose words are in the table; those of others are at the end
// of their page.
#define SHMIPC_TABLE_WORDS 16u

typedef struct shmipc_heap_head {
  shmipc_mutex_t roots_mutex;  // Offset 0. Of those that change roots.
  uint8_t padding[60];
  shmipc_mutex_t runs_mutex;  // 64. Of those that look for several pages.
  uint8_t padding1[60];
  uint32_t first_free;  // 128. A page to begin the search with; any value.
  uint32_t reserved;
  // 136. Counts runs: the next one's tag. Added to by whoever claims one.
  uint64_t num_runs;
  uint8_t padding2[48];
  // 192. While blocks of the dead are being freed: the thread that is at it, as
  // a page's head names it. Written under roots_mutex; without that mutex held
  // by the very thread it says nothing.
  uint64_t reclaimer;
  // 200. Counts allocations that found no memory. A hint, to those that have
  // pages, that somebody needs them.
  uint32_t shortages;
} shmipc_heap_head_t;

// `state`: bit 0 there is a root, bits 1..31 count changes. Written under
// roots_mutex, the bit last.
typedef struct shmipc_root {
  uint32_t state;     // Offset 0.
  uint32_t reserved;  // 4
  uint64_t ref;       // 8
  char name[112];     // 16. NUL at the end.
} shmipc_root_t;

// The head of a page.
//   0..7     kind
//   8..23    record + 1 of the thread that has it
//   24..31   0
//   32..63   the record's generation
// Of LARGE instead:
//   8..63    the run's tag, which no other run has
#define SHMIPC_PAGE_FREE 0u
// 1 to SHMIPC_CLASSES: blocks of class kind - 1. All other kinds but LARGE and
// MORE name a thread, too.
#define SHMIPC_PAGE_PREPARING 0xf0u  // Being made a page of blocks, or a run.
#define SHMIPC_PAGE_LARGE 0xf1u      // The first of a run: one block.
#define SHMIPC_PAGE_MORE 0xf2u       // Belongs to the run before it.
#define SHMIPC_PAGE_FREEING 0xf3u    // The first of a run that is going.
#define SHMIPC_PAGE_KIND 0xffu
#define SHMIPC_PAGE_UNUSED 0xff000000u
#define SHMIPC_PAGE_ID(index, generation) \
  (((uint64_t)(generation) << 32) | (((uint64_t)(index) + 1) << 8))
#define SHMIPC_PAGE_INDEX(head) ((uint32_t)(((head) >> 8) & 0xffffu) - 1u)
#define SHMIPC_PAGE_GENERATION(head) ((uint32_t)((head) >> 32))
#define SHMIPC_PAGE_RUN(tag) (((uint64_t)(tag) << 8) | SHMIPC_PAGE_LARGE)
#define SHMIPC_PAGE_TAG(head) ((uint64_t)(head) >> 8)

typedef struct shmipc_page_note {
  // Blocks were freed that their owner did not see. A hint.
  uint32_t freed;  // Offset 0.
  // Of a run: pages that its block was asked to have. There may be more.
  uint32_t num_pages;  // 4
} shmipc_page_note_t;

// The word of a block.
//   0        free
//   0..10    slot + 1 of the owner; 0x7ff: the region
//   11..30   low bits of the slot's generation
//   31       in flight
#define SHMIPC_BLOCK_FREE 0u
#define SHMIPC_BLOCK_REGION 0x7ffu
#define SHMIPC_BLOCK_FLIGHT 0x80000000u
#define SHMIPC_BLOCK_GENERATIONS 0xfffffu
#define SHMIPC_BLOCK_OWNER(slot, generation) \
  (((slot) + 1u) | (((generation)&SHMIPC_BLOCK_GENERATIONS) << 11))
#define SHMIPC_BLOCK_SLOT(word) (((word)&0x7ffu) - 1u)
#define SHMIPC_BLOCK_GENERATION(word) \
  (((word) >> 11) & SHMIPC_BLOCK_GENERATIONS)

// Bytes before the pages.
static inline uint64_t shmipc_heap_tables_bytes(uint64_t num_pages) {
  uint64_t bytes = SHMIPC_HEAP_HEAD_BYTES +
                   SHMIPC_ROOTS_MAX * sizeof(shmipc_root_t) +
                   // Rounded up, so that the words begin on a cache line.
                   (num_pages + 3) / 4 * 4 * 16 +
                   num_pages * SHMIPC_TABLE_WORDS * sizeof(uint32_t);
  return (bytes + 4095) / 4096 * 4096;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_BLOCK_LAYOUT_H_
