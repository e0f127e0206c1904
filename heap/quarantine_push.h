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

// Frees a small block in state CACHED of `block_bytes`; `thread` is the calling
// thread's, NULL if it has none.
HEAP_FAST_PATH void heap_quarantine_release(heap_thread_t *thread,
                                            heap_waiting_t block,
                                            size_t block_bytes) {
  heap_page_t *page = block.page;
  if (thread != NULL &&
      __atomic_load_n(&page->owner, __ATOMIC_RELAXED) == thread) {
    size_t index = (size_t)(block.state - page->states);
    heap_thread_free_own(
        thread, page, (void *)(page->start + index * block_bytes), block.state);
  } else {
    heap_thread_release_foreign(page, block.state);
  }
}

static inline size_t heap_waiting_bytes(heap_waiting_t block) {
  return heap_class_info[block.page->size_class].size_bytes;
}

// Frees a block that waited.
HEAP_FAST_PATH void heap_quarantine_evict(heap_thread_t *thread,
                                          heap_waiting_t block) {
  size_t block_bytes = heap_waiting_bytes(block);
  thread->quarantine.bytes -= block_bytes;
  heap_quarantine_release(thread, block, block_bytes);
}

// Puts a block into the slot that chance names, and returns the one that was
// there, of which `page` is NULL if it was none.
HEAP_FAST_PATH heap_waiting_t heap_quarantine_shuffle(
    heap_quarantine_t *waiting, heap_waiting_t block, uint32_t byte) {
  uint32_t slot = byte / (256 / HEAP_SHUFFLE_SLOTS);
  heap_waiting_t old = waiting->shuffled[slot];
  waiting->shuffled[slot] = block;
  return old;
}

// Puts a block into the queue, and returns the one that has to leave it, as
// above.
HEAP_FAST_PATH heap_waiting_t
heap_quarantine_enqueue(heap_quarantine_t *waiting, heap_waiting_t block) {
  uint32_t first = waiting->queue_first;
  if (__builtin_expect(waiting->queue_count == HEAP_QUEUE_SLOTS, 1)) {
    heap_waiting_t oldest = waiting->queue[first];
    waiting->queue[first] = block;
    waiting->queue_first = (first + 1) % HEAP_QUEUE_SLOTS;
    return oldest;
  }
  uint32_t end = first + waiting->queue_count++;
  waiting->queue[end % HEAP_QUEUE_SLOTS] = block;
  return (heap_waiting_t){0};
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
    block = heap_quarantine_shuffle(waiting, block,
                                    heap_random_byte(&waiting->random));
  }
  if (__builtin_expect(block.page != NULL, 1)) {
    block = heap_quarantine_enqueue(waiting, block);
    if (__builtin_expect(block.page != NULL, 1)) {
      heap_quarantine_evict(thread, block);
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
