// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What a free of a small block does with the quarantine: inlined into free(),
// and apart from quarantine.h as it needs what has it as a part.

#ifndef MY_ALLOC_HEAP_QUARANTINE_PUSH_H_
#define MY_ALLOC_HEAP_QUARANTINE_PUSH_H_

#include <stddef.h>
#include <stdint.h>

#include "heap/harden.h"
#include "heap/quarantine.h"
#include "heap/size_class.h"
#include "heap/thread_heap.h"

#ifdef __cplusplus
extern "C" {
#endif

static inline void *heap_waiting_block(heap_waiting_t block) {
  return (void *)(block.page->start +
                  (uintptr_t)(block.state - block.page->states) *
                      heap_class_info[block.page->size_class].size_bytes);
}

// Frees a small block in state CACHED; `thread` is the calling thread's, NULL
// if it has none.
HEAP_FAST_PATH void heap_quarantine_release(heap_thread_t *thread,
                                            heap_waiting_t block) {
  if (thread != NULL &&
      __atomic_load_n(&block.page->owner, __ATOMIC_RELAXED) == thread) {
    heap_thread_free_own(thread, block.page, heap_waiting_block(block),
                         block.state);
  } else {
    heap_thread_release_foreign(block.page, block.state);
  }
}

HEAP_FAST_PATH void heap_quarantine_evict(heap_thread_t *thread,
                                          heap_waiting_t block) {
  thread->quarantine.bytes -=
      heap_class_info[block.page->size_class].size_bytes;
  heap_quarantine_release(thread, block);
}

// Takes a small block of `block_bytes` whose state is CACHED, by any thread;
// frees others.
HEAP_FAST_PATH void heap_quarantine_push(heap_thread_t *thread,
                                         heap_waiting_t block,
                                         size_t block_bytes) {
  heap_quarantine_t *waiting = &thread->quarantine;
  waiting->bytes += block_bytes;
  if (block_bytes <= HEAP_SHUFFLED_MAX_BYTES &&
      heap_harden_has(HEAP_HARDEN_RANDOM)) {
    uint32_t slot =
        heap_random_byte(&waiting->random) / (256 / HEAP_SHUFFLE_SLOTS);
    heap_waiting_t old = waiting->shuffled[slot];
    waiting->shuffled[slot] = block;
    block = old;
  }
  if (__builtin_expect(block.page != NULL, 1)) {
    uint32_t first = waiting->queue_first;
    if (__builtin_expect(waiting->queue_count == HEAP_QUEUE_SLOTS, 1)) {
      heap_waiting_t oldest = waiting->queue[first];
      waiting->queue[first] = block;
      waiting->queue_first = (first + 1) % HEAP_QUEUE_SLOTS;
      heap_quarantine_evict(thread, oldest);
    } else {
      uint32_t end = first + waiting->queue_count++;
      waiting->queue[end % HEAP_QUEUE_SLOTS] = block;
    }
  }
  if (__builtin_expect(waiting->bytes > HEAP_QUARANTINE_BYTES, 0)) {
    heap_quarantine_shrink(thread);
  }
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_QUARANTINE_PUSH_H_
