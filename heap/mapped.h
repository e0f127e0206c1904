// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Blocks that have a mapping of their own: the big ones.

#ifndef MY_ALLOC_HEAP_MAPPED_H_
#define MY_ALLOC_HEAP_MAPPED_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/harden.h"
#include "heap/heap.h"
#include "heap/page_table.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  // From this size on a new block is mapped. Smaller ones come and go too often
  // to be faulted in anew each time.
  HEAP_MAPPED_MIN_BYTES = 32 << 20,
  // From this size on a block that grows is mapped, and then stays so down to
  // half of it.
  HEAP_MAPPED_GROWN_BYTES = 4 << 20,
};

// Returns a zeroed block at a multiple of `align_bytes`, or NULL.
void *heap_mapped_alloc(size_t align_bytes, size_t size_bytes);

// Frees the block at `ptr`; false when it is no mapped block (any more).
bool heap_mapped_free(void *ptr);

// Returns how many bytes the block can hold. `page` is its descriptor.
size_t heap_mapped_usable_size(const heap_page_t *page);

#if HEAP_HARDENED
// Gives the addresses that freed blocks had, and that nobody can use meanwhile,
// back to the kernel. Returns whether there were any. Central lock held.
bool heap_mapped_flush(void);

// Tells whether an address is in such a mapping, and of which block it was.
// Central lock held.
bool heap_mapped_waits(uintptr_t address, uintptr_t *out_block,
                       size_t *out_bytes);
#endif

// Tells whether a block that was asked for with this alignment and size, which
// is not above its usable one, can be this block.
bool heap_mapped_can_have_size(const heap_page_t *page, size_t align_bytes,
                               size_t size_bytes);

// Changes a block's length in place; false: unchanged.
bool heap_mapped_resize(void *ptr, size_t size_bytes);

// Moves the block, by the kernel and without touching its contents, to where
// it has `size_bytes`; tells the hooks. NULL: the block is as it was.
void *heap_mapped_move(void *ptr, size_t size_bytes);

// Visits every mapped block until `visit` says false; false then. Central lock
// held.
bool heap_mapped_walk(heap_visit_t visit, void *context);

// Returns the first broken invariant's name, or NULL. Central lock held.
const char *heap_mapped_check(void);

// Sum of all mappings, bytes. Central lock held.
size_t heap_mapped_total_bytes(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_MAPPED_H_
