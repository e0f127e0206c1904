// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Random bits that those who see some of them cannot foretell: ChaCha with
// eight rounds (Bernstein 2008, "ChaCha, a variant of Salsa20"), keyed by the
// kernel.

#ifndef MY_ALLOC_HEAP_RANDOM_H_
#define MY_ALLOC_HEAP_RANDOM_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
  HEAP_RANDOM_LANES = 4,  // Blocks of the cipher that are made at once.
  HEAP_RANDOM_BYTES = 64 * HEAP_RANDOM_LANES,
};

// Used by one thread. Zeroed: keyed at its first use.
typedef struct heap_random {
  uint32_t key[8];
  uint64_t counter;
  uint32_t epoch;  // The process in which it was keyed; 0 in none.
  uint32_t left;   // Of `bytes`, the first ones; those handed out are zeroed.
  uint8_t bytes[HEAP_RANDOM_BYTES];
} heap_random_t;

// Makes all generators that are keyed from now on the same in each run.
void heap_random_fix(uint64_t seed);

// Has generators keyed anew in children. May allocate. Once, no lock held.
void heap_random_watch_forks(void);

// Of the process: how many forks led to it, and 1. Atomic, relaxed; written
// where there is one thread.
extern uint32_t heap_random_epoch __attribute__((visibility("hidden")));

// Makes new bytes, after a fork with a new key.
void heap_random_refill(heap_random_t *random);

// Returns 64 bits.
uint64_t heap_random_next(heap_random_t *random);

// Tells whether heap_random_take() may be called.
static inline bool heap_random_has_bytes(const heap_random_t *random) {
  // What a parent had left is not for its child, too.
  return random->left != 0 &&
         random->epoch == __atomic_load_n(&heap_random_epoch, __ATOMIC_RELAXED);
}

// Returns a number below 256, of those that are made already.
static inline uint32_t heap_random_take(heap_random_t *random) {
  uint32_t at = --random->left;
  uint32_t result = random->bytes[at];
  random->bytes[at] = 0;
  return result;
}

// Returns a number below 256.
static inline uint32_t heap_random_byte(heap_random_t *random) {
  if (__builtin_expect(!heap_random_has_bytes(random), 0)) {
    heap_random_refill(random);
  }
  return heap_random_take(random);
}

// Returns the index of one of the bits set in `mask`, which has some: the first
// one from a place at or below the highest. Those above a gap are likelier. Of
// the bytes that are made already.
static inline uint32_t heap_random_take_bit_of(heap_random_t *random,
                                               uint64_t mask) {
  uint32_t width = 64 - (uint32_t)__builtin_clzll(mask);
  uint32_t place = heap_random_take(random) * width >> 8;
  return place + (uint32_t)__builtin_ctzll(mask >> place);
}

static inline uint32_t heap_random_bit_of(heap_random_t *random,
                                          uint64_t mask) {
  if (__builtin_expect(!heap_random_has_bytes(random), 0)) {
    heap_random_refill(random);
  }
  return heap_random_take_bit_of(random, mask);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_RANDOM_H_
