// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// Which heap pages of an arena hold memory that nobody uses, and when it is
// time to give that memory back to the kernel.
//
// All functions: central lock held. Pages are numbered from an arena's base.

#ifndef MY_ALLOC_HEAP_PURGE_H_
#define MY_ALLOC_HEAP_PURGE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// What is known of one heap page: a byte of these flags, 0 at first.
enum {
  // Handed out since it was last all zero.
  HEAP_PAGE_DIRTY = 1,
  // Dirty, and no part of it is live.
  HEAP_PAGE_IDLE = 2,
  // Clean because it was purged, not because it is new.
  HEAP_PAGE_PURGED = 4,
  // Dirty and free, but not idle: the kernel would not take it, or must not.
  HEAP_PAGE_REFUSED = 8,
};

// The pages of one arena.
typedef struct heap_page_flags {
  uint8_t *flags;
  size_t capacity_bytes;  // Of `flags`.
  size_t idle_end;        // No page from here on is idle.
  bool is_kept;           // Memory that never goes back: no page is idle.
} heap_page_flags_t;

// Marks pages [first, end) as handed out, in whole or in part. Returns whether
// all of them were clean (hardened: new).
bool heap_purge_note_use(heap_page_flags_t *pages, size_t first, size_t end);

// Marks pages [first, end), no part of which is live, as idle where dirty.
void heap_purge_note_idle(heap_page_flags_t *pages, size_t first, size_t end);

// The memory of pages [first, end) went back to the kernel; what comes in its
// place will be zero.
void heap_purge_note_gone(heap_page_flags_t *pages, size_t first, size_t end);

// Returns whether there is more idle memory than the policy keeps, given the
// pages that blocks and spans of all arenas have.
bool heap_purge_is_due(size_t used_pages);

// Starts a purge that is due and returns how many pages may stay idle.
size_t heap_purge_begin(size_t used_pages);

// Returns whether what was given back of late was hardly wanted again.
bool heap_purge_is_eager(void);

// Gives the memory of idle pages among the first `page_count` pages at `base`
// back, highest first, until no more than `keep_pages` are idle in all
// arenas. Returns how many pages were given back.
size_t heap_purge_pages(heap_page_flags_t *pages, uintptr_t base,
                        size_t page_count, size_t keep_pages);

// Returns whether any page is idle.
bool heap_purge_has_idle(heap_page_flags_t *pages);

// Sum over all arenas.
size_t heap_purge_idle_pages(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_PURGE_H_
