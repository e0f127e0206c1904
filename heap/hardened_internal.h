// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What the units of the hardened variant's face share: hardened.c (the public
// functions and the usual case of each), hardened_block.c (what a pointer is),
// hardened_alloc.c, hardened_free.c, hardened_realloc.c.

#ifndef MY_ALLOC_HEAP_HARDENED_INTERNAL_H_
#define MY_ALLOC_HEAP_HARDENED_INTERNAL_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__has_include)
#if __has_include(<sys/single_threaded.h>)  // glibc 2.32.
#include <sys/single_threaded.h>
#define HEAP_HAS_SINGLE_THREADED
#endif
#endif

#include "heap/arena.h"
#include "heap/canary.h"
#include "heap/fatal.h"
#include "heap/guard.h"
#include "heap/harden.h"
#include "heap/mapped.h"
#include "heap/thread_heap.h"
#include "heap/zero.h"

#ifdef __cplusplus
extern "C" {
#endif

// ---- hardened_block.c ----

typedef enum heap_block_kind {
  HEAP_BLOCK_IS_EMPTY,
  HEAP_BLOCK_IS_SMALL,
  HEAP_BLOCK_IS_MEDIUM,
  HEAP_BLOCK_IS_MAPPED,
} heap_block_kind_t;

typedef struct heap_block {
  heap_block_kind_t kind;
  void *ptr;
  size_t space_bytes;  // The canary included.
  size_t size_bytes;   // Asked for; without canaries all of the space.
  bool is_whole;       // Its canary is.
  heap_page_t *page;   // SMALL and MAPPED.
  uint8_t *state;      // SMALL.
} heap_block_t;

// Tells what live block starts at `ptr`; reports and returns false if none.
bool heap_block_locate(void *ptr, const heap_call_t *call,
                       heap_block_t *out_block);

// Tells what was asked for of the live block at `ptr`; 0 if there is none.
size_t heap_block_requested_bytes(void *ptr);

// Finds the run of the live medium block at `ptr`. Central lock held.
bool heap_block_find_medium(const void *ptr, heap_arena_place_t *out_place);

void heap_block_report(heap_misuse_t misuse, const heap_block_t *block,
                       const heap_call_t *call);

// Reports what is wrong with the surroundings of a block.
void heap_block_check_surroundings(const heap_block_t *block,
                                   const heap_call_t *call);

// Returns how many bytes of a block's space were handed out, marks included: a
// multiple of 16. Behind that is room to grow, memory as free as any, and the
// canary.
static inline size_t heap_block_used_bytes(size_t size_bytes,
                                           size_t space_bytes) {
  if (!heap_harden_has(HEAP_HARDEN_CANARY)) {
    return space_bytes;
  }
  size_t used_bytes = size_bytes + heap_canary_marked_bytes(
                                       space_bytes - size_bytes, space_bytes);
  used_bytes = (used_bytes + HEAP_CANARY_BYTES + 15) & ~(size_t)15;
  return used_bytes < space_bytes ? used_bytes : space_bytes;
}

// Writes the canary of a block whose contents matter.
static inline void heap_block_set_canary(void *ptr, size_t size_bytes,
                                         size_t space_bytes) {
  if (heap_harden_has(HEAP_HARDEN_CANARY)) {
    heap_canary_set(ptr, size_bytes, space_bytes);
  }
}

// Finds the state of a small block; false: none starts at `ptr`, which lies in
// `page`.
static inline bool heap_block_state(const heap_page_t *page, const void *ptr,
                                    uint8_t **out_state) {
  // Negative in the guard before the first block, which makes the index huge.
  uint64_t offset = (uintptr_t)ptr - page->start;
  uint64_t product = offset * page->reciprocal;
  if (__builtin_expect(
          (uint32_t)product >= page->reciprocal ||
              product >> 32 >= heap_class_info[page->size_class].block_count,
          0)) {
    return false;
  }
  *out_state = page->states + (product >> 32);
  return true;
}

// Tells whether what stands before a small block is whole; false also where it
// has to be looked for a guard.
static inline bool heap_block_is_whole_before(const heap_page_t *page,
                                              const void *ptr) {
  if (__builtin_expect((uintptr_t)ptr == page->start, 0)) {
    return !heap_guard_may_be_missing();
  }
  return !heap_harden_has(HEAP_HARDEN_CANARY | HEAP_HARDEN_ZERO) ||
         heap_canary_is_whole_before(ptr);
}

// ---- hardened_alloc.c ----

// Starts the variant: the first call of the process.
void heap_hardened_start(void);

// Allocates without telling the hooks; sets `errno`. `out_fresh`: the memory
// was never used.
void *heap_alloc_silently(size_t align_bytes, size_t size_bytes,
                          bool *out_fresh, const void *caller);

// Allocates, and tells the hooks.
void *heap_alloc_called(size_t size_bytes, const void *caller);

// As heap_alloc_silently, of these kinds only, or NULL. `reserve_bytes` of room
// to grow behind the block, if there is that much.
void *heap_alloc_medium(size_t align_bytes, size_t size_bytes,
                        size_t reserve_bytes, bool *out_fresh,
                        const void *caller);
void *heap_alloc_mapped(size_t align_bytes, size_t size_bytes, bool *out_fresh);

// Tells the hooks, if `ptr` is not NULL, and returns it.
void *heap_alloc_tell(void *ptr, size_t size_bytes);

// Returns the smallest class whose blocks all start at multiples of
// `align_bytes` and have room for the canary, or HEAP_CLASS_COUNT.
size_t heap_alloc_class(size_t align_bytes, size_t size_bytes);

bool heap_alloc_is_absurd(size_t size_bytes);

// Units of a run for a block of this size and its guards.
size_t heap_alloc_run_units(size_t size_bytes);

// Room for growing that a block of this size gets.
size_t heap_alloc_reserve_bytes(size_t size_bytes);

// Tells whether a run may have this size; that of a block that grew may have
// what a new block would not, and the reverse.
bool heap_alloc_is_medium(size_t size_bytes, bool is_growing);

// Gives what waits back, and what is idle.
size_t heap_hardened_trim(size_t keep_bytes, bool with_pages);

void heap_alloc_report_written(void *ptr, size_t space_bytes,
                               const void *caller);

// Looks at memory that is to be handed out, and cleans it; `ptr` is its
// block's.
HEAP_FAST_PATH void heap_alloc_verify(void *ptr, size_t space_bytes,
                                      void *memory, size_t size_bytes,
                                      const void *caller) {
  if (heap_harden_has(HEAP_HARDEN_ZERO | HEAP_HARDEN_REUSE) &&
      __builtin_expect(!heap_is_zero(memory, size_bytes), 0)) {
    heap_alloc_report_written(ptr, space_bytes, caller);
    memset(memory, 0, size_bytes);
  }
}

// Takes the cached block that lies so many slots below a bin's top.
HEAP_FAST_PATH void *heap_alloc_choose(heap_bin_t *bin, size_t below) {
  heap_slot_t *top = bin->top;
  heap_slot_t slot = top[-(ptrdiff_t)below];
  top[-(ptrdiff_t)below] = *top;
  bin->top = top - 1;
  __atomic_store_n(slot.state, HEAP_BLOCK_LIVE, __ATOMIC_RELAXED);
  return slot.ptr;
}

// Takes one of a bin's cached blocks, chosen by chance.
HEAP_FAST_PATH void *heap_alloc_pop(heap_thread_t *thread, heap_bin_t *bin,
                                    size_t cached_count, size_t size_bytes,
                                    const void *caller) {
  size_t space_bytes = bin->block_bytes;
  size_t below = 0;
  if (heap_harden_has(HEAP_HARDEN_RANDOM)) {
    below = heap_random_byte(&thread->quarantine.random) * cached_count >> 8;
  }
  void *ptr = heap_alloc_choose(bin, below);
  heap_alloc_verify(ptr, space_bytes, ptr, space_bytes, caller);
  if (heap_harden_has(HEAP_HARDEN_CANARY)) {
    heap_canary_set_new(ptr, size_bytes, space_bytes);
  }
  return ptr;
}

// Takes a block of a bin's group, whose bit is set in the mask.
HEAP_FAST_PATH void *heap_alloc_reserved(heap_bin_t *bin, size_t bit,
                                         bool *out_fresh) {
  bin->mask &= ~(UINT64_C(1) << bit);
  uint8_t *state = bin->states + bit;
  *out_fresh = *state == HEAP_BLOCK_FRESH;
  __atomic_store_n(state, HEAP_BLOCK_LIVE, __ATOMIC_RELAXED);
  return bin->base + bit * bin->block_bytes;
}

// Takes a block of a bin whose mask is not empty, looks at it and finishes it.
HEAP_FAST_PATH void *heap_alloc_take(heap_thread_t *thread, heap_bin_t *bin,
                                     size_t size_bytes, bool *out_fresh,
                                     const void *caller) {
  size_t space_bytes = bin->block_bytes;
  size_t bit = heap_harden_has(HEAP_HARDEN_RANDOM)
                   ? heap_random_bit_of(&thread->quarantine.random, bin->mask)
                   : (size_t)__builtin_ctzll(bin->mask);
  void *ptr = heap_alloc_reserved(bin, bit, out_fresh);
  if (!*out_fresh) {
    heap_alloc_verify(ptr, space_bytes, ptr, space_bytes, caller);
  }
  if (heap_harden_has(HEAP_HARDEN_CANARY)) {
    heap_canary_set_new(ptr, size_bytes, space_bytes);
  }
  return ptr;
}

// ---- hardened_free.c ----

// Frees a located block without telling the hooks; preserves `errno`.
void heap_free_silently(const heap_block_t *block, const heap_call_t *call);

// Frees what heap_free_slow() leaves.
void heap_free_called(void *ptr, const void *caller);

// Tells whether no other thread can be inside the heap. A second libc
// (dlmopen) has threads that ours does not know of: they have heaps.
static inline bool heap_is_alone(void) {
#ifdef HEAP_HAS_SINGLE_THREADED
  return __libc_single_threaded != 0 &&
         !__atomic_load_n(&heap_threads_were_two, __ATOMIC_RELAXED);
#else
  return false;
#endif
}

// The owner too: of a store, another thread's free at once would not know, and
// the block would wait twice and be handed out twice. While there is one thread
// a store is enough; the exchange waits for all stores before it.
static inline bool heap_free_claim(uint8_t *state) {
  uint8_t expected = HEAP_BLOCK_LIVE;
  if (heap_is_alone()) {
    if (__atomic_load_n(state, __ATOMIC_RELAXED) != HEAP_BLOCK_LIVE) {
      return false;
    }
    __atomic_store_n(state, HEAP_BLOCK_CACHED, __ATOMIC_RELAXED);
    return true;
  }
  // Acquire and release: whoever reuses the block comes after both threads.
  return __atomic_compare_exchange_n(state, &expected, HEAP_BLOCK_CACHED, false,
                                     __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static inline void heap_free_scrub(void *ptr, size_t space_bytes) {
  if (heap_harden_has(HEAP_HARDEN_ZERO)) {
    heap_zero_small(ptr, space_bytes);
  }
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_HEAP_HARDENED_INTERNAL_H_
