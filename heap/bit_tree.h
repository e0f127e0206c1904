// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A set of 32-bit numbers as a bitmap, with summaries above it in which a bit
// says whether a word below has any: the next and the previous element are
// found in a number of steps that depends on the capacity alone.

#ifndef MY_ALLOC_HEAP_BIT_TREE_H_
#define MY_ALLOC_HEAP_BIT_TREE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  HEAP_BIT_TREE_LEVELS = 6,  // 64^6 > 2^32.
};

#define HEAP_BIT_NONE UINT32_MAX

typedef struct heap_bit_tree {
  // [0] has one bit a number; each next one bit a word of the one before.
  uint64_t *levels[HEAP_BIT_TREE_LEVELS];
  uint32_t level_count;
  uint32_t word_counts[HEAP_BIT_TREE_LEVELS];
  uint64_t *steps;  // Counts the words that searches read.
} heap_bit_tree_t;

// Returns the memory that a tree of numbers below `capacity` >= 1 needs, a
// multiple of a word.
size_t heap_bit_tree_bytes(uint32_t capacity);

// Makes an empty tree in `memory`, which is zeroed and aligned to a word.
void heap_bit_tree_init(heap_bit_tree_t *tree, void *memory, uint32_t capacity,
                        uint64_t *steps);

// Numbers are below the capacity.
void heap_bit_tree_add(heap_bit_tree_t *tree, uint32_t number);
void heap_bit_tree_remove(heap_bit_tree_t *tree, uint32_t number);
// Removes all numbers below `end`, which no element reaches.
void heap_bit_tree_clear(heap_bit_tree_t *tree, uint32_t end);

static inline bool heap_bit_tree_has(const heap_bit_tree_t *tree,
                                     uint32_t number) {
  return (tree->levels[0][number / 64] >> (number % 64) & 1) != 0;
}

// Returns the lowest element from `number` on, or HEAP_BIT_NONE. `number` may
// be the capacity.
uint32_t heap_bit_tree_next(const heap_bit_tree_t *tree, uint32_t number);

// Returns the highest element up to `number`, or HEAP_BIT_NONE.
uint32_t heap_bit_tree_prev(const heap_bit_tree_t *tree, uint32_t number);

// Tells whether the summaries say what is below them, and there is no element
// from `end` on. Proportional to `end`.
bool heap_bit_tree_is_sound(const heap_bit_tree_t *tree, uint32_t end);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_BIT_TREE_H_
