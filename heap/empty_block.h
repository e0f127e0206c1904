// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Blocks of size 0 (hardened variant): addresses of which every access faults.

#ifndef MY_ALLOC_HEAP_EMPTY_BLOCK_H_
#define MY_ALLOC_HEAP_EMPTY_BLOCK_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/heap.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  // No such block has a greater alignment.
  HEAP_EMPTY_MAX_ALIGN_BYTES = 64 << 10,
};

typedef enum heap_empty_kind {
  HEAP_EMPTY_NOT,  // No address of this kind of block.
  HEAP_EMPTY_LIVE,
  HEAP_EMPTY_FREED,   // Or never handed out.
  HEAP_EMPTY_INSIDE,  // Not a multiple of a block's distance.
} heap_empty_kind_t;

// All functions: central lock held.

// Returns a block at a multiple of `align_bytes`, or NULL.
void *heap_empty_alloc(size_t align_bytes);

heap_empty_kind_t heap_empty_find(const void *ptr);

// Frees a live one.
void heap_empty_free(void *ptr);

// Calls `visit` with each live one, as heap_walk does.
bool heap_empty_walk(heap_visit_t visit, void *context);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_EMPTY_BLOCK_H_
