// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What stands between the requested end of a block and its real one:
//
//   ptr              ptr + size                         end - 8        end
//   | the program's  | mark mark mark ... mark          | the canary   |
//                                                        mark|code|mark
//
// The canary is eight bytes, its first and last the mark, and between them 48
// bits from which the size follows: (key ^ slack * factor), where the slack is
// all bytes from the requested end on. Key and mark are made of secrets and of
// the address. A write of any byte but the mark itself at `ptr + size` hits a
// mark, or the canary's first byte, which is one. A mark is even and above
// 0x80, one of 63: neither zero, nor text, nor -1, nor the 0x80 that ends what
// is hashed can be taken for it. Bytes in the middle
// cannot be changed singly so that another valid code comes out (canary_test.cc
// tries each). To forge a canary one has to know the secrets or be lucky: one
// in 2^33.
//
// The eight bytes before any small block are at all times the canary of the
// block before it, or zero (free blocks are): each change of them is one store.

#ifndef MY_ALLOC_HEAP_CANARY_H_
#define MY_ALLOC_HEAP_CANARY_H_

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "heap/harden.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HEAP_CANARY_BYTES 8
// No slack is longer.
#define HEAP_SLACK_MAX_BYTES (UINT64_C(1) << 17)
#define HEAP_CANARY_CODE_MASK ((UINT64_C(1) << 48) - 1)
// Odd, and its inverse modulo 2^48.
#define HEAP_CANARY_FACTOR UINT64_C(0x9e3779b97f4b)
#define HEAP_CANARY_INVERSE UINT64_C(0x393dee219263)

static inline uint64_t heap_canary_key(uintptr_t end) {
  uint64_t key = (end ^ heap_harden.canary_secret) * heap_harden.canary_factor;
  return key ^ key >> 32;
}

static inline uint64_t heap_canary_mark(uint64_t key) {
  return 0x82 + 2 * ((key >> 56) * 63 >> 8);
}

static inline uint64_t heap_canary_make(uintptr_t end, size_t slack_bytes) {
  uint64_t key = heap_canary_key(end);
  uint64_t mark = heap_canary_mark(key);
  uint64_t code =
      (key ^ slack_bytes * HEAP_CANARY_FACTOR) & HEAP_CANARY_CODE_MASK;
  return mark | code << 8 | mark << 56;
}

// Returns the slack that a canary tells, something huge if it is none.
static inline uint64_t heap_canary_slack(uintptr_t end, uint64_t canary) {
  uint64_t key = heap_canary_key(end);
  uint64_t mark = heap_canary_mark(key);
  uint64_t code = (canary >> 8 ^ key) & HEAP_CANARY_CODE_MASK;
  uint64_t slack = code * HEAP_CANARY_INVERSE & HEAP_CANARY_CODE_MASK;
  return (canary & 0xff) == mark && canary >> 56 == mark ? slack : UINT64_MAX;
}

static inline uint64_t heap_canary_load(uintptr_t address) {
  return __atomic_load_n((const uint64_t *)address, __ATOMIC_RELAXED);
}

static inline void heap_canary_store(uintptr_t address, uint64_t word) {
  __atomic_store_n((uint64_t *)address, word, __ATOMIC_RELAXED);
}

// Writes the slack of a block of `block_bytes`, a multiple of 16, of which
// `size_bytes` were asked for.
static inline void heap_canary_set(void *ptr, size_t size_bytes,
                                   size_t block_bytes) {
  uintptr_t end = (uintptr_t)ptr + block_bytes;
  size_t slack_bytes = block_bytes - size_bytes;
  uint64_t canary = heap_canary_make(end, slack_bytes);
  uint64_t marks = (canary & 0xff) * UINT64_C(0x0101010101010101);
  uintptr_t at = end - HEAP_CANARY_BYTES;
  size_t left = slack_bytes - HEAP_CANARY_BYTES;
  for (; left >= 8; left -= 8) {
    at -= 8;
    heap_canary_store(at, marks);
  }
  if (left > 0) {
    at -= 8;
    uint64_t slack_mask = ~UINT64_C(0) << (64 - 8 * left);
    heap_canary_store(
        at, (heap_canary_load(at) & ~slack_mask) | (marks & slack_mask));
  }
  heap_canary_store(end - HEAP_CANARY_BYTES, canary);
}

// Tells whether the slack is as it was written, and then also which size was
// asked for.
static inline bool heap_canary_check(const void *ptr, size_t block_bytes,
                                     size_t *out_size_bytes) {
  uintptr_t end = (uintptr_t)ptr + block_bytes;
  uint64_t canary = heap_canary_load(end - HEAP_CANARY_BYTES);
  uint64_t slack_bytes = heap_canary_slack(end, canary);
  if (slack_bytes - HEAP_CANARY_BYTES > block_bytes - HEAP_CANARY_BYTES ||
      slack_bytes > HEAP_SLACK_MAX_BYTES) {
    return false;
  }
  uint64_t marks = (canary & 0xff) * UINT64_C(0x0101010101010101);
  uintptr_t at = end - HEAP_CANARY_BYTES;
  size_t left = slack_bytes - HEAP_CANARY_BYTES;
  uint64_t wrong = 0;
  for (; left >= 8; left -= 8) {
    at -= 8;
    wrong |= heap_canary_load(at) ^ marks;
  }
  if (left > 0) {
    wrong |= (heap_canary_load(at - 8) ^ marks) >> (64 - 8 * left);
  }
  *out_size_bytes = block_bytes - slack_bytes;
  return wrong == 0;
}

// Tells whether the word before a small block is as the heap left it.
static inline bool heap_canary_is_whole_before(const void *ptr) {
  uint64_t word = heap_canary_load((uintptr_t)ptr - HEAP_CANARY_BYTES);
  return word == 0 ||
         heap_canary_slack((uintptr_t)ptr, word) <= HEAP_SLACK_MAX_BYTES;
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_CANARY_H_
