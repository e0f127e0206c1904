// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Memory for the heap's own tables, apart from the memory it hands out, so that
// no overflow of a block reaches it. Its addresses never go back to the kernel.

#ifndef MY_ALLOC_HEAP_METADATA_H_
#define MY_ALLOC_HEAP_METADATA_H_

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// Returns zeroed memory at a multiple of 64, or NULL (ENOMEM in the kernel).
// Central lock held.
void *heap_metadata_alloc(size_t size_bytes);

// Returns zeroed pages of their own, for tables that are mostly untouched or
// that grow. Central lock held.
void *heap_metadata_map(size_t size_bytes);

// Moves such a table, with its contents, to where it has `new_bytes`; NULL: it
// is unchanged. Central lock held.
void *heap_metadata_grow(void *ptr, size_t old_bytes, size_t new_bytes);

// Of such a table [ptr, ptr + size_bytes) is all zero: gives the memory of the
// kernel's pages in it back, if the kernel will have it. It still reads as
// zero. Central lock held.
void heap_metadata_discard_zeros(void *ptr, size_t size_bytes);

// Bytes of addresses taken so far; what is untouched costs no memory. Central
// lock held.
size_t heap_metadata_bytes(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_METADATA_H_
