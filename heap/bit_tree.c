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
  size_t words = 0;
  uint64_t bits = capacity;
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
  tree->level_count = 0;
  tree->steps = steps;
  do {
    bits = words_of(bits);
    tree->word_counts[tree->level_count] = (uint32_t)bits;
    tree->levels[tree->level_count++] = words;
    words += bits;
  } while (bits > 1);
}

void heap_bit_tree_add(heap_bit_tree_t *tree, uint32_t number) {
  for (uint32_t level = 0; level < tree->level_count; ++level) {
    uint64_t *word = &tree->levels[level][number / 64];
    uint64_t before = *word;
    *word = before | UINT64_C(1) << (number % 64);
    if (before != 0) {
      return;
    }
    number /= 64;
  }
}

void heap_bit_tree_remove(heap_bit_tree_t *tree, uint32_t number) {
  for (uint32_t level = 0; level < tree->level_count; ++level) {
    uint64_t *word = &tree->levels[level][number / 64];
    *word &= ~(UINT64_C(1) << (number % 64));
    if (*word != 0) {
      return;
    }
    number /= 64;
  }
}

void heap_bit_tree_clear(heap_bit_tree_t *tree, uint32_t end) {
  uint64_t bits = end;
  for (uint32_t level = 0; level < tree->level_count; ++level) {
    bits = words_of(bits);
    memset(tree->levels[level], 0, bits * sizeof(uint64_t));
  }
}

uint32_t heap_bit_tree_next(const heap_bit_tree_t *tree, uint32_t number) {
  uint32_t level = 0;
  uint64_t word;
  for (;;) {
    if (number / 64 >= tree->word_counts[level]) {
      return HEAP_BIT_NONE;
    }
    ++*tree->steps;
    word = tree->levels[level][number / 64] & (~UINT64_C(0) << (number % 64));
    if (word != 0) {
      break;
    }
    if (++level == tree->level_count) {
      return HEAP_BIT_NONE;
    }
    number = number / 64 + 1;
  }
  number = number / 64 * 64 + (uint32_t)__builtin_ctzll(word);
  while (level > 0) {
    ++*tree->steps;
    word = tree->levels[--level][number];
    number = number * 64 + (uint32_t)__builtin_ctzll(word);
  }
  return number;
}

uint32_t heap_bit_tree_prev(const heap_bit_tree_t *tree, uint32_t number) {
  uint32_t level = 0;
  uint64_t word;
  for (;;) {
    ++*tree->steps;
    word =
        tree->levels[level][number / 64] & (~UINT64_C(0) >> (63 - number % 64));
    if (word != 0) {
      break;
    }
    if (number / 64 == 0 || ++level == tree->level_count) {
      return HEAP_BIT_NONE;
    }
    number = number / 64 - 1;
  }
  number = number / 64 * 64 + 63 - (uint32_t)__builtin_clzll(word);
  while (level > 0) {
    ++*tree->steps;
    word = tree->levels[--level][number];
    number = number * 64 + 63 - (uint32_t)__builtin_clzll(word);
  }
  return number;
}

bool heap_bit_tree_is_sound(const heap_bit_tree_t *tree, uint32_t end) {
  uint64_t bits = end;
  for (uint32_t level = 1; level < tree->level_count; ++level) {
    bits = words_of(bits);
    for (uint32_t i = 0; i < bits; ++i) {
      bool says = (tree->levels[level][i / 64] >> (i % 64) & 1) != 0;
      if (says != (tree->levels[level - 1][i] != 0)) {
        return false;
      }
    }
  }
  return heap_bit_tree_next(tree, end) == HEAP_BIT_NONE;
}
