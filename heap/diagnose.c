// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

#include "heap/diagnose.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "heap/arena.h"
#include "heap/central.h"
#include "heap/harden.h"
#include "heap/mapped.h"
#include "heap/page_table.h"
#include "heap/size_class.h"
#include "heap/span.h"

#if HEAP_HARDENED
#include "heap/empty_block.h"
#include "heap/guard.h"
#include "heap/quarantine.h"
#endif

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

#if HEAP_HARDENED
// Of blocks that only the hardened variant has. False: it is none.
static bool diagnose_hardened(diagnosis_t *diagnosis,
                              heap_arena_place_t *place) {
  heap_empty_kind_t empty = heap_empty_find((void *)diagnosis->address);
  if (empty != HEAP_EMPTY_NOT) {
    diagnosis->misuse =
        empty == HEAP_EMPTY_FREED ? HEAP_MISUSE_FREED : HEAP_MISUSE_INTERIOR;
    return true;
  }
  if (heap_mapped_waits(diagnosis->address, &diagnosis->block,
                        &diagnosis->block_bytes)) {
    diagnosis->misuse = HEAP_MISUSE_FREED;
    return true;
  }
  if (place->kind != HEAP_RUN_BLOCK) {
    return false;
  }
  uintptr_t run = place->start;
  place->start += HEAP_GUARD_BYTES;
  place->size_bytes = heap_guarded_bytes(place->size_bytes);
  if (!heap_run_quarantine_has(run)) {
    return false;
  }
  diagnosis->misuse = HEAP_MISUSE_FREED;
  diagnosis->block = place->start;
  diagnosis->block_bytes = place->size_bytes;
  return true;
}
#else
static bool diagnose_hardened(const diagnosis_t *diagnosis,
                              const heap_arena_place_t *place) {
  (void)diagnosis;
  (void)place;
  return false;
}
#endif

// Central lock held.
static void diagnose_in_arena(diagnosis_t *diagnosis) {
  heap_arena_place_t place = heap_arena_find(diagnosis->address);
  if (diagnose_hardened(diagnosis, &place)) {
    return;
  }
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
