// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What stands between the requested end of a block and its real one:
//
//   ptr              ptr + size                         end - 8        end
//   | the program's  | mark mark mark ... mark          | the canary   |
//                                                        mark|code|mark
//
// The canary is eight bytes, its first and last the mark, and between them 24
// bits twice that tell the slack, all bytes from the requested end on; all of
// it under a key made of secrets and of the address. A write of any byte but
// the mark itself at `ptr + size` hits a mark, or the canary's first byte,
// which is one. A mark is even and above 0x80, one of 63: neither zero, nor
// text, nor -1, nor the 0x80 that ends what is hashed can be taken for it.
// Bytes in the middle cannot be changed singly so that another valid canary
// comes out, as the two copies differ then (hardened_test.cc tries each). To
// forge a canary one has to know the secrets or be lucky: one in 2^32, in a
// small block one in 2^39.
//
// Of a long slack of a larger block, the room that it has to grow, only the
// first HEAP_MARKED_MAX_BYTES are marks. The rest is as it was, free memory.
//
// The eight bytes before any small block are at all times the canary of the
// block before it, or zero (free blocks are): a canary is one store, and zeros
// are written eight bytes at a time at least.

#ifndef MY_ALLOC_HEAP_CANARY_H_
#define MY_ALLOC_HEAP_CANARY_H_

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "heap/harden.h"
#include "heap/size_class.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HEAP_CANARY_BYTES 8
// No slack is longer.
#define HEAP_SLACK_MAX_BYTES (UINT64_C(1) << 22)
// More than the slack of a larger block without room to grow.
#define HEAP_MARKED_MAX_BYTES 4096
// Makes two copies of 24 bits, for bytes 1 to 6.
#define HEAP_CANARY_COPIES UINT64_C(0x0000000100000100)
#define HEAP_CANARY_MIDDLE UINT64_C(0x00ffffffffffff00)

enum {
  HEAP_MARK_SHIFT = 58,
  HEAP_MARK_COUNT = 64,
};

// Each mark, in all bytes of a word; the first one twice. Immutable.
extern const uint64_t heap_canary_marks[HEAP_MARK_COUNT]
    __attribute__((visibility("hidden")));

static inline uint64_t heap_canary_mix(uintptr_t end) {
  return (end ^ heap_harden.canary_secret) * heap_harden.canary_factor;
}

// Returns the mark of a canary, in all bytes.
static inline uint64_t heap_canary_marks_of(uint64_t mix) {
  return heap_canary_marks[mix >> HEAP_MARK_SHIFT];
}

// Returns the canary of no slack. Its first and last bytes are the mark.
static inline uint64_t heap_canary_key_of(uint64_t mix) {
  return heap_canary_marks_of(mix) ^ (mix & HEAP_CANARY_MIDDLE);
}

static inline uint64_t heap_canary_key(uintptr_t end) {
  return heap_canary_key_of(heap_canary_mix(end));
}

static inline uint64_t heap_canary_make(uintptr_t end, size_t slack_bytes) {
  return heap_canary_key(end) ^ slack_bytes * HEAP_CANARY_COPIES;
}

// Tells whether the middle of a canary without its key is two equal copies.
static inline bool heap_canary_are_copies(uint64_t copies) {
  return (uint32_t)copies == copies >> 32 << 8;
}

// Tells whether the word before the end whose key this is is a canary, and
// which slack it tells.
static inline bool heap_canary_read(uint64_t word, uint64_t key,
                                    uint64_t *out_slack_bytes) {
  uint64_t copies = word ^ key;
  *out_slack_bytes = copies >> 32;
  return heap_canary_are_copies(copies);
}

// Returns the slack that a canary tells, something huge if it is none.
static inline uint64_t heap_canary_slack(uintptr_t end, uint64_t canary) {
  uint64_t slack_bytes;
  return heap_canary_read(canary, heap_canary_key(end), &slack_bytes) &&
                 slack_bytes <= HEAP_SLACK_MAX_BYTES
             ? slack_bytes
             : UINT64_MAX;
}

static inline uint64_t heap_canary_load(uintptr_t address) {
  return __atomic_load_n((const uint64_t *)address, __ATOMIC_RELAXED);
}

static inline void heap_canary_store(uintptr_t address, uint64_t word) {
  __atomic_store_n((uint64_t *)address, word, __ATOMIC_RELAXED);
}

typedef uint64_t heap_chunk_t
    __attribute__((vector_size(16), aligned(1), may_alias));

// 16 bytes that are clear, 16 that are set. Immutable.
extern const uint8_t heap_canary_window[32]
    __attribute__((visibility("hidden")));

// Returns the last `count` < 16 bytes of a chunk set.
static inline heap_chunk_t heap_canary_last_bytes(size_t count) {
  return *(const heap_chunk_t *)(heap_canary_window + count);
}

// How many marks stand before a canary that tells this slack.
static inline size_t heap_canary_marked_bytes(size_t slack_bytes,
                                              size_t block_bytes) {
  size_t left = slack_bytes - HEAP_CANARY_BYTES;
  return left < HEAP_MARKED_MAX_BYTES || block_bytes <= HEAP_SMALL_MAX_BYTES
             ? left
             : HEAP_MARKED_MAX_BYTES;
}

// Writes the slack of a block of `block_bytes`, a multiple of 16, of which
// `size_bytes` were asked for.
static inline void heap_canary_set(void *ptr, size_t size_bytes,
                                   size_t block_bytes) {
  uintptr_t end = (uintptr_t)ptr + block_bytes;
  size_t slack_bytes = block_bytes - size_bytes;
  uint64_t canary = heap_canary_make(end, slack_bytes);
  memset((char *)ptr + size_bytes, (int)(canary & 0xff),
         heap_canary_marked_bytes(slack_bytes, block_bytes));
  heap_canary_store(end - HEAP_CANARY_BYTES, canary);
}

// Tells whether the functions for a short slack may be used.
static inline bool heap_canary_is_short(size_t slack_bytes,
                                        size_t block_bytes) {
  return slack_bytes - HEAP_CANARY_BYTES < 16 && block_bytes >= 32;
}

// The same of a block that is to be handed out, with a short slack: nobody
// needs what is in it.
static inline __attribute__((always_inline)) void heap_canary_set_short(
    void *ptr, size_t size_bytes, size_t block_bytes) {
  uintptr_t end = (uintptr_t)ptr + block_bytes;
  size_t slack_bytes = block_bytes - size_bytes;
  uint64_t mix = heap_canary_mix(end);
  uint64_t marks = heap_canary_marks_of(mix);
  *(heap_chunk_t *)(end - 24) =
      (heap_chunk_t){marks, marks} &
      heap_canary_last_bytes(slack_bytes - HEAP_CANARY_BYTES);
  heap_canary_store(end - HEAP_CANARY_BYTES,
                    heap_canary_key_of(mix) ^ slack_bytes * HEAP_CANARY_COPIES);
}

static inline void heap_canary_set_new(void *ptr, size_t size_bytes,
                                       size_t block_bytes) {
  if (__builtin_expect(
          heap_canary_is_short(block_bytes - size_bytes, block_bytes), 1)) {
    heap_canary_set_short(ptr, size_bytes, block_bytes);
  } else {
    heap_canary_set(ptr, size_bytes, block_bytes);
  }
}

// Tells whether the `count` bytes at `ptr` are all marks.
bool heap_canary_are_marks(const void *ptr, size_t count, uint8_t mark);

// Tells whether the last 16 bytes before a canary end in `count` marks.
static inline bool heap_canary_are_marks_before(uintptr_t end, uint64_t mix,
                                                size_t count) {
  uint64_t marks = heap_canary_marks_of(mix);
  heap_chunk_t wrong =
      (*(const heap_chunk_t *)(end - 24) ^ (heap_chunk_t){marks, marks}) &
      heap_canary_last_bytes(count);
  return (wrong[0] | wrong[1]) == 0;
}

// Tells whether the slack of a block of at least 32 bytes is a short one, as it
// was written.
static inline __attribute__((always_inline)) bool heap_canary_check_short(
    const void *ptr, size_t block_bytes) {
  uintptr_t end = (uintptr_t)ptr + block_bytes;
  uint64_t mix = heap_canary_mix(end);
  uint64_t copies =
      heap_canary_load(end - HEAP_CANARY_BYTES) ^ heap_canary_key_of(mix);
  uint64_t left = (copies >> 32) - HEAP_CANARY_BYTES;
  return heap_canary_are_copies(copies) && left < 16 &&
         heap_canary_are_marks_before(end, mix, left);
}

// Tells whether the slack is as it was written, and then also which size was
// asked for.
static inline __attribute__((always_inline)) bool heap_canary_check(
    const void *ptr, size_t block_bytes, size_t *out_size_bytes) {
  uintptr_t end = (uintptr_t)ptr + block_bytes;
  uint64_t mix = heap_canary_mix(end);
  uint64_t key = heap_canary_key_of(mix);
  uint64_t slack_bytes;
  if (!heap_canary_read(heap_canary_load(end - HEAP_CANARY_BYTES), key,
                        &slack_bytes) ||
      slack_bytes - HEAP_CANARY_BYTES > block_bytes - HEAP_CANARY_BYTES) {
    return false;
  }
  *out_size_bytes = block_bytes - slack_bytes;
  if (__builtin_expect(heap_canary_is_short(slack_bytes, block_bytes), 1)) {
    return heap_canary_are_marks_before(end, mix,
                                        slack_bytes - HEAP_CANARY_BYTES);
  }
  return heap_canary_are_marks(
      (const char *)ptr + *out_size_bytes,
      heap_canary_marked_bytes(slack_bytes, block_bytes),
      (uint8_t)(key & 0xff));
}

// Tells whether the word before a small block is as the heap left it.
static inline __attribute__((always_inline)) bool heap_canary_is_whole_before(
    const void *ptr) {
  uint64_t word = heap_canary_load((uintptr_t)ptr - HEAP_CANARY_BYTES);
  uint64_t copies = word ^ heap_canary_key((uintptr_t)ptr);
  // Both, without a branch: either is as likely.
  return (word == 0) | heap_canary_are_copies(copies);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_CANARY_H_
