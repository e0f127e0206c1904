// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/trim.h"

#include "heap/arena.h"
#include "heap/central.h"
#include "heap/size_class.h"
#include "heap/thread_heap.h"

size_t heap_trim_all(size_t keep_bytes, bool with_pages) {
  size_t released_bytes = 0;
  size_t step_bytes;
  heap_central_lock();
  heap_thread_retire_parked();
  heap_central_unlock();
  for (size_t i = 0; i < HEAP_CLASS_COUNT; ++i) {
    heap_central_lock();
    // What these frees make idle is to be counted, and some of it kept.
    heap_arena_hold_purges(true);
    released_bytes += heap_thread_give_back(i, with_pages);
    heap_arena_hold_purges(false);
    heap_central_unlock();
  }
  do {
    heap_central_lock();
    step_bytes = heap_arena_trim(keep_bytes);
    heap_central_unlock();
    released_bytes += step_bytes;
  } while (step_bytes > 0);
  return released_bytes;
}
