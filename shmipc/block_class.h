// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Sizes of blocks that share pages. Internal.

#ifndef MY_ALLOC_SHMIPC_BLOCK_CLASS_H_
#define MY_ALLOC_SHMIPC_BLOCK_CLASS_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "shmipc/block_layout.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SHMIPC_CLASSES 40u
#define SHMIPC_CLASS_BYTES_MAX 32768u
// Sizes whose class is found by one load.
#define SHMIPC_CLASS_TABLE_MAX 1024u

typedef struct shmipc_class {
  uint32_t size_bytes;
  uint32_t count;       // Blocks in a page.
  uint32_t reciprocal;  // 2^32 / size_bytes, rounded up: exact for a page.
  // Where in the page the words are; 0: in the table.
  uint32_t words_offset;
} shmipc_class_t;

extern const shmipc_class_t shmipc_classes[SHMIPC_CLASSES];
extern const uint8_t shmipc_class_table[SHMIPC_CLASS_TABLE_MAX / 16 + 1];

// The smallest class that has room; SHMIPC_CLASSES if none.
uint32_t shmipc_class_of(size_t size_bytes);
// The same, of a size that is a multiple of `alignment`, so that all its blocks
// are aligned.
uint32_t shmipc_class_aligned(size_t alignment, size_t size_bytes);

// The block that starts at a byte of a page. False if none does.
static inline bool shmipc_class_index(const shmipc_class_t *class_of,
                                      uint32_t position, uint32_t *out_index) {
  // The quotient is in the upper half, and the lower one is below the
  // reciprocal if there is no remainder (Lemire, Kaser, Kurz 2019).
  uint64_t product = (uint64_t)position * class_of->reciprocal;
  *out_index = (uint32_t)(product >> 32);
  return (uint32_t)product < class_of->reciprocal &&
         *out_index < class_of->count;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SHMIPC_BLOCK_CLASS_H_
