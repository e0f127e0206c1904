// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the units of the heap have in common. Internal.
//
// Every word of shared memory is read once, and what is made of it is checked:
// kinds, classes, records and slots for their range, pages for being mapped.

#ifndef MY_ALLOC_SHMIPC_BLOCK_INTERNAL_H_
#define MY_ALLOC_SHMIPC_BLOCK_INTERNAL_H_

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shmipc/block.h"
#include "shmipc/block_class.h"
#include "shmipc/block_layout.h"
#include "shmipc/region_internal.h"
#include "shmipc/thread_record.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHMIPC_NO_PAGE UINT32_MAX
// Free blocks that a thread knows of, a class.
#define SHMIPC_HINTS 32u

// A block that was free when it was put here.
typedef struct shmipc_hint {
  uint32_t *word;
  unsigned char *block;
} shmipc_hint_t;

// A thread's blocks of one class. Private memory.
typedef struct shmipc_bin {
  uint32_t num_hints;
  uint32_t num_frees;  // That found no room here, since pages were looked at.
  shmipc_hint_t hints[SHMIPC_HINTS];
  uint32_t *pages;  // That are ours.
  uint32_t num_pages;
  uint32_t max_pages;
  uint32_t current;   // Place in `pages` of the one that is being scanned,
  uint32_t position;  // and its next block; beyond the last: none is.
  uint32_t checked;   // Place in `pages` that was last looked at for emptiness.
} shmipc_bin_t;

typedef struct shmipc_cache {
  uint32_t owner;      // What words of blocks say that are this process's.
  uint32_t impatient;  // Claims of runs that are not to wait.
  uint32_t shortages;  // Of the heap's head, when they were last answered.
  uint32_t num_refills;
  uint32_t looked;  // Class whose pages were last looked at for emptiness.
  shmipc_bin_t bins[SHMIPC_CLASSES];
} shmipc_cache_t;

static inline shmipc_heap_head_t *shmipc_heap_head_of(
    const shmipc_region_t *region) {
  return (shmipc_heap_head_t *)(void *)(region->base + region->heap_offset);
}

static inline shmipc_root_t *shmipc_root_of(const shmipc_region_t *region,
                                            uint32_t index) {
  return (shmipc_root_t *)(void *)(region->base + region->heap_offset +
                                   SHMIPC_HEAP_HEAD_BYTES) +
         index;
}

static inline uint64_t *shmipc_head_of(const shmipc_region_t *region,
                                       uint32_t page) {
  return region->heads + page;
}

static inline shmipc_page_note_t *shmipc_note_of(const shmipc_region_t *region,
                                                 uint32_t page) {
  uint32_t num_heads = (region->heap_pages + 3) / 4 * 4;
  return (shmipc_page_note_t *)(void *)shmipc_head_of(region, num_heads) + page;
}

static inline uint32_t *shmipc_table_words_of(const shmipc_region_t *region,
                                              uint32_t page) {
  uint32_t num_heads = (region->heap_pages + 3) / 4 * 4;
  return (uint32_t *)(void *)shmipc_note_of(region, num_heads) +
         (size_t)page * SHMIPC_TABLE_WORDS;
}

static inline unsigned char *shmipc_page_of(const shmipc_region_t *region,
                                            uint32_t page) {
  return region->pages + ((uint64_t)page << SHMIPC_PAGE_SHIFT);
}

// Words of a page of blocks, which is mapped.
static inline uint32_t *shmipc_words_of(const shmipc_region_t *region,
                                        uint32_t page, uint32_t class_index) {
  uint32_t offset = shmipc_classes[class_index].words_offset;
  if (offset == 0) {
    return shmipc_table_words_of(region, page);
  }
  return (uint32_t *)(void *)(shmipc_page_of(region, page) + offset);
}

// Acquire: what a head says was made before it was stored.
static inline uint64_t shmipc_head_load(const shmipc_region_t *region,
                                        uint32_t page) {
  return __atomic_load_n(shmipc_head_of(region, page), __ATOMIC_ACQUIRE);
}

// Release: see there. Only by whoever the head names.
static inline void shmipc_head_store(const shmipc_region_t *region,
                                     uint32_t page, uint64_t head) {
  __atomic_store_n(shmipc_head_of(region, page), head, __ATOMIC_RELEASE);
}

static inline bool shmipc_head_change(const shmipc_region_t *region,
                                      uint32_t page, uint64_t from,
                                      uint64_t to) {
  return __atomic_compare_exchange_n(shmipc_head_of(region, page), &from, to,
                                     false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static inline uint32_t shmipc_kind_of(uint64_t head) {
  return (uint32_t)head & SHMIPC_PAGE_KIND;
}

static inline bool shmipc_is_class(uint32_t kind) {
  return kind - 1 < SHMIPC_CLASSES;
}

// Acquire: what was done with the block before it was freed came before.
static inline uint32_t shmipc_word_load(const uint32_t *word) {
  return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline bool shmipc_word_change(uint32_t *word, uint32_t from,
                                      uint32_t to) {
  return __atomic_compare_exchange_n(word, &from, to, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_RELAXED);
}

// Pages that are mapped here, whole.
static inline uint32_t shmipc_pages_mapped(const shmipc_region_t *region) {
  // Pairs with the release store after the pages were mapped.
  return __atomic_load_n(&region->mapped_pages, __ATOMIC_ACQUIRE);
}

// census.c: who is alive, asked of the kernel at most once a slot.
typedef struct shmipc_census {
  // Word of the slot, taken, when it was asked; 0: not asked.
  uint32_t words[SHMIPC_PROCESSES_MAX];
  bool is_alive[SHMIPC_PROCESSES_MAX];
} shmipc_census_t;

void shmipc_census_begin(shmipc_census_t *census);
// Whether the thread that a head names is there. Without a census only what
// needs no system call counts as its end.
bool shmipc_head_is_alive(const shmipc_region_t *region,
                          shmipc_census_t *census, uint64_t head);
// Whether the process that a block's word names is there.
bool shmipc_block_is_alive(const shmipc_region_t *region,
                           shmipc_census_t *census, uint32_t word);

// block_page.c: pages, and runs of them.
// Maps what others have added.
void shmipc_pages_refresh(shmipc_region_t *region);
// Makes room for a run of `count` pages, and for others soon, or maps what
// somebody else has added. False if nothing was: so a caller that tries again
// after each time comes to an end.
bool shmipc_pages_grow(shmipc_region_t *region, uint32_t count);
// Claims the first free run: its first page is PREPARING, the others MORE.
uint32_t shmipc_run_claim(shmipc_region_t *region, const shmipc_self_t *self,
                          uint32_t count);
// Pages of the run that starts there, as the heads say. 1 or more.
uint32_t shmipc_run_extent(const shmipc_region_t *region, uint32_t first);
// Frees the run, from its last page on. Its first names us. Returns its pages.
uint32_t shmipc_run_release(shmipc_region_t *region, uint32_t first);
// Claims `count` pages behind a run of `extent`, or none.
bool shmipc_run_extend(shmipc_region_t *region, uint32_t first, uint32_t extent,
                       uint32_t count);
// Frees all but the first `count` pages.
void shmipc_run_shorten(shmipc_region_t *region, uint32_t first,
                        uint32_t count);
// Frees the run of a dead thread. Returns its pages; 0 if somebody else is at
// it, or it may not be done now.
uint32_t shmipc_run_take_over(shmipc_region_t *region,
                              const shmipc_self_t *self, uint32_t first,
                              uint64_t head);
void shmipc_page_release(shmipc_region_t *region, uint32_t page);
// Whether a thread that lives may be looking through the words of pages, none
// of which may then become another kind.
bool shmipc_is_reclaiming(const shmipc_region_t *region);

// block_cache.c: a thread's blocks.
int shmipc_cache_of(shmipc_region_t *region, shmipc_self_t **out_self);
void shmipc_cache_delete(shmipc_cache_t *cache);
// A block of the class, its word stored; NULL: no memory.
void *shmipc_cache_alloc(shmipc_region_t *region, shmipc_self_t *self,
                         uint32_t class_index, size_t alignment);
// After a block of one of our pages was freed for which there was no hint.
void shmipc_cache_note_free(shmipc_region_t *region, shmipc_self_t *self,
                            uint32_t class_index, uint32_t page);
// Says that a block of the page is free that its owner knows nothing of.
void shmipc_page_note_freed(const shmipc_region_t *region, uint32_t page);
// Says that somebody found no memory; those that have pages look at them.
void shmipc_cache_say_shortage(const shmipc_region_t *region);
// Gives back our pages without a live block. Returns how many.
uint32_t shmipc_cache_trim(shmipc_region_t *region, shmipc_self_t *self);

// The same of pages of the dead, found by asking the kernel. Others of them
// become ours.
uint32_t shmipc_cache_trim_dead(shmipc_region_t *region, shmipc_self_t *self);

// block.c
typedef struct shmipc_place {
  uint64_t head;  // That was found.
  uint32_t page;
  uint32_t class_index;  // SHMIPC_CLASSES: a run.
  uint32_t *word;
} shmipc_place_t;

// Finds the word of the block that starts at `block`: 0, -EINVAL, -EALREADY
// (free, as a whole page). The word may be of a free block.
int shmipc_place_find(const shmipc_region_t *region, const void *block,
                      shmipc_place_t *out_place);
// Bytes of the block, all of them mapped.
size_t shmipc_place_bytes(shmipc_region_t *region, const shmipc_place_t *place);
// Frees the block if its word is still `seen`, which is live, or of a run, if
// it is still that one. -EALREADY.
int shmipc_place_free(shmipc_region_t *region, const shmipc_self_t *self,
                      const shmipc_place_t *place, uint32_t seen);
// 0, or why there can be no use of the heap: -ECHILD, -EROFS, -EOPNOTSUPP.
int shmipc_heap_status(const shmipc_region_t *region, bool writes);

// root.c
// Under the mutex of roots: blocks of roots whose owner died before it said so
// become the region's.
int shmipc_roots_lock(shmipc_region_t *region);
// The name in the mutex's word; 0: nobody's.
static inline uint32_t shmipc_roots_owner(const shmipc_region_t *region) {
  return __atomic_load_n(&shmipc_heap_head_of(region)->roots_mutex.word,
                         __ATOMIC_SEQ_CST) &
         SHMIPC_WORD_OWNER;
}
void shmipc_roots_unlock(shmipc_region_t *region);
void shmipc_roots_redo(shmipc_region_t *region, shmipc_census_t *census);

// block_verify.c: looks, as of region_verify.c.
const char *shmipc_look_at_page(const shmipc_region_t *region, uint32_t index,
                                uint64_t *out_offset, uint64_t *out_value);
const char *shmipc_look_at_reclaimer(const shmipc_region_t *region,
                                     uint32_t index, uint64_t *out_offset,
                                     uint64_t *out_value);
const char *shmipc_look_at_root(const shmipc_region_t *region, uint32_t index,
                                uint64_t *out_offset, uint64_t *out_value);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_BLOCK_INTERNAL_H_
