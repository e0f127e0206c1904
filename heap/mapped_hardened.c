// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Big blocks of the hardened variant, instead of mapped.c, whose theory holds
// here too but for these:
//
//   mapping_start   start (aligned)                     mapping end
//   | guard         | block                             | guard |
//
// The guards are forbidden pages of the mapping: three mappings in the kernel's
// eyes, of which there are few. A block moves out from between its guards and
// in between others. What was freed goes through a ring, in which it is
// forbidden to all and has no memory, before its addresses go back: a late
// access faults.

#include <sys/resource.h>

#include "heap/central.h"
#include "heap/fatal.h"
#include "heap/harden.h"
#include "heap/hooks.h"
#include "heap/kernel.h"
#include "heap/mapped.h"
#include "heap/mapped_list.h"

enum {
  RING_SLOTS = 16,
};

// And of the addresses that a process may have, where they are limited.
#define RING_BYTES_MAX ((size_t)256 << 20)
#define RING_SHARE 16

typedef struct range {
  void *mapping;  // NULL: an empty slot.
  size_t size_bytes;
} range_t;

// Guarded by the central lock.
static range_t ring[RING_SLOTS];
static size_t ring_next;
static size_t ring_bytes;

// Of a block; false: too long. At least a heap page, so that no two blocks
// start in the same.
static bool space_of(size_t size_bytes, size_t *out_bytes) {
  if (size_bytes < HEAP_PAGE_BYTES) {
    size_bytes = HEAP_PAGE_BYTES;
  }
  size_t mask = HEAP_GUARD_BYTES - 1;
  if (size_bytes > PTRDIFF_MAX - 2 * HEAP_PAGE_BYTES) {
    return false;
  }
  *out_bytes = (size_bytes + mask) & ~mask;
  return true;
}

// Makes the page of `start` describe a block. Central lock held.
static bool describe(uintptr_t start, size_t space_bytes) {
  if (!heap_page_table_cover(start)) {
    return false;
  }
  heap_page_t *page = heap_page_of(start);
  HEAP_ASSERT(page->kind == HEAP_PAGE_NONE);
  page->start = start;
  page->mapping_start = start - HEAP_GUARD_BYTES;
  page->mapping_bytes = space_bytes + 2 * HEAP_GUARD_BYTES;
  heap_mapped_list_add(page);
  return true;
}

// A refusal leaves addresses that nobody uses, but not their memory.
static void unmap(uintptr_t start, size_t size_bytes) {
  if (size_bytes > 0 && !heap_kernel->unmap((void *)start, size_bytes)) {
    heap_kernel->discard((void *)start, size_bytes);
  }
}

bool heap_mapped_flush(void) {
  bool had_some = false;
  for (size_t i = 0; i < RING_SLOTS; ++i) {
    if (ring[i].mapping != NULL) {
      unmap((uintptr_t)ring[i].mapping, ring[i].size_bytes);
      ring[i] = (range_t){0};
      had_some = true;
    }
  }
  ring_bytes = 0;
  return had_some;
}

static size_t ring_bytes_max(void) {
  struct rlimit limit;
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
      limit.rlim_cur / RING_SHARE > RING_BYTES_MAX) {
    return RING_BYTES_MAX;
  }
  return limit.rlim_cur / RING_SHARE;
}

// Puts a range that nobody can use into the ring and takes the oldest out.
static void enter_ring(void *mapping, size_t size_bytes, size_t most_bytes) {
  heap_central_lock();
  if (ring_bytes + size_bytes > most_bytes) {
    heap_mapped_flush();
  }
  range_t oldest = ring[ring_next];
  ring[ring_next] = (range_t){mapping, size_bytes};
  ring_next = (ring_next + 1) % RING_SLOTS;
  ring_bytes += size_bytes - oldest.size_bytes;
  heap_central_unlock();
  if (oldest.mapping != NULL) {
    unmap((uintptr_t)oldest.mapping, oldest.size_bytes);
  }
}

// Maps a block and its guards, and returns the block. What is before and behind
// them, for the sake of the alignment, goes back.
static uintptr_t map_block(size_t align_bytes, size_t space_bytes) {
  bool has_guards = heap_harden_has(HEAP_HARDEN_GUARD);
  size_t mapping_bytes = space_bytes + 2 * HEAP_GUARD_BYTES;
  size_t wanted_bytes = mapping_bytes;
  if (align_bytes > HEAP_GUARD_BYTES &&
      __builtin_add_overflow(mapping_bytes, align_bytes, &wanted_bytes)) {
    return 0;
  }
  uintptr_t mapping = (uintptr_t)heap_kernel->map(wanted_bytes, has_guards);
  if (mapping == 0) {
    return 0;
  }
  uintptr_t start =
      (mapping + HEAP_GUARD_BYTES + align_bytes - 1) & ~(align_bytes - 1);
  uintptr_t first = start - HEAP_GUARD_BYTES;
  unmap(mapping, first - mapping);
  unmap(first + mapping_bytes, mapping + wanted_bytes - first - mapping_bytes);
  if (has_guards && !heap_kernel->commit((void *)start, space_bytes)) {
    unmap(first, mapping_bytes);
    return 0;
  }
  return start;
}

void *heap_mapped_alloc(size_t align_bytes, size_t size_bytes) {
  size_t space_bytes;
  if (!space_of(size_bytes, &space_bytes)) {
    return NULL;
  }
  uintptr_t start = map_block(align_bytes, space_bytes);
  if (start == 0) {
    return NULL;
  }
  heap_central_lock();
  heap_central_count_kernel_call();
  bool described = describe(start, space_bytes);
  if (described) {
    heap_hook_map((void *)start, space_bytes);
  }
  heap_central_unlock();
  if (!described) {
    unmap(start - HEAP_GUARD_BYTES, space_bytes + 2 * HEAP_GUARD_BYTES);
    return NULL;
  }
  return (void *)start;
}

bool heap_mapped_free(void *ptr) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  heap_central_lock();
  if (page->kind != HEAP_PAGE_MAPPED || page->start != (uintptr_t)ptr) {
    heap_central_unlock();
    return false;
  }
  void *mapping = (void *)page->mapping_start;
  size_t mapping_bytes = page->mapping_bytes;
  heap_hook_unmap(ptr, heap_mapped_usable_size(page));
  heap_mapped_list_remove(page);
  heap_central_count_kernel_call();
  heap_central_unlock();
  // Ours still, so nobody else has the addresses.
  heap_kernel->discard(mapping, mapping_bytes);
  size_t most_bytes = ring_bytes_max();
  if (heap_harden_has(HEAP_HARDEN_QUARANTINE) && mapping_bytes <= most_bytes &&
      heap_kernel->forbid(mapping, mapping_bytes)) {
    enter_ring(mapping, mapping_bytes, most_bytes);
  } else {
    unmap((uintptr_t)mapping, mapping_bytes);
  }
  return true;
}

bool heap_mapped_waits(uintptr_t address, uintptr_t *out_block,
                       size_t *out_bytes) {
  for (size_t i = 0; i < RING_SLOTS; ++i) {
    uintptr_t mapping = (uintptr_t)ring[i].mapping;
    if (mapping != 0 && address - mapping < ring[i].size_bytes) {
      *out_block = mapping + HEAP_GUARD_BYTES;
      *out_bytes = ring[i].size_bytes - 2 * HEAP_GUARD_BYTES;
      return true;
    }
  }
  return false;
}

size_t heap_mapped_usable_size(const heap_page_t *page) {
  return page->mapping_bytes - 2 * HEAP_GUARD_BYTES;
}

// Shrinks only: a guard stands behind the block.
bool heap_mapped_resize(void *ptr, size_t size_bytes) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  size_t space_bytes;
  heap_central_lock();
  size_t old_bytes = heap_mapped_usable_size(page);
  bool done = space_of(size_bytes, &space_bytes) && space_bytes <= old_bytes;
  size_t gone_bytes = done ? old_bytes - space_bytes : 0;
  if (gone_bytes > 0) {
    uintptr_t guard = page->start + space_bytes;
    heap_central_count_kernel_call();
    done = heap_kernel->unmap((void *)(guard + HEAP_GUARD_BYTES), gone_bytes);
    if (done) {
      if (heap_harden_has(HEAP_HARDEN_GUARD)) {
        heap_kernel->forbid((void *)guard, HEAP_GUARD_BYTES);
      }
      heap_mapped_list_set_bytes(page, page->mapping_bytes - gone_bytes);
      heap_hook_unmap((void *)guard, gone_bytes);
    }
  }
  heap_central_unlock();
  return done;
}

// Central lock held. The target is a reservation without a descriptor.
static bool move_to(void *ptr, uintptr_t target, size_t space_bytes) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  size_t old_bytes = heap_mapped_usable_size(page);
  if (!describe(target, space_bytes)) {
    return false;
  }
  heap_central_count_kernel_call();
  if (!heap_kernel->move(ptr, old_bytes, (void *)target, space_bytes)) {
    heap_mapped_list_remove(heap_page_of(target));
    return false;
  }
  heap_mapped_list_remove(page);
  heap_hook_unmap(ptr, old_bytes);
  heap_hook_map((void *)target, space_bytes);
  return true;
}

void *heap_mapped_move(void *ptr, size_t size_bytes) {
  size_t old_bytes = heap_mapped_usable_size(heap_page_of((uintptr_t)ptr));
  size_t space_bytes;
  if (!space_of(size_bytes, &space_bytes)) {
    return NULL;
  }
  uintptr_t guard =
      (uintptr_t)heap_kernel->map(space_bytes + 2 * HEAP_GUARD_BYTES, true);
  if (guard == 0) {
    return NULL;
  }
  uintptr_t target = guard + HEAP_GUARD_BYTES;
  heap_hook_free(ptr);
  heap_central_lock();
  heap_central_count_kernel_call();
  bool moved = move_to(ptr, target, space_bytes);
  heap_central_unlock();
  // The guards of what is not between them any more. After a failure the rest
  // of the target, if it is still there, is lost: see kernel.h.
  uintptr_t bare = moved ? (uintptr_t)ptr : target;
  size_t bare_bytes = moved ? old_bytes : space_bytes;
  unmap(bare - HEAP_GUARD_BYTES, HEAP_GUARD_BYTES);
  unmap(bare + bare_bytes, HEAP_GUARD_BYTES);
  size_bytes -= heap_harden.canary_bytes;
  heap_hook_alloc(moved ? (void *)target : ptr, moved ? size_bytes : old_bytes,
                  moved ? size_bytes : old_bytes);
  return moved ? (void *)target : NULL;
}
