// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A reservation is made usable from its low end on, in steps that grow with the
// heap, so that there are few.

#include "heap/private_memory.h"

#include "heap/kernel.h"
#include "heap/piece.h"
#include "heap/private_file.h"
#include "heap/segregated.h"

enum {
  GROWTH_SHARE = 8,  // Of what there is.
};

// Makes the next `size_bytes` of the reservation usable.
static bool commit(heap_t *heap, size_t size_bytes) {
  size_t used_bytes = (size_t)heap->count << heap->granule_shift;
  uint32_t length = (uint32_t)(size_bytes >> heap->granule_shift);
  if (heap->segregated != NULL &&
      !heap_segregated_cover(heap, heap->count + length)) {
    return false;
  }
  if (heap->options.use_file) {
    return heap_private_file_grow(heap->options.file, used_bytes,
                                  used_bytes + size_bytes);
  }
  return heap_kernel->commit((void *)(heap->base + used_bytes), size_bytes);
}

bool heap_private_extend(heap_t *heap, size_t missing) {
  size_t room = (size_t)(heap->capacity - heap->count) << heap->granule_shift;
  if (heap->reservation == NULL || missing > room >> heap->granule_shift) {
    return false;
  }
  size_t missing_bytes =
      heap_fit_round_up(missing << heap->granule_shift, HEAP_FIT_GROWTH_BYTES);
  size_t step_bytes = heap_fit_round_up(
      ((size_t)heap->count << heap->granule_shift) / GROWTH_SHARE,
      HEAP_FIT_GROWTH_BYTES);
  step_bytes = step_bytes < missing_bytes ? missing_bytes : step_bytes;
  step_bytes = step_bytes < room ? step_bytes : room;
  if (!commit(heap, step_bytes)) {
    step_bytes = missing_bytes;
    if (!commit(heap, step_bytes)) {
      return false;
    }
  }
  uint32_t length = (uint32_t)(step_bytes >> heap->granule_shift);
  if (heap->segregated != NULL) {
    heap_segregated_append(heap, length);
  } else {
    heap_piece_append(heap, length);
  }
  return true;
}
