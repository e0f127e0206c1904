// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Size classes of small blocks: multiples of 16 up to 128 bytes, then eight to
// a doubling, so that at most 12.5 % of a block above 128 bytes is lost.
// A span is one heap page, or two for the largest, where one would hold few.
//
// Small heaps have smaller pages: shape s is the same with all lengths but the
// blocks' divided by 2^s, so that even a heap of a few KiB has spans of many
// classes.

#ifndef MY_ALLOC_HEAP_SIZE_CLASS_H_
#define MY_ALLOC_HEAP_SIZE_CLASS_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  HEAP_CLASS_COUNT = 72,
  HEAP_CLASS_QUANTUM_BYTES = 16,
  // Up to here a request's class is looked up, above it is calculated.
  HEAP_TABLE_MAX_BYTES = 8192,
  HEAP_TABLE_CLASS_COUNT = 56,
  HEAP_LARGE_STEP_SHIFT = 10,  // Of the first classes above the table.
  // A thread's heap begins with an array of what it has of each class, elements
  // of this size.
  HEAP_BIN_BYTES = 64,
  // Larger requests are runs of units (arena.h).
  HEAP_SMALL_MAX_BYTES = 32768,
  // Small blocks up to this size do not move when they shrink.
  HEAP_SMALLEST_MOVED_BYTES = 64,
  HEAP_SHAPE_COUNT = 7,  // Pages of 64 KiB, the default heap's, to 1 KiB.
};

typedef struct heap_class_info {
  uint32_t size_bytes;
  uint32_t page_count;   // Heap pages of a span; 0: no span has such blocks.
  uint32_t block_count;  // In a span.
  // ceil(2^32 / size): see `heap_page_t.reciprocal`.
  uint32_t reciprocal;
} heap_class_info_t;

// Indexed by class in the first shape, then in the second, and so on.
// Immutable.
extern const heap_class_info_t
    heap_class_info[HEAP_SHAPE_COUNT * HEAP_CLASS_COUNT];

// Returns what a class is in spans of `shape`.
static inline const heap_class_info_t *heap_class_info_in(size_t shape,
                                                          size_t size_class) {
  return &heap_class_info[shape * HEAP_CLASS_COUNT + size_class];
}

// A class's offset in that array, by the request in quanta, rounded up.
// Immutable.
extern const uint16_t
    heap_bin_offsets[HEAP_TABLE_MAX_BYTES / HEAP_CLASS_QUANTUM_BYTES + 1];

// Returns the offset of the smallest class that holds `size_bytes` <=
// HEAP_TABLE_MAX_BYTES.
static inline size_t heap_bin_offset_lookup(size_t size_bytes) {
  return heap_bin_offsets[(size_bytes + HEAP_CLASS_QUANTUM_BYTES - 1) /
                          HEAP_CLASS_QUANTUM_BYTES];
}

// Returns the smallest class that holds `size_bytes` <= HEAP_SMALL_MAX_BYTES.
static inline size_t heap_class_of_size(size_t size_bytes) {
  if (size_bytes <= HEAP_TABLE_MAX_BYTES) {
    return heap_bin_offset_lookup(size_bytes) / HEAP_BIN_BYTES;
  }
  // Two rows of eight, the second one's steps twice as long.
  size_t row = size_bytes > 2 * (size_t)HEAP_TABLE_MAX_BYTES ? 1 : 0;
  size_t base = (size_t)HEAP_TABLE_MAX_BYTES << row;
  return HEAP_TABLE_CLASS_COUNT + row * 8 +
         ((size_bytes - base - 1) >> (HEAP_LARGE_STEP_SHIFT + row));
}

// Tells whether a small block that shrinks to `size_bytes` is left where it is:
// down to half of it, it is not worth a move.
static inline bool heap_class_keeps(size_t usable_bytes, size_t size_bytes) {
  return size_bytes >= usable_bytes / 2 ||
         usable_bytes <= HEAP_SMALLEST_MOVED_BYTES;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_SIZE_CLASS_H_
