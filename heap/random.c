// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A generator is keyed anew in the child of a fork, or parent and child would
// go on alike: a counter of the process's forks says so. Of a kernel that gives
// no random bytes (getrandom(2) before they are there, seccomp) what the loader
// was given for the stack's canary is mixed with time and addresses.

#include "heap/random.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
  ROUNDS = 8,
};

static_assert(sizeof(uint32_t[16]) * HEAP_RANDOM_LANES == HEAP_RANDOM_BYTES,
              "a block of the cipher has 16 words");

static bool is_fixed;
static uint64_t fixed_seed;
// Atomic, relaxed. Each keyed generator's number, so that fixed ones differ.
static uint64_t num_keyed;
uint32_t heap_random_epoch = 1;

static void after_fork_in_child(void) {
  __atomic_fetch_add(&heap_random_epoch, 1, __ATOMIC_RELAXED);
}

void heap_random_fix(uint64_t seed) {
  is_fixed = true;
  fixed_seed = seed;
}

void heap_random_watch_forks(void) {
  pthread_atfork(NULL, NULL, after_fork_in_child);
}

// One word of each of the blocks that are made at once.
typedef uint32_t lanes_t __attribute__((vector_size(4 * HEAP_RANDOM_LANES)));

static lanes_t rotate(lanes_t value, int count) {
  return value << count | value >> (32 - count);
}

static inline __attribute__((always_inline)) void quarter_round(lanes_t *a,
                                                                lanes_t *b,
                                                                lanes_t *c,
                                                                lanes_t *d) {
  *a += *b;
  *d = rotate(*d ^ *a, 16);
  *c += *d;
  *b = rotate(*b ^ *c, 12);
  *a += *b;
  *d = rotate(*d ^ *a, 8);
  *c += *d;
  *b = rotate(*b ^ *c, 7);
}

static lanes_t repeat(uint32_t word) {
  return (lanes_t){word, word, word, word};
}

// Blocks `counter` and following of the cipher's stream, all their first words,
// then all their second ones, and so on.
static void make_blocks(const uint32_t key[8], uint64_t counter,
                        uint8_t bytes[HEAP_RANDOM_BYTES]) {
  static const uint32_t constants[4] = {0x61707865, 0x3320646e, 0x79622d32,
                                        0x6b206574};
  lanes_t start[16];
  lanes_t out[16];
  for (int i = 0; i < 4; ++i) {
    start[i] = repeat(constants[i]);
    start[4 + i] = repeat(key[i]);
    start[8 + i] = repeat(key[4 + i]);
  }
  // A multiple of the number of lanes: no carry out of the lower half.
  start[12] = repeat((uint32_t)counter) + (lanes_t){0, 1, 2, 3};
  start[13] = repeat((uint32_t)(counter >> 32));
  start[14] = repeat(0);
  start[15] = repeat(0);
  memcpy(out, start, sizeof(out));
  for (int i = 0; i < ROUNDS; i += 2) {
    quarter_round(&out[0], &out[4], &out[8], &out[12]);
    quarter_round(&out[1], &out[5], &out[9], &out[13]);
    quarter_round(&out[2], &out[6], &out[10], &out[14]);
    quarter_round(&out[3], &out[7], &out[11], &out[15]);
    quarter_round(&out[0], &out[5], &out[10], &out[15]);
    quarter_round(&out[1], &out[6], &out[11], &out[12]);
    quarter_round(&out[2], &out[7], &out[8], &out[13]);
    quarter_round(&out[3], &out[4], &out[9], &out[14]);
  }
  for (int i = 0; i < 16; ++i) {
    out[i] += start[i];
  }
  memcpy(bytes, out, HEAP_RANDOM_BYTES);
}

static void key_without_kernel(uint32_t key[8]) {
  struct timespec now = {0};
  clock_gettime(CLOCK_MONOTONIC, &now);
  const void *given = (const void *)getauxval(AT_RANDOM);
  if (given != NULL) {
    memcpy(key, given, 16);
  }
  uint64_t more[2] = {(uint64_t)now.tv_nsec ^ (uintptr_t)&now,
                      (uint64_t)now.tv_sec ^ (uintptr_t)key};
  memcpy(key + 4, more, sizeof(more));
}

// Not getrandom(3): that is a cancellation point, and no allocation is one.
static void make_key(heap_random_t *random) {
  int saved_errno = errno;
  uint64_t number = __atomic_add_fetch(&num_keyed, 1, __ATOMIC_RELAXED);
  memset(random->key, 0, sizeof(random->key));
  if (is_fixed) {
    uint64_t key[2] = {fixed_seed, number};
    memcpy(random->key, key, sizeof(key));
  } else if (syscall(SYS_getrandom, random->key, sizeof(random->key),
                     GRND_NONBLOCK) != (long)sizeof(random->key)) {
    key_without_kernel(random->key);
  }
  random->counter = 0;
  random->epoch = __atomic_load_n(&heap_random_epoch, __ATOMIC_RELAXED);
  errno = saved_errno;
}

void heap_random_refill(heap_random_t *random) {
  if (random->epoch != __atomic_load_n(&heap_random_epoch, __ATOMIC_RELAXED)) {
    make_key(random);
  }
  make_blocks(random->key, random->counter, random->bytes);
  random->counter += HEAP_RANDOM_LANES;
  random->left = HEAP_RANDOM_BYTES;
}

uint64_t heap_random_next(heap_random_t *random) {
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i) {
    word = word << 8 | heap_random_byte(random);
  }
  return word;
}
