// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Blocks that were freed and are not to be reused yet (hardened variant). A
// small block waits with the thread that freed it: up to 1 KiB in one of some
// slots, until chance has another block take its place, and then in a queue. A
// medium one waits in a list of the process.

#ifndef MY_ALLOC_HEAP_QUARANTINE_H_
#define MY_ALLOC_HEAP_QUARANTINE_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/page_table.h"
#include "heap/random.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
  HEAP_SHUFFLE_SLOTS = 64,
  HEAP_QUEUE_SLOTS = 256,
  // Of the blocks of one thread that wait, unless so few wait in the queue.
  HEAP_QUARANTINE_BYTES = 128 << 10,
  HEAP_QUARANTINE_LEAST_COUNT = 16,
  // Longer blocks do not go through the slots.
  HEAP_SHUFFLED_MAX_BYTES = HEAP_QUARANTINE_BYTES / 2 / HEAP_SHUFFLE_SLOTS,
};

// A small block that waits.
typedef struct heap_waiting {
  heap_page_t *page;  // In which it starts; NULL: none.
  uint8_t *state;     // HEAP_BLOCK_CACHED.
} heap_waiting_t;

// Of one thread. Zeroed is empty.
typedef struct heap_quarantine {
  size_t bytes;
  uint32_t queue_first;
  uint32_t queue_count;
  heap_waiting_t shuffled[HEAP_SHUFFLE_SLOTS];
  heap_waiting_t queue[HEAP_QUEUE_SLOTS];  // A ring.
  heap_random_t random;
} heap_quarantine_t;

struct heap_thread;

// Frees all of them.
void heap_quarantine_flush(struct heap_thread *thread);

// Frees blocks until no more wait than may.
void heap_quarantine_shrink(struct heap_thread *thread);

// Returns how many blocks wait. Central lock held, for tests.
size_t heap_quarantine_count(const struct heap_thread *thread);

// Runs of medium blocks. Central lock held.
bool heap_run_quarantine_has(uintptr_t run);

// Takes the run of a block, which its user still holds in his hands; false: no
// room at all.
bool heap_run_quarantine_claim(uintptr_t run, size_t run_bytes);

// The claimed run is scrubbed: it waits now, and others are freed.
void heap_run_quarantine_settle(uintptr_t run);

// Frees all that wait. Returns whether there were any.
bool heap_run_quarantine_flush(void);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_QUARANTINE_H_
