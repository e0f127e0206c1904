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
  // [0] has one bit a number; each next one bit a word of the one before. At
  // least two, but for a tree without summaries.
  uint64_t *levels[HEAP_BIT_TREE_LEVELS];
  uint32_t level_count;
  uint32_t word_counts[HEAP_BIT_TREE_LEVELS];
  // Counts the words of higher levels that calls read or change; who calls
  // counts 1 for the rest.
  uint64_t *steps;
} heap_bit_tree_t;

// No search takes more steps, that 1 included: each word on the way up, and
// down again.
#define HEAP_BIT_TREE_SEARCH_STEPS (2 * HEAP_BIT_TREE_LEVELS - 1)

// Returns the memory that a tree of numbers below `capacity` >= 1 needs, a
// multiple of a word.
size_t heap_bit_tree_bytes(uint32_t capacity);

// Makes an empty tree in `memory`, which is zeroed and aligned to a word.
void heap_bit_tree_init(heap_bit_tree_t *tree, void *memory, uint32_t capacity,
                        uint64_t *steps);

// The same without summaries, which cannot be searched.
void heap_bit_tree_init_flat(heap_bit_tree_t *tree, void *memory,
                             uint32_t capacity, uint64_t *steps);

// Removes all numbers below `end`, which no element reaches.
void heap_bit_tree_clear(heap_bit_tree_t *tree, uint32_t end);

// Tells whether the summaries say what is below them, and there is no element
// from `end` on. Proportional to `end`.
bool heap_bit_tree_is_sound(const heap_bit_tree_t *tree, uint32_t end);

// What is beyond the lowest levels; for the functions below.
void heap_bit_tree_add_above(heap_bit_tree_t *tree, uint32_t number);
void heap_bit_tree_remove_above(heap_bit_tree_t *tree, uint32_t number);
void heap_bit_tree_settle(heap_bit_tree_t *tree, uint32_t number);
uint32_t heap_bit_tree_next_far(const heap_bit_tree_t *tree, uint32_t number);
uint32_t heap_bit_tree_prev_far(const heap_bit_tree_t *tree, uint32_t number);

// Numbers are below the capacity.

// In a tree that is known to have summaries, the two lowest levels only,
// without a branch: whether a word is empty is hard to foresee there. True: the
// levels above are to be told by heap_bit_tree_settle() before the next search.
static inline bool heap_bit_tree_add_low(heap_bit_tree_t *tree,
                                         uint32_t number) {
  tree->levels[0][number / 64] |= UINT64_C(1) << (number % 64);
  uint64_t *summary = &tree->levels[1][number / 4096];
  uint64_t before = *summary;
  *summary = before | UINT64_C(1) << (number / 64 % 64);
  return before == 0;
}

static inline bool heap_bit_tree_remove_low(heap_bit_tree_t *tree,
                                            uint32_t number) {
  uint64_t *word = &tree->levels[0][number / 64];
  uint64_t rest = *word & ~(UINT64_C(1) << (number % 64));
  *word = rest;
  uint64_t *summary = &tree->levels[1][number / 4096];
  uint64_t rest_summary =
      *summary & ~((uint64_t)(rest == 0) << (number / 64 % 64));
  *summary = rest_summary;
  return rest_summary == 0;
}

// The same in a tree that is known to have no summaries.
static inline void heap_bit_tree_add_flat(heap_bit_tree_t *tree,
                                          uint32_t number) {
  tree->levels[0][number / 64] |= UINT64_C(1) << (number % 64);
}

static inline void heap_bit_tree_remove_flat(heap_bit_tree_t *tree,
                                             uint32_t number) {
  tree->levels[0][number / 64] &= ~(UINT64_C(1) << (number % 64));
}

// In any tree.
static inline void heap_bit_tree_add(heap_bit_tree_t *tree, uint32_t number) {
  if (tree->level_count == 1) {
    heap_bit_tree_add_flat(tree, number);
  } else if (heap_bit_tree_add_low(tree, number)) {
    heap_bit_tree_add_above(tree, number / 4096);
  }
}

static inline void heap_bit_tree_remove(heap_bit_tree_t *tree,
                                        uint32_t number) {
  if (tree->level_count == 1) {
    heap_bit_tree_remove_flat(tree, number);
  } else if (heap_bit_tree_remove_low(tree, number)) {
    heap_bit_tree_remove_above(tree, number / 4096);
  }
}

static inline bool heap_bit_tree_has(const heap_bit_tree_t *tree,
                                     uint32_t number) {
  return (tree->levels[0][number / 64] >> (number % 64) & 1) != 0;
}

// Returns the lowest element from `number` on, or HEAP_BIT_NONE.
static inline uint32_t heap_bit_tree_next(const heap_bit_tree_t *tree,
                                          uint32_t number) {
  uint64_t word = tree->levels[0][number / 64] >> (number % 64);
  return word != 0 ? number + (uint32_t)__builtin_ctzll(word)
                   : heap_bit_tree_next_far(tree, number / 64);
}

// The same, but HEAP_BIT_NONE when there is none among the words that one of
// the first summary stands for; in a tree that is known to have summaries.
// Counts no step: they are at most two more.
static inline uint32_t heap_bit_tree_next_near(const heap_bit_tree_t *tree,
                                               uint32_t number) {
  uint64_t word = tree->levels[0][number / 64] >> (number % 64);
  if (word != 0) {
    return number + (uint32_t)__builtin_ctzll(word);
  }
  number /= 64;
  word = tree->levels[1][number / 64] & (~UINT64_C(1) << (number % 64));
  if (word == 0) {
    return HEAP_BIT_NONE;
  }
  number = (number & ~UINT32_C(63)) + (uint32_t)__builtin_ctzll(word);
  return number * 64 + (uint32_t)__builtin_ctzll(tree->levels[0][number]);
}

// Returns the highest element up to `number`, or HEAP_BIT_NONE.
static inline uint32_t heap_bit_tree_prev(const heap_bit_tree_t *tree,
                                          uint32_t number) {
  uint64_t word = tree->levels[0][number / 64] << (63 - number % 64);
  return word != 0 ? number - (uint32_t)__builtin_clzll(word)
                   : heap_bit_tree_prev_far(tree, number / 64);
}

// The same as heap_bit_tree_next_near() in this direction.
static inline uint32_t heap_bit_tree_prev_near(const heap_bit_tree_t *tree,
                                               uint32_t number) {
  uint64_t word = tree->levels[0][number / 64] << (63 - number % 64);
  if (word != 0) {
    return number - (uint32_t)__builtin_clzll(word);
  }
  number /= 64;
  word = tree->levels[1][number / 64] & ((UINT64_C(1) << (number % 64)) - 1);
  if (word == 0) {
    return HEAP_BIT_NONE;
  }
  number = (number | UINT32_C(63)) - (uint32_t)__builtin_clzll(word);
  return number * 64 + 63 - (uint32_t)__builtin_clzll(tree->levels[0][number]);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_BIT_TREE_H_
