// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What each call of a private heap begins and ends with.

#ifndef MY_ALLOC_HEAP_PRIVATE_HEAP_CALL_H_
#define MY_ALLOC_HEAP_PRIVATE_HEAP_CALL_H_

#include <stdint.h>

#include "heap/fatal.h"
#include "heap/fit.h"

#ifdef __cplusplus
extern "C" {
#endif

// Ends a call that met what was written to after a free, and reports it.
__attribute__((cold)) void heap_private_leave_broken(heap_t *heap,
                                                     const char *function,
                                                     void *caller);

// Takes the lock. Returns how many steps were taken in all.
static inline uint64_t heap_private_enter(heap_t *heap) {
  if (!heap->options.single_threaded) {
    if (__builtin_expect(heap->is_destroyed, 0)) {
      HEAP_DIE("private heap: used after heap_destroy");
    }
    pthread_mutex_lock(&heap->lock);
  }
  return heap->steps;
}

static inline void heap_private_unlock(heap_t *heap) {
  if (!heap->options.single_threaded) {
    pthread_mutex_unlock(&heap->lock);
  }
}

static inline void heap_private_note_longest(heap_t *heap, uint64_t steps) {
  if (__builtin_expect(heap->steps - steps > heap->max_steps, 0)) {
    heap->max_steps = heap->steps - steps;
  }
}

// Ends a call that began with `steps`, and reports what it met.
static inline void heap_private_leave(heap_t *heap, uint64_t steps,
                                      const char *function, void *caller) {
  heap_private_note_longest(heap, steps);
  if (heap->broken_at != HEAP_FIT_NONE) {
    heap_private_leave_broken(heap, function, caller);
    return;
  }
  heap_private_unlock(heap);
}

static inline void *heap_private_address(const heap_t *heap, uint32_t granule) {
  return (void *)(heap->base + ((uintptr_t)granule << heap->granule_shift));
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_PRIVATE_HEAP_CALL_H_
