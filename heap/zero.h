// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Making memory zero and looking whether it is (hardened variant): each byte
// that a program frees goes through both. Short lengths are done without loops,
// from both ends towards the middle, as their number of turns is what the
// processor cannot foretell.

#ifndef MY_ALLOC_HEAP_ZERO_H_
#define MY_ALLOC_HEAP_ZERO_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "heap/canary.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  // What is done without loops.
  HEAP_SHORT_BYTES = 128,
};

// Finds out what the processor has. A look takes `most_bytes` at once at most:
// SIZE_MAX but for tests. Central lock held, once.
void heap_zero_start(size_t most_bytes);

// As heap_is_zero(), for any length.
bool heap_is_zero_long(const void *ptr, size_t size_bytes);

// Zeroes memory that may be long; of a very long one those pages only that are
// not zero, or a free would fault all the pages in that the program never
// touched. The address is a multiple of HEAP_GUARD_BYTES.
void heap_zero_pages(void *ptr, size_t size_bytes);

// Tells whether memory of up to HEAP_SHORT_BYTES is zero, as heap_is_zero().
static inline __attribute__((always_inline)) bool heap_is_zero_short(
    const void *ptr, size_t size_bytes) {
  const heap_chunk_t *first = (const heap_chunk_t *)ptr;
  const heap_chunk_t *end =
      (const heap_chunk_t *)((const char *)ptr + size_bytes);
  heap_chunk_t sum;
  if (size_bytes <= 64) {
    size_t second = size_bytes > 16;
    sum = (first[0] | first[second]) | (end[-1] | end[-1 - (ptrdiff_t)second]);
  } else {
    sum = (first[0] | first[1] | first[2] | first[3]) |
          (end[-1] | end[-2] | end[-3] | end[-4]);
  }
  return (sum[0] | sum[1]) == 0;
}

// Tells whether memory is zero; `size_bytes`, not 0, and the address are
// multiples of 16.
static inline bool heap_is_zero(const void *ptr, size_t size_bytes) {
  return size_bytes <= HEAP_SHORT_BYTES ? heap_is_zero_short(ptr, size_bytes)
                                        : heap_is_zero_long(ptr, size_bytes);
}

// Zeroes a small block of up to HEAP_SHORT_BYTES. The word at its end goes in
// one store: the free of the block behind it may be looking at it.
static inline __attribute__((always_inline)) void heap_zero_short(
    void *ptr, size_t size_bytes) {
#ifdef __SANITIZE_THREAD__
  for (size_t at = 0; at < size_bytes; at += HEAP_CANARY_BYTES) {
    heap_canary_store((uintptr_t)ptr + at, 0);
  }
#else
  heap_chunk_t *first = (heap_chunk_t *)ptr;
  heap_chunk_t *end = (heap_chunk_t *)((char *)ptr + size_bytes);
  const heap_chunk_t zero = {0};
  if (size_bytes <= 64) {
    size_t second = size_bytes > 16;
    first[0] = zero;
    first[second] = zero;
    end[-1 - (ptrdiff_t)second] = zero;
    end[-1] = zero;
  } else {
    first[0] = zero;
    first[1] = zero;
    first[2] = zero;
    first[3] = zero;
    end[-4] = zero;
    end[-3] = zero;
    end[-2] = zero;
    end[-1] = zero;
  }
#endif
}

// Zeroes a small block.
static inline void heap_zero_small(void *ptr, size_t size_bytes) {
  if (size_bytes <= HEAP_SHORT_BYTES) {
    heap_zero_short(ptr, size_bytes);
  } else {
    heap_canary_store((uintptr_t)ptr + size_bytes - HEAP_CANARY_BYTES, 0);
    memset(ptr, 0, size_bytes - HEAP_CANARY_BYTES);
  }
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_ZERO_H_
