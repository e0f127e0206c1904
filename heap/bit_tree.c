// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A search goes up until a word has an element on the wanted side, and down
// along that bit: at most twice the number of levels, and one step in the usual
// case, since neighbours are near. (A van Emde Boas tree with a fan-out of a
// word; van Emde Boas 1975, "Preserving order in a forest in less than
// logarithmic time".)

#include "heap/bit_tree.h"

#include <string.h>

static uint32_t words_of(uint64_t bits) {
  return (uint32_t)((bits + 63) / 64);
}

size_t heap_bit_tree_bytes(uint32_t capacity) {
  uint64_t bits = words_of(capacity);
  size_t words = bits;
  do {
    bits = words_of(bits);
    words += bits;
  } while (bits > 1);
  return words * sizeof(uint64_t);
}

void heap_bit_tree_init(heap_bit_tree_t *tree, void *memory, uint32_t capacity,
                        uint64_t *steps) {
  uint64_t *words = memory;
  uint64_t bits = capacity;
  heap_bit_tree_init_flat(tree, memory, capacity, steps);
  do {
    bits = words_of(bits);
    words += bits;
    tree->word_counts[tree->level_count] = words_of(bits);
    tree->levels[tree->level_count++] = words;
  } while (words_of(bits) > 1);
}

void heap_bit_tree_init_flat(heap_bit_tree_t *tree, void *memory,
                             uint32_t capacity, uint64_t *steps) {
  tree->level_count = 1;
  tree->levels[0] = memory;
  tree->word_counts[0] = words_of(capacity);
  tree->steps = steps;
}

void heap_bit_tree_clear(heap_bit_tree_t *tree, uint32_t end) {
  uint64_t bits = end;
  for (uint32_t level = 0; level < tree->level_count; ++level) {
    bits = words_of(bits);
    memset(tree->levels[level], 0, bits * sizeof(uint64_t));
  }
}

// `number` is a word of level 1, which was empty.
void heap_bit_tree_add_above(heap_bit_tree_t *tree, uint32_t number) {
  for (uint32_t level = 2; level < tree->level_count; ++level) {
    ++*tree->steps;
    uint64_t *word = &tree->levels[level][number / 64];
    uint64_t before = *word;
    *word = before | UINT64_C(1) << (number % 64);
    if (before != 0) {
      return;
    }
    number /= 64;
  }
}

// `number` is a word of level 1, which is empty now.
void heap_bit_tree_remove_above(heap_bit_tree_t *tree, uint32_t number) {
  for (uint32_t level = 2; level < tree->level_count; ++level) {
    ++*tree->steps;
    uint64_t *word = &tree->levels[level][number / 64];
    *word &= ~(UINT64_C(1) << (number % 64));
    if (*word != 0) {
      return;
    }
    number /= 64;
  }
}

// The word of level 1 that has `number` below it became empty or not, or
// neither.
void heap_bit_tree_settle(heap_bit_tree_t *tree, uint32_t number) {
  (tree->levels[1][number / 4096] != 0
       ? heap_bit_tree_add_above
       : heap_bit_tree_remove_above)(tree, number / 4096);
}

// The element is in none of the words up to `number` of level 0.
uint32_t heap_bit_tree_next_far(const heap_bit_tree_t *tree, uint32_t number) {
  uint32_t level = 0;
  uint64_t word;
  do {
    // A word with all before `number + 1` masked; there may be no next word.
    if (++level >= tree->level_count) {
      return HEAP_BIT_NONE;
    }
    ++*tree->steps;
    word = tree->levels[level][number / 64] & (~UINT64_C(1) << (number % 64));
    number /= 64;
  } while (word == 0);
  number = number * 64 + (uint32_t)__builtin_ctzll(word);
  while (level > 0) {
    ++*tree->steps;
    word = tree->levels[--level][number];
    number = number * 64 + (uint32_t)__builtin_ctzll(word);
  }
  return number;
}

// The element is in none of the words from `number` of level 0 on.
uint32_t heap_bit_tree_prev_far(const heap_bit_tree_t *tree, uint32_t number) {
  uint32_t level = 0;
  uint64_t word;
  do {
    if (++level >= tree->level_count) {
      return HEAP_BIT_NONE;
    }
    ++*tree->steps;
    word =
        tree->levels[level][number / 64] & ((UINT64_C(1) << (number % 64)) - 1);
    number /= 64;
  } while (word == 0);
  number = number * 64 + 63 - (uint32_t)__builtin_clzll(word);
  while (level > 0) {
    ++*tree->steps;
    word = tree->levels[--level][number];
    number = number * 64 + 63 - (uint32_t)__builtin_clzll(word);
  }
  return number;
}

bool heap_bit_tree_is_sound(const heap_bit_tree_t *tree, uint32_t end) {
  uint64_t bits = words_of(end);
  for (uint32_t level = 1; level < tree->level_count; ++level) {
    for (uint32_t i = 0; i < bits; ++i) {
      bool says = (tree->levels[level][i / 64] >> (i % 64) & 1) != 0;
      if (says != (tree->levels[level - 1][i] != 0)) {
        return false;
      }
    }
    bits = words_of(bits);
  }
  return end / 64 == tree->word_counts[0] ||
         (tree->levels[0][end / 64] >> (end % 64) == 0 &&
          heap_bit_tree_next_far(tree, end / 64) == HEAP_BIT_NONE);
}
