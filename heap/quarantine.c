// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The slots make the time that a block waits unforeseeable, the queue makes it
// long for certain. Blocks above HEAP_SHUFFLED_MAX_BYTES do not go through the
// slots, or those would have all of HEAP_QUARANTINE_BYTES and the queue
// nothing. So a block waits for this many frees of its size at least:
//
//   up to 256 bytes   256, all of the queue
//   up to 1 KiB       64, half of HEAP_QUARANTINE_BYTES
//   above             half of HEAP_QUARANTINE_BYTES, and 16 at least
//
// What waits is zero, and is found not to be so when it is reused (hardened.c),
// or never: then nobody reads what was written.
//
// Medium blocks wait until RUNS_MAX or RUN_BYTES_MAX are together; bigger ones
// than that go through at once, as each would keep its memory. Which of those
// that wait is freed is chance, of the older half.

#include "heap/quarantine_push.h"

#include "heap/arena.h"
#include "heap/central.h"
#include "heap/guard.h"
#include "heap/harden.h"
#include "heap/page_table.h"
#include "heap/size_class.h"
#include "heap/span.h"
#include "heap/thread_heap.h"

enum {
  RUNS_MAX = 32,
  RUN_BYTES_MAX = 512 << 10,
};

typedef struct waiting_run {
  uintptr_t start;
  size_t size_bytes;
  bool is_settled;
} waiting_run_t;

// Central lock. Oldest first.
static waiting_run_t runs[RUNS_MAX];
static size_t run_count;
static size_t run_bytes;  // Of those that are settled.
static heap_random_t run_random;

// Frees blocks of the queue until no more than `most_bytes` wait in all, or
// `least_count` in it.
static void shrink(heap_thread_t *thread, size_t most_bytes,
                   size_t least_count) {
  heap_quarantine_t *waiting = &thread->quarantine;
  while (waiting->queue_count > least_count && waiting->bytes > most_bytes) {
    heap_waiting_t oldest = waiting->queue[waiting->queue_first];
    waiting->queue_first = (waiting->queue_first + 1) % HEAP_QUEUE_SLOTS;
    --waiting->queue_count;
    heap_quarantine_evict(thread, oldest);
  }
}

void heap_quarantine_shrink(heap_thread_t *thread) {
  shrink(thread, HEAP_QUARANTINE_BYTES, HEAP_QUARANTINE_LEAST_COUNT);
}

void heap_quarantine_flush(heap_thread_t *thread) {
  shrink(thread, 0, 0);
  for (size_t i = 0; i < HEAP_SHUFFLE_SLOTS; ++i) {
    heap_waiting_t block = thread->quarantine.shuffled[i];
    if (block.page != NULL) {
      thread->quarantine.shuffled[i] = (heap_waiting_t){0};
      heap_quarantine_evict(thread, block);
    }
  }
}

size_t heap_quarantine_count(const heap_thread_t *thread) {
  size_t count = thread->quarantine.queue_count;
  for (size_t i = 0; i < HEAP_SHUFFLE_SLOTS; ++i) {
    count += thread->quarantine.shuffled[i].page != NULL;
  }
  return count;
}

static waiting_run_t *find_run(uintptr_t run) {
  for (size_t i = 0; i < run_count; ++i) {
    if (runs[i].start == run) {
      return &runs[i];
    }
  }
  return NULL;
}

bool heap_run_quarantine_has(uintptr_t run) {
  return find_run(run) != NULL;
}

bool heap_run_quarantine_claim(uintptr_t run, size_t size_bytes) {
  if (run_count == RUNS_MAX) {
    return false;
  }
  runs[run_count++] = (waiting_run_t){.start = run, .size_bytes = size_bytes};
  return true;
}

static void release_run(size_t index) {
  waiting_run_t run = runs[index];
  for (size_t i = index + 1; i < run_count; ++i) {
    runs[i - 1] = runs[i];
  }
  --run_count;
  run_bytes -= run.is_settled ? run.size_bytes : 0;
  heap_guard_clear_ends(run.start, run.size_bytes);
  heap_arena_free(run.start);
}

// Returns the index of a settled run, the first from a place in the older half
// on that chance chooses; RUNS_MAX: there is none.
static size_t choose_run(void) {
  size_t first = 0;
  if (heap_harden_has(HEAP_HARDEN_RANDOM) && run_count > 1) {
    first = heap_random_byte(&run_random) % ((run_count + 1) / 2);
  }
  for (size_t i = 0; i < run_count; ++i) {
    size_t index = (first + i) % run_count;
    if (runs[index].is_settled) {
      return index;
    }
  }
  return RUNS_MAX;
}

// Frees settled runs while there are more than these.
static void shrink_runs(size_t most_runs, size_t most_bytes) {
  while (run_count > most_runs || run_bytes > most_bytes) {
    size_t index = choose_run();
    if (index == RUNS_MAX) {
      return;
    }
    release_run(index);
  }
}

void heap_run_quarantine_settle(uintptr_t run) {
  waiting_run_t *waiting = find_run(run);
  if (!heap_harden_has(HEAP_HARDEN_QUARANTINE) ||
      waiting->size_bytes > RUN_BYTES_MAX) {
    release_run((size_t)(waiting - runs));
  } else {
    waiting->is_settled = true;
    run_bytes += waiting->size_bytes;
    // Some room for others' claims.
    shrink_runs(RUNS_MAX / 2, RUN_BYTES_MAX);
  }
}

bool heap_run_quarantine_flush(void) {
  size_t old_count = run_count;
  shrink_runs(0, 0);
  return run_count < old_count;
}
