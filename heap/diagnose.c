// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/diagnose.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/arena.h"
#include "heap/central.h"
#include "heap/mapped.h"
#include "heap/page_table.h"
#include "heap/size_class.h"
#include "heap/span.h"

// What an address is that no live block starts at; `block_bytes` 0: nothing to
// say of a block.
typedef struct diagnosis {
  heap_misuse_t misuse;
  uintptr_t address;
  uintptr_t block;
  size_t block_bytes;
} diagnosis_t;

static void diagnose_in_span(const heap_page_t *page, diagnosis_t *diagnosis) {
  const heap_class_info_t *info = heap_span_info(page);
  size_t index;
  if (!heap_span_block_at(page, diagnosis->address, &index)) {
    return;
  }
  bool is_live = __atomic_load_n(&page->states[index], __ATOMIC_RELAXED) ==
                 HEAP_BLOCK_LIVE;
  diagnosis->misuse = is_live ? HEAP_MISUSE_INTERIOR : HEAP_MISUSE_FREED;
  diagnosis->block = page->start + index * info->size_bytes;
  diagnosis->block_bytes = info->size_bytes;
}

// Central lock held.
static void diagnose_in_arena(diagnosis_t *diagnosis) {
  heap_arena_place_t place = heap_arena_find(diagnosis->address);
  if (place.kind == HEAP_RUN_BLOCK) {
    diagnosis->misuse = HEAP_MISUSE_INTERIOR;
    diagnosis->block = place.start;
    diagnosis->block_bytes = place.size_bytes;
  } else if (place.kind == HEAP_RUN_FREE || place.kind == HEAP_RUN_SPAN) {
    // In a free run; or in what became a span since we looked.
    diagnosis->misuse = HEAP_MISUSE_FREED;
  }
}

// A visitor of mapped blocks.
static bool diagnose_in_mapped(void *context, void *ptr, size_t usable_bytes) {
  diagnosis_t *diagnosis = context;
  if (diagnosis->address - (uintptr_t)ptr >= usable_bytes) {
    return true;
  }
  diagnosis->misuse = HEAP_MISUSE_INTERIOR;
  diagnosis->block = (uintptr_t)ptr;
  diagnosis->block_bytes = usable_bytes;
  return false;
}

void heap_report_pointer(const void *ptr, const heap_call_t *call) {
  diagnosis_t diagnosis = {.misuse = HEAP_MISUSE_FOREIGN,
                           .address = (uintptr_t)ptr};
  const heap_page_t *page = heap_page_of((uintptr_t)ptr);
  if (page->kind == HEAP_PAGE_SPAN) {
    diagnose_in_span(page, &diagnosis);
  } else {
    heap_central_lock();
    diagnose_in_arena(&diagnosis);
    heap_mapped_walk(diagnose_in_mapped, &diagnosis);
    heap_central_unlock();
  }
  heap_report_misuse(diagnosis.misuse, call, ptr, diagnosis.block,
                     diagnosis.block_bytes);
}
