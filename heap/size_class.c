// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Both tables are written by the preprocessor from one list, so that they are
// constant, shared by all processes, and need no start-up code.

#include "heap/size_class.h"

#include <assert.h>

#include "heap/harden.h"
#include "heap/page_table.h"

static_assert(8 << HEAP_LARGE_STEP_SHIFT == HEAP_TABLE_MAX_BYTES,
              "eight classes in the first row above the table, too");

// Eight classes above `base` bytes, `step` bytes apart; `index` is the first.
#define CLASS_ROW(X, index, base, step)                    \
  X((index) + 0, (base), (base) + (step))                  \
  X((index) + 1, (base) + (step), (base) + 2 * (step))     \
  X((index) + 2, (base) + 2 * (step), (base) + 3 * (step)) \
  X((index) + 3, (base) + 3 * (step), (base) + 4 * (step)) \
  X((index) + 4, (base) + 4 * (step), (base) + 5 * (step)) \
  X((index) + 5, (base) + 5 * (step), (base) + 6 * (step)) \
  X((index) + 6, (base) + 6 * (step), (base) + 7 * (step)) \
  X((index) + 7, (base) + 7 * (step), (base) + 8 * (step))

// X(class, size of the class below, size): those of the table, and the others.
#define TABLE_CLASSES(X)      \
  CLASS_ROW(X, 0, 0, 16)      \
  CLASS_ROW(X, 8, 128, 16)    \
  CLASS_ROW(X, 16, 256, 32)   \
  CLASS_ROW(X, 24, 512, 64)   \
  CLASS_ROW(X, 32, 1024, 128) \
  CLASS_ROW(X, 40, 2048, 256) \
  CLASS_ROW(X, 48, 4096, 512)
#define LARGE_CLASSES(X)       \
  CLASS_ROW(X, 56, 8192, 1024) \
  CLASS_ROW(X, 64, 16384, 2048)

// Of a span in pages of HEAP_PAGE_BYTES >> shape; only the default shape's has
// guard pages.
#define PAGE_COUNT(size, shape)               \
  ((size) > (HEAP_SMALL_MAX_BYTES >> (shape)) \
       ? 0                                    \
       : ((size) <= (HEAP_SMALL_MAX_BYTES >> ((shape) + 1)) ? 1 : 2))
#define SPAN_BYTES(size, shape)                                       \
  ((uint64_t)PAGE_COUNT(size, shape) * (HEAP_PAGE_BYTES >> (shape)) - \
   ((shape) == 0 ? 2 * HEAP_GUARD_BYTES : 0))
#define BLOCK_COUNT(size, shape) (SPAN_BYTES(size, shape) / (size))
#define RECIPROCAL(size) (((UINT64_C(1) << 32) + (size)-1) / (size))

#define SHAPE_INFO(index, size, shape)                   \
  [(shape)*HEAP_CLASS_COUNT + (index)] = {               \
      .size_bytes = (size),                              \
      .page_count = PAGE_COUNT(size, shape),             \
      .block_count = (uint32_t)BLOCK_COUNT(size, shape), \
      .reciprocal = (uint32_t)RECIPROCAL(size)},

#define CLASS_INFO(index, below, size) \
  SHAPE_INFO(index, size, 0)           \
  SHAPE_INFO(index, size, 1)           \
  SHAPE_INFO(index, size, 2)           \
  SHAPE_INFO(index, size, 3)           \
  SHAPE_INFO(index, size, 4)           \
  SHAPE_INFO(index, size, 5)           \
  SHAPE_INFO(index, size, 6)

#define CLASS_QUANTA(index, below, size)              \
  [(below) / HEAP_CLASS_QUANTUM_BYTES + 1 ...(size) / \
      HEAP_CLASS_QUANTUM_BYTES] = (index)*HEAP_BIN_BYTES,

// Behind the last block is padding, or nothing that a block could start at.
#define SHAPE_CHECK(size, shape)                           \
  static_assert(BLOCK_COUNT(size, shape) % 64 != 0 ||      \
                    SPAN_BYTES(size, shape) % (size) == 0, \
                "the rest of a span has a state");

#define CLASS_CHECK(index, below, size)                             \
  static_assert((size) % HEAP_CLASS_QUANTUM_BYTES == 0, "aligned"); \
  static_assert((size) <= 128 || ((size) - (below)) * 8 <= (size),  \
                "at most 12.5 % lost");                             \
  static_assert((RECIPROCAL(size) * (size) - (UINT64_C(1) << 32)) * \
                        SPAN_BYTES(size, 0) <                       \
                    UINT64_C(1) << 32,                              \
                "the reciprocal divides every offset exactly");     \
  static_assert((index) < HEAP_CLASS_COUNT, "room in the tables");  \
  SHAPE_CHECK(size, 0)                                              \
  SHAPE_CHECK(size, 1)                                              \
  SHAPE_CHECK(size, 2)                                              \
  SHAPE_CHECK(size, 3)                                              \
  SHAPE_CHECK(size, 4)                                              \
  SHAPE_CHECK(size, 5)                                              \
  SHAPE_CHECK(size, 6)

static_assert(HEAP_SHAPE_COUNT == 7, "the lists above");

TABLE_CLASSES(CLASS_CHECK)
LARGE_CLASSES(CLASS_CHECK)

const heap_class_info_t heap_class_info[HEAP_SHAPE_COUNT * HEAP_CLASS_COUNT] = {
    TABLE_CLASSES(CLASS_INFO) LARGE_CLASSES(CLASS_INFO)};

// Size 0 is class 0, by the zero that starts the table.
const uint16_t
    heap_bin_offsets[HEAP_TABLE_MAX_BYTES / HEAP_CLASS_QUANTUM_BYTES + 1] = {
        TABLE_CLASSES(CLASS_QUANTA)};
