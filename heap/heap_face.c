// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Public functions that are the same in both variants.

#include <errno.h>

#include "heap/arena.h"
#include "heap/central.h"
#include "heap/fast_path.h"
#include "heap/harden.h"
#include "heap/heap.h"
#include "heap/trim.h"

#if HEAP_HARDENED
#include "heap/hardened_internal.h"
#endif

void *heap_aligned_alloc(size_t align_bytes, size_t size_bytes) {
  if (align_bytes == 0 || (align_bytes & (align_bytes - 1)) != 0) {
    errno = EINVAL;
    return NULL;
  }
  if (align_bytes < HEAP_MIN_ALIGN_BYTES) {
    align_bytes = HEAP_MIN_ALIGN_BYTES;
  }
  return heap_aligned_alloc_slow(align_bytes, size_bytes,
                                 __builtin_return_address(0));
}

size_t heap_add_memory(void *memory, size_t size_bytes, bool is_zeroed) {
  size_t used_bytes;
#if HEAP_HARDENED
  heap_hardened_start();
#endif
  heap_central_lock();
  int error = heap_arena_add(memory, size_bytes, is_zeroed, &used_bytes);
  heap_central_unlock();
  if (error != 0) {
    errno = error;
  }
  return used_bytes;
}

size_t heap_trim(size_t keep_bytes) {
#if HEAP_HARDENED
  return heap_hardened_trim(keep_bytes, true);
#else
  return heap_trim_all(keep_bytes, true);
#endif
}
