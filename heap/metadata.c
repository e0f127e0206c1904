// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A bump pointer through mappings of CHUNK_BYTES. What is freed here is freed
// by its user into free lists of its own (states by size, thread heaps whole):
// both are reused for what they were.

#include "heap/metadata.h"

#include <stdint.h>

#include "heap/central.h"
#include "heap/fatal.h"
#include "heap/kernel.h"

enum {
  CHUNK_BYTES = 256 << 10,
  METADATA_ALIGN_BYTES = 64
};

// Guarded by the central lock.
static unsigned char *chunk_next;
static size_t chunk_left_bytes;
static size_t total_bytes;

void *heap_metadata_map(size_t size_bytes) {
  void *ptr = heap_kernel->map(size_bytes, false);
  heap_central_count_kernel_call();
  if (ptr != NULL) {
    total_bytes += size_bytes;
  }
  return ptr;
}

void *heap_metadata_grow(void *ptr, size_t old_bytes, size_t new_bytes) {
  void *target = heap_kernel->map(new_bytes, true);
  heap_central_count_kernel_call();
  if (target == NULL) {
    return NULL;
  }
  heap_central_count_kernel_call();
  if (!heap_kernel->move(ptr, old_bytes, target, new_bytes)) {
    return NULL;  // If the target is still there, its addresses are lost.
  }
  total_bytes += new_bytes - old_bytes;
  return target;
}

void heap_metadata_discard_zeros(void *ptr, size_t size_bytes) {
  uintptr_t page_bytes = heap_kernel->page_bytes();
  uintptr_t first = ((uintptr_t)ptr + page_bytes - 1) & ~(page_bytes - 1);
  uintptr_t end = ((uintptr_t)ptr + size_bytes) & ~(page_bytes - 1);
  if (first < end) {
    heap_central_count_kernel_call();
    heap_kernel->discard((void *)first, end - first);
  }
}

void *heap_metadata_alloc(size_t size_bytes) {
  HEAP_ASSERT(size_bytes <= CHUNK_BYTES);
  size_bytes = (size_bytes + METADATA_ALIGN_BYTES - 1) &
               ~(size_t)(METADATA_ALIGN_BYTES - 1);
  if (size_bytes > chunk_left_bytes) {
    // The rest of the old chunk, smaller than one request, stays unused; it
    // was never touched, so it costs addresses only.
    unsigned char *chunk = heap_metadata_map(CHUNK_BYTES);
    if (chunk == NULL) {
      return NULL;
    }
    chunk_next = chunk;
    chunk_left_bytes = CHUNK_BYTES;
  }
  unsigned char *ptr = chunk_next;
  chunk_next += size_bytes;
  chunk_left_bytes -= size_bytes;
  return ptr;
}

size_t heap_metadata_bytes(void) {
  return total_bytes;
}
