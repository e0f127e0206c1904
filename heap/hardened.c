// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The public functions of the hardened variant, instead of heap.c. The engine
// below is the same: page table, spans with states out of line, run maps,
// threads' heaps. What is different:
//
//   size                   block                               guards
//   0                      an address without memory           all of it
//   .. 32 KiB - 8          small, in a span of its class       the span's
//   .. below 32 MiB        medium, a run                       its own
//   from 32 MiB            mapped, a mapping of its own        its own
//
// Each block but the empty ones ends in a canary (canary.h), from which the
// requested size follows: that is its usable size, and what sized frees are
// compared with.
//
// A free claims the block first, by its state or by its place in the list of
// runs that wait, so that of two frees at once one finds it taken. Then nobody
// else touches it: the canaries are checked, the block is zeroed and goes into
// quarantine (quarantine.h).
//
// Invariant, with zeroing on: memory that is in no live block is zero, whatever
// it was before and becomes next. An allocation looks whether it is, and if
// not, somebody wrote to a block that was freed. Only memory that was never
// used is not looked at: so what was given back to the kernel never counts as
// fresh again (HEAP_BLOCK_CLEAN, HEAP_PAGE_PURGED). calloc writes nothing.
//
// Deliberately not done: the order in which a thread's spans are used is not
// random, only groups and blocks within them.

#include <errno.h>
#include <stdint.h>
#include <string.h>

#include "heap/arena.h"
#include "heap/canary.h"
#include "heap/central.h"
#include "heap/diagnose.h"
#include "heap/empty_block.h"
#include "heap/fast_path.h"
#include "heap/fatal.h"
#include "heap/guard.h"
#include "heap/harden.h"
#include "heap/heap.h"
#include "heap/hooks.h"
#include "heap/mapped.h"
#include "heap/quarantine.h"
#include "heap/random.h"
#include "heap/trim.h"

enum {
  // Small blocks up to this size do not move when they shrink.
  SMALLEST_MOVED_BYTES = 64,
  // From here on it is looked which pages are zero already.
  ZERO_BY_PAGE_MIN_BYTES = 256 << 10,
  ZERO_LOOK_BYTES = 256,
  PREFETCH_CHUNKS = 1024 / 16,
};

// No program needs a block above this; a size that is comes from arithmetic
// that went wrong.
#define ABSURD_BYTES ((size_t)1 << 40)

// See heap.c.
#define RECLAIM_MAX_BYTES ((size_t)1 << 30)

typedef enum block_kind {
  BLOCK_EMPTY,
  BLOCK_SMALL,
  BLOCK_MEDIUM,
  BLOCK_MAPPED,
} block_kind_t;

typedef struct block {
  block_kind_t kind;
  void *ptr;
  size_t space_bytes;  // The canary included.
  size_t size_bytes;   // Asked for; without canaries all of the space.
  bool is_whole;       // Its canary is.
  heap_page_t *page;   // SMALL and MAPPED.
  uint8_t *state;      // SMALL.
} block_t;

static bool is_started;  // Atomic; written with the central lock held.

static __attribute__((noinline)) void start(void) {
  heap_central_lock();
  bool is_first = !__atomic_load_n(&is_started, __ATOMIC_RELAXED);
  if (is_first) {
    heap_harden_start();
    // Release: the defences and secrets, for those who do not take the lock.
    __atomic_store_n(&is_started, true, __ATOMIC_RELEASE);
  }
  heap_central_unlock();
  if (is_first) {
    heap_random_watch_forks();  // May allocate.
  }
}

// The first allocations may be those of several threads: pthread_create need
// not have called us.
static void start_once(void) {
  if (__builtin_expect(!__atomic_load_n(&is_started, __ATOMIC_ACQUIRE), 0)) {
    start();
  }
}

// ---- Zero ----

typedef uint64_t chunk_t __attribute__((vector_size(16), may_alias));

// Tells whether memory is zero; `size_bytes` and the address are multiples
// of 16.
static inline bool is_zero(const void *ptr, size_t size_bytes) {
  const chunk_t *chunks = ptr;
  const chunk_t *end = chunks + size_bytes / sizeof(*chunks);
  chunk_t sum = {0};
  while (end - chunks >= 16) {
    // The processor's own look ahead ends at the kernel's page.
    __builtin_prefetch(chunks + PREFETCH_CHUNKS);
    __builtin_prefetch(chunks + PREFETCH_CHUNKS + 4);
    __builtin_prefetch(chunks + PREFETCH_CHUNKS + 8);
    __builtin_prefetch(chunks + PREFETCH_CHUNKS + 12);
    sum |= (chunks[0] | chunks[1] | chunks[2] | chunks[3]) |
           (chunks[4] | chunks[5] | chunks[6] | chunks[7]);
    sum |= (chunks[8] | chunks[9] | chunks[10] | chunks[11]) |
           (chunks[12] | chunks[13] | chunks[14] | chunks[15]);
    chunks += 16;
  }
  if (end - chunks >= 8) {
    sum |= (chunks[0] | chunks[1] | chunks[2] | chunks[3]) |
           (chunks[4] | chunks[5] | chunks[6] | chunks[7]);
    chunks += 8;
  }
  if (end - chunks >= 4) {
    sum |= chunks[0] | chunks[1] | chunks[2] | chunks[3];
    chunks += 4;
  }
  for (; chunks < end; ++chunks) {
    sum |= *chunks;
  }
  return (sum[0] | sum[1]) == 0;
}

static void report_written(void *ptr, size_t space_bytes, const void *caller) {
  const heap_call_t call = {"alloc", caller};
  heap_report_misuse(HEAP_MISUSE_WRITTEN, &call, ptr, (uintptr_t)ptr,
                     space_bytes);
}

// Looks at a block that is to be handed out, and cleans it.
static inline void verify_unused(void *ptr, size_t space_bytes,
                                 const void *caller) {
  if (heap_harden_has(HEAP_HARDEN_ZERO | HEAP_HARDEN_REUSE) &&
      __builtin_expect(!is_zero(ptr, space_bytes), 0)) {
    report_written(ptr, space_bytes, caller);
    memset(ptr, 0, space_bytes);
  }
}

// Zeroes whole pages of the kernel's, at a multiple of them; of a long block
// those only that are not zero, or a free would fault all the pages in that the
// program never touched.
static void zero_pages(char *pages, size_t size_bytes) {
  if (size_bytes < ZERO_BY_PAGE_MIN_BYTES) {
    memset(pages, 0, size_bytes);
    return;
  }
  for (size_t at = 0; at < size_bytes; at += HEAP_GUARD_BYTES) {
    // Most pages that are not zero are not so at their beginning.
    if (!is_zero(pages + at, ZERO_LOOK_BYTES) ||
        !is_zero(pages + at + ZERO_LOOK_BYTES,
                 HEAP_GUARD_BYTES - ZERO_LOOK_BYTES)) {
      memset(pages + at, 0, HEAP_GUARD_BYTES);
    }
  }
}

// Zeroes a block. Its canary goes in one store, and first: the free of the
// block behind it may be looking at it.
static inline void scrub(void *ptr, size_t space_bytes) {
  if (heap_harden_has(HEAP_HARDEN_ZERO)) {
    heap_canary_store((uintptr_t)ptr + space_bytes - HEAP_CANARY_BYTES, 0);
    memset(ptr, 0, space_bytes);
  }
}

static void scrub_medium(void *ptr, size_t space_bytes) {
  if (heap_harden_has(HEAP_HARDEN_ZERO)) {
    zero_pages(ptr, space_bytes);
  }
}

// Tells whether calloc has to write: what was handed out may not be zero.
static bool must_clear(bool is_fresh) {
  return !is_fresh && !heap_harden_has(HEAP_HARDEN_ZERO | HEAP_HARDEN_REUSE);
}

static inline void set_canary(void *ptr, size_t size_bytes,
                              size_t space_bytes) {
  if (heap_harden_has(HEAP_HARDEN_CANARY)) {
    heap_canary_set(ptr, size_bytes, space_bytes);
  }
}

// ---- Allocation ----

static size_t units_of(size_t size_bytes) {
  return (size_bytes + HEAP_UNIT_BYTES - 1) >> HEAP_UNIT_SHIFT;
}

// Units of a run for a block of this size and its guards. An aligned block of
// size 0 has a page as well.
static size_t run_units_of(size_t size_bytes) {
  size_t mask = HEAP_GUARD_BYTES - 1;
  size_bytes += size_bytes == 0;
  size_t space_bytes = (size_bytes + heap_harden.canary_bytes + mask) & ~mask;
  return units_of(space_bytes + 2 * (size_t)HEAP_GUARD_BYTES);
}

static bool is_medium(size_t size_bytes, bool is_growing) {
  return size_bytes > HEAP_TABLE_MAX_BYTES &&
         size_bytes <
             (is_growing ? HEAP_MAPPED_GROWN_BYTES : HEAP_MAPPED_MIN_BYTES);
}

// Takes a block of a bin whose mask is not empty.
static inline void *take(heap_thread_t *thread, heap_bin_t *bin,
                         bool *out_fresh) {
  if (__builtin_expect(!heap_harden_has(HEAP_HARDEN_RANDOM), 0)) {
    return heap_bin_take(bin, out_fresh);
  }
  size_t bit = heap_random_bit_of(&thread->quarantine.random, bin->mask);
  bin->mask &= ~(UINT64_C(1) << bit);
  uint8_t *state = bin->states + bit;
  *out_fresh = *state == HEAP_BLOCK_FRESH;
  __atomic_store_n(state, HEAP_BLOCK_LIVE, __ATOMIC_RELAXED);
  return bin->base + bit * bin->block_bytes;
}

// Takes a block, looks at it and finishes it.
static inline void *take_whole(heap_thread_t *thread, heap_bin_t *bin,
                               size_t size_bytes, bool *out_fresh,
                               const void *caller) {
  size_t space_bytes = bin->block_bytes;
  void *ptr = take(thread, bin, out_fresh);
  if (!*out_fresh) {
    verify_unused(ptr, space_bytes, caller);
  }
  set_canary(ptr, size_bytes, space_bytes);
  return ptr;
}

static void *small_alloc(size_t size_class, size_t size_bytes, bool *out_fresh,
                         const void *caller) {
  heap_thread_t *thread = heap_thread_get();
  if (thread == NULL) {
    return NULL;
  }
  heap_bin_t *bin = &thread->bins[size_class];
  if (bin->mask == 0) {
    if (!heap_thread_refill(thread, size_class)) {
      return NULL;
    }
    heap_thread_note_refill(thread, size_class, size_bytes);
  }
  return take_whole(thread, bin, size_bytes, out_fresh, caller);
}

static void *medium_alloc(size_t align_bytes, size_t size_bytes,
                          bool *out_fresh, const void *caller) {
  if (align_bytes < HEAP_GUARD_BYTES) {
    align_bytes = HEAP_GUARD_BYTES;
  }
  heap_central_lock();
  heap_thread_sweep();
  uintptr_t run = heap_arena_alloc(run_units_of(size_bytes), align_bytes,
                                   HEAP_RUN_BLOCK, out_fresh);
  size_t run_bytes = 0;
  if (run != 0) {
    run_bytes = heap_arena_find(run).size_bytes;
    heap_guard_set_ends(run, run_bytes);
  }
  heap_central_unlock();
  if (run == 0) {
    return NULL;
  }
  void *ptr = (void *)(run + HEAP_GUARD_BYTES);
  if (!*out_fresh) {
    verify_unused(ptr, heap_guarded_bytes(run_bytes), caller);
  }
  set_canary(ptr, size_bytes, heap_guarded_bytes(run_bytes));
  return ptr;
}

static void *mapped_alloc(size_t align_bytes, size_t size_bytes,
                          bool *out_fresh) {
  *out_fresh = true;
  void *ptr =
      heap_mapped_alloc(align_bytes, size_bytes + heap_harden.canary_bytes);
  if (ptr != NULL) {
    set_canary(ptr, size_bytes,
               heap_mapped_usable_size(heap_page_of((uintptr_t)ptr)));
  }
  return ptr;
}

static void *empty_alloc(size_t align_bytes) {
  heap_central_lock();
  void *ptr = heap_empty_alloc(align_bytes);
  heap_central_unlock();
  return ptr;
}

// Returns the smallest class whose blocks all start at multiples of
// `align_bytes` and have room for the canary, or HEAP_CLASS_COUNT. The first
// block of a span is at a multiple of the guard's size.
static size_t aligned_class(size_t align_bytes, size_t size_bytes) {
  size_t space_bytes = size_bytes + heap_harden.canary_bytes;
  if (space_bytes > HEAP_SMALL_MAX_BYTES || align_bytes > HEAP_GUARD_BYTES) {
    return HEAP_CLASS_COUNT;
  }
  size_t size_class = heap_class_of_size(space_bytes);
  while (size_class < HEAP_CLASS_COUNT &&
         (heap_class_info[size_class].size_bytes & (align_bytes - 1)) != 0) {
    ++size_class;
  }
  return size_class;
}

static size_t trim(size_t keep_bytes, bool with_pages);

// Returns a block of the kind that its size and alignment ask for, or NULL.
static void *try_alloc(size_t align_bytes, size_t size_bytes, bool *out_fresh,
                       const void *caller) {
  if (size_bytes == 0 && align_bytes <= HEAP_EMPTY_MAX_ALIGN_BYTES &&
      heap_harden_has(HEAP_HARDEN_EMPTY)) {
    return empty_alloc(align_bytes);
  }
  size_t size_class = aligned_class(align_bytes, size_bytes);
  if (size_class < HEAP_CLASS_COUNT) {
    return small_alloc(size_class, size_bytes, out_fresh, caller);
  }
  bool is_mapped =
      size_bytes >= HEAP_MAPPED_MIN_BYTES || align_bytes > HEAP_PAGE_BYTES;
  void *ptr = NULL;
  if (!is_mapped) {
    ptr = medium_alloc(align_bytes, size_bytes, out_fresh, caller);
  }
  if (ptr == NULL && (is_mapped || size_bytes >= HEAP_MAPPED_GROWN_BYTES)) {
    ptr = mapped_alloc(align_bytes, size_bytes, out_fresh);
  }
  if (ptr == NULL && is_mapped) {
    ptr = medium_alloc(align_bytes, size_bytes, out_fresh, caller);
  }
  return ptr;
}

static bool is_absurd(size_t size_bytes) {
  return size_bytes > (heap_harden_has(HEAP_HARDEN_LIMIT)
                           ? ABSURD_BYTES
                           : (size_t)PTRDIFF_MAX);
}

// Allocates without telling the hooks; sets `errno`.
static void *alloc_silently(size_t align_bytes, size_t size_bytes,
                            bool *out_fresh, const void *caller) {
  *out_fresh = false;
  start_once();
  if (is_absurd(size_bytes) || align_bytes > PTRDIFF_MAX / 2) {
    errno = ENOMEM;
    return NULL;
  }
  void *ptr = try_alloc(align_bytes, size_bytes, out_fresh, caller);
  if (ptr == NULL && size_bytes <= RECLAIM_MAX_BYTES &&
      align_bytes <= RECLAIM_MAX_BYTES) {
    // What waits or lies idle may be what is missing.
    trim(0, false);
    ptr = try_alloc(align_bytes, size_bytes, out_fresh, caller);
  }
  if (ptr == NULL) {
    errno = ENOMEM;
  }
  return ptr;
}

// ---- What a pointer is ----

static bool small_state(const heap_page_t *page, const void *ptr,
                        uint8_t **out_state) {
  uint64_t offset = (uintptr_t)ptr - page->start;
  uint64_t product = offset * page->reciprocal;
  // A guard lies before the first block, and another one behind the last.
  if (__builtin_expect(
          offset >= 2 * HEAP_PAGE_BYTES ||
              (uint32_t)product >= page->reciprocal ||
              product >> 32 >= heap_class_info[page->size_class].block_count,
          0)) {
    return false;
  }
  *out_state = page->states + (product >> 32);
  return true;
}

// Central lock held.
static bool find_medium(const void *ptr, heap_arena_place_t *out_place) {
  uintptr_t run = (uintptr_t)ptr - HEAP_GUARD_BYTES;
  *out_place = heap_arena_find(run);
  return out_place->kind == HEAP_RUN_BLOCK && out_place->start == run &&
         !heap_run_quarantine_has(run);
}

static bool locate_under_lock(void *ptr, block_t *out_block) {
  heap_arena_place_t place;
  bool is_empty = heap_empty_find(ptr) == HEAP_EMPTY_LIVE;
  if (is_empty) {
    *out_block = (block_t){.kind = BLOCK_EMPTY, .ptr = ptr};
  } else if (find_medium(ptr, &place)) {
    *out_block = (block_t){.kind = BLOCK_MEDIUM,
                           .ptr = ptr,
                           .space_bytes = heap_guarded_bytes(place.size_bytes)};
  } else {
    return false;
  }
  return true;
}

static bool find_block(void *ptr, block_t *out_block) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  if (page->kind == HEAP_PAGE_SPAN) {
    uint8_t *state;
    if (!small_state(page, ptr, &state) ||
        __atomic_load_n(state, __ATOMIC_RELAXED) != HEAP_BLOCK_LIVE) {
      return false;
    }
    *out_block =
        (block_t){.kind = BLOCK_SMALL,
                  .ptr = ptr,
                  .space_bytes = heap_class_info[page->size_class].size_bytes,
                  .page = page,
                  .state = state};
    return true;
  }
  if (page->kind == HEAP_PAGE_MAPPED && page->start == (uintptr_t)ptr) {
    *out_block = (block_t){.kind = BLOCK_MAPPED,
                           .ptr = ptr,
                           .space_bytes = heap_mapped_usable_size(page),
                           .page = page};
    return true;
  }
  heap_central_lock();
  bool is_found = locate_under_lock(ptr, out_block);
  heap_central_unlock();
  return is_found;
}

// Finds out which size was asked for.
static void read_size(block_t *block) {
  block->is_whole = true;
  if (block->kind == BLOCK_EMPTY) {
    block->size_bytes = 0;
  } else if (!heap_harden_has(HEAP_HARDEN_CANARY)) {
    block->size_bytes = block->space_bytes;
  } else if (!heap_canary_check(block->ptr, block->space_bytes,
                                &block->size_bytes)) {
    block->is_whole = false;
    block->size_bytes = block->space_bytes - HEAP_CANARY_BYTES;
  }
}

// Tells what live block starts at `ptr`; reports and returns false if none.
static bool locate(void *ptr, const heap_call_t *call, block_t *out_block) {
  if (!find_block(ptr, out_block)) {
    heap_report_pointer(ptr, call);
    return false;
  }
  read_size(out_block);
  return true;
}

// ---- Free ----

static void report_block(heap_misuse_t misuse, const block_t *block,
                         const heap_call_t *call) {
  heap_report_misuse(misuse, call, block->ptr, (uintptr_t)block->ptr,
                     block->space_bytes);
}

// Of a small block; false also where it has to be looked for a guard.
static inline bool is_whole_before(const heap_page_t *page, const void *ptr) {
  if (__builtin_expect((uintptr_t)ptr == page->start, 0)) {
    return !heap_guard_may_be_missing();
  }
  return !heap_harden_has(HEAP_HARDEN_CANARY | HEAP_HARDEN_ZERO) ||
         heap_canary_is_whole_before(ptr);
}

// Of a block that a guard stands before: if that is not there, the page is
// zero.
static bool is_guard_whole(const void *ptr) {
  if (!heap_guard_may_be_missing() || !heap_harden_has(HEAP_HARDEN_CANARY)) {
    return true;
  }
  heap_central_lock();
  bool is_missing = heap_guard_is_missing((uintptr_t)ptr - HEAP_GUARD_BYTES);
  heap_central_unlock();
  return !is_missing ||
         heap_canary_load((uintptr_t)ptr - HEAP_CANARY_BYTES) == 0;
}

static bool has_underflow(const block_t *block) {
  if (block->kind == BLOCK_MEDIUM ||
      (block->kind == BLOCK_SMALL &&
       (uintptr_t)block->ptr == block->page->start)) {
    return !is_guard_whole(block->ptr);
  }
  return block->kind == BLOCK_SMALL &&
         !is_whole_before(block->page, block->ptr);
}

// Reports what is wrong with the surroundings of a block.
static void check_surroundings(const block_t *block, const heap_call_t *call) {
  if (!block->is_whole) {
    report_block(HEAP_MISUSE_OVERFLOW, block, call);
  }
  if (has_underflow(block)) {
    report_block(HEAP_MISUSE_UNDERFLOW, block, call);
    // Or the next block here would be reported, too.
    heap_canary_store((uintptr_t)block->ptr - HEAP_CANARY_BYTES, 0);
  }
}

// Puts a block, claimed and scrubbed, into quarantine.
static inline void retire_small(heap_thread_t *thread, void *ptr,
                                size_t space_bytes) {
  if (thread != NULL && heap_harden_has(HEAP_HARDEN_QUARANTINE)) {
    heap_quarantine_push(thread, ptr, space_bytes);
  } else {
    heap_quarantine_release(thread, ptr);
  }
}

// The owner too: of a store, another thread's free at once would not know, and
// the block would wait twice and be handed out twice.
static inline bool claim_small(uint8_t *state) {
  uint8_t expected = HEAP_BLOCK_LIVE;
  // Acquire and release: whoever reuses the block comes after both threads.
  return __atomic_compare_exchange_n(state, &expected, HEAP_BLOCK_CACHED, false,
                                     __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

static void free_small(const block_t *block, const heap_call_t *call) {
  if (!claim_small(block->state)) {
    heap_report_pointer(block->ptr, call);  // Somebody else was faster.
    return;
  }
  check_surroundings(block, call);
  scrub(block->ptr, block->space_bytes);
  retire_small(heap_thread_get(), block->ptr, block->space_bytes);
}

// Frees a run at once, as there is no room to wait. Central lock held.
static void free_run(uintptr_t run, heap_arena_place_t place,
                     const block_t *block) {
  scrub_medium(block->ptr, block->space_bytes);
  heap_guard_clear_ends(run, place.size_bytes);
  heap_arena_free(run);
}

static void free_medium(const block_t *block, const heap_call_t *call) {
  uintptr_t run = (uintptr_t)block->ptr - HEAP_GUARD_BYTES;
  heap_arena_place_t place;
  // It may be another's soon.
  check_surroundings(block, call);
  heap_central_lock();
  bool is_live = find_medium(block->ptr, &place);
  bool is_claimed = is_live && heap_run_quarantine_claim(run, place.size_bytes);
  if (is_live && !is_claimed) {
    free_run(run, place, block);
  }
  heap_central_unlock();
  if (is_claimed) {
    scrub_medium(block->ptr, heap_guarded_bytes(place.size_bytes));
    heap_central_lock();
    heap_run_quarantine_settle(run);
    heap_central_unlock();
  } else if (!is_live) {
    heap_report_pointer(block->ptr, call);
  }
}

static void free_empty(const block_t *block, const heap_call_t *call) {
  heap_central_lock();
  bool is_live = heap_empty_find(block->ptr) == HEAP_EMPTY_LIVE;
  if (is_live) {
    heap_empty_free(block->ptr);
  }
  heap_central_unlock();
  if (!is_live) {
    heap_report_pointer(block->ptr, call);
  }
}

// Frees a located block without telling the hooks; preserves `errno`.
static void free_silently(const block_t *block, const heap_call_t *call) {
  int saved_errno = errno;
  switch (block->kind) {
    case BLOCK_EMPTY:
      free_empty(block, call);
      break;
    case BLOCK_SMALL:
      free_small(block, call);
      break;
    case BLOCK_MEDIUM:
      free_medium(block, call);
      break;
    case BLOCK_MAPPED:
      check_surroundings(block, call);
      if (!heap_mapped_free(block->ptr)) {
        heap_report_pointer(block->ptr, call);
      }
      break;
  }
  errno = saved_errno;
}

static __attribute__((noinline)) void free_called(void *ptr,
                                                  const void *caller) {
  const heap_call_t call = {"free", caller};
  block_t block;
  if (ptr != NULL && locate(ptr, &call, &block)) {
    heap_hook_free(ptr);
    free_silently(&block, &call);
  }
}

// A block of the calling thread with nothing wrong about it: most frees.
void heap_free_slow(void *ptr) {
  heap_page_t *page = heap_page_of((uintptr_t)ptr);
  heap_thread_t *thread = heap_thread_fast;
  size_t space_bytes = heap_class_info[page->size_class].size_bytes;
  uint8_t *state;
  size_t size_bytes;
  if (__builtin_expect(
          heap_harden_has(HEAP_HARDEN_CANARY | HEAP_HARDEN_QUARANTINE) &&
              small_state(page, ptr, &state) &&
              __atomic_load_n(state, __ATOMIC_RELAXED) == HEAP_BLOCK_LIVE &&
              __atomic_load_n(&page->owner, __ATOMIC_RELAXED) == thread &&
              heap_canary_check(ptr, space_bytes, &size_bytes) &&
              is_whole_before(page, ptr) && claim_small(state),
          1)) {
    scrub(ptr, space_bytes);
    heap_quarantine_push(thread, ptr, space_bytes);
    return;
  }
  free_called(ptr, __builtin_return_address(0));
}

static bool is_rounded_size(size_t rounded_bytes, size_t align_bytes,
                            size_t size_bytes) {
  size_t sum_bytes;
  return align_bytes != 0 &&
         !__builtin_add_overflow(size_bytes, align_bytes - 1, &sum_bytes) &&
         (sum_bytes & ~(align_bytes - 1)) == rounded_bytes;
}

// C++ libraries make an aligned size a multiple of the alignment, some of a
// pointer's at least, and 0 a 1, and tell the sized delete what it was before.
// `align_bytes` 0: the call names none.
static bool is_its_size(const block_t *block, size_t align_bytes,
                        size_t size_bytes) {
  if (!heap_harden_has(HEAP_HARDEN_SIZED) || !block->is_whole) {
    return size_bytes <= block->size_bytes;
  }
  size_t asked_bytes = size_bytes == 0 ? 1 : size_bytes;
  if (!heap_harden_has(HEAP_HARDEN_CANARY)) {
    // Nothing but the space is known.
    if (align_bytes > HEAP_MIN_ALIGN_BYTES || block->kind != BLOCK_SMALL) {
      return size_bytes <= block->size_bytes;
    }
    return block->kind == BLOCK_SMALL &&
           aligned_class(HEAP_MIN_ALIGN_BYTES, asked_bytes) ==
               block->page->size_class;
  }
  return size_bytes == block->size_bytes || asked_bytes == block->size_bytes ||
         is_rounded_size(block->size_bytes, align_bytes, asked_bytes) ||
         (align_bytes != 0 && align_bytes < sizeof(void *) &&
          is_rounded_size(block->size_bytes, sizeof(void *), asked_bytes));
}

// What `realloc` made of a block in place has the size it asked for, so
// `may_have_shrunk` means nothing here.
void heap_free_sized_slow(void *ptr, size_t align_bytes, size_t size_bytes,
                          bool may_have_shrunk) {
  (void)may_have_shrunk;
  const heap_call_t call = {"sized free", __builtin_return_address(0)};
  block_t block;
  if (ptr == NULL || !locate(ptr, &call, &block)) {
    return;
  }
  if (!is_its_size(&block, align_bytes, size_bytes)) {
    report_block(HEAP_MISUSE_SIZE, &block, &call);
  }
  heap_hook_free(ptr);
  free_silently(&block, &call);
}

void heap_free_sized(void *ptr, size_t align_bytes, size_t size_bytes) {
  heap_free_sized_slow(ptr, align_bytes, size_bytes, false);
}

void heap_free(void *ptr) {
  heap_free_slow(ptr);
}

// ---- The public functions ----

static size_t requested_size_of(void *ptr) {
  block_t block;
  if (!find_block(ptr, &block)) {
    return 0;
  }
  read_size(&block);
  return block.size_bytes;
}

static void *tell_alloc(void *ptr, size_t size_bytes) {
  if (ptr != NULL && heap_hooks() != NULL) {
    heap_hook_alloc(ptr, size_bytes, requested_size_of(ptr));
  }
  return ptr;
}

static __attribute__((noinline)) void *alloc_called(size_t size_bytes,
                                                    const void *caller) {
  bool fresh;
  return tell_alloc(
      alloc_silently(HEAP_MIN_ALIGN_BYTES, size_bytes, &fresh, caller),
      size_bytes);
}

// Returns a block that is at hand, or NULL.
HEAP_FAST_PATH void *alloc_at_hand(size_t size_bytes, bool *out_fresh,
                                   const void *caller) {
  // Not 0.
  if (size_bytes - 1 < HEAP_TABLE_MAX_BYTES - HEAP_CANARY_BYTES) {
    heap_thread_t *thread = heap_thread_fast;
    heap_bin_t *bin = heap_thread_bin(
        thread, heap_bin_offset_lookup(size_bytes + heap_harden.canary_bytes));
    if (__builtin_expect(bin->mask != 0, 1)) {
      return take_whole(thread, bin, size_bytes, out_fresh, caller);
    }
  }
  return NULL;
}

void *heap_alloc_slow(size_t size_bytes) {
  bool fresh;
  const void *caller = __builtin_return_address(0);
  void *ptr = alloc_at_hand(size_bytes, &fresh, caller);
  return __builtin_expect(ptr != NULL, 1) ? ptr
                                          : alloc_called(size_bytes, caller);
}

void *heap_alloc(size_t size_bytes) {
  return heap_alloc_slow(size_bytes);
}

void *heap_calloc(size_t count, size_t size_bytes) {
  size_t total_bytes;
  bool fresh;
  const void *caller = __builtin_return_address(0);
  if (__builtin_mul_overflow(count, size_bytes, &total_bytes)) {
    errno = ENOMEM;
    return NULL;
  }
  void *ptr = alloc_at_hand(total_bytes, &fresh, caller);
  bool is_told = ptr != NULL;
  if (ptr == NULL) {
    ptr = alloc_silently(HEAP_MIN_ALIGN_BYTES, total_bytes, &fresh, caller);
  }
  if (ptr != NULL && total_bytes > 0 && must_clear(fresh)) {
    memset(ptr, 0, total_bytes);
  }
  return is_told ? ptr : tell_alloc(ptr, total_bytes);
}

// ---- Change of size ----

// Tells whether a run that is resized should have the size it is to get, or
// would better be a block of another kind.
static bool is_right_size(size_t old_bytes, size_t size_bytes) {
  return is_medium(size_bytes, size_bytes > old_bytes &&
                                   old_bytes < HEAP_MAPPED_GROWN_BYTES);
}

// Moves the guard behind a run to where the run ends now. Central lock held.
static bool resize_run(uintptr_t run, size_t old_bytes, size_t size_bytes,
                       size_t *out_bytes) {
  uintptr_t old_guard = run + HEAP_GUARD_BYTES + heap_guarded_bytes(old_bytes);
  // Shrinking, nothing else than zero may be left behind.
  heap_guard_clear(old_guard);
  bool done = heap_arena_resize(run, run_units_of(size_bytes));
  *out_bytes = done ? heap_arena_find(run).size_bytes : old_bytes;
  heap_guard_set(run + HEAP_GUARD_BYTES + heap_guarded_bytes(*out_bytes));
  return done;
}

// Changes the length of a medium block where it is, all but its canary. The
// bytes behind `size_bytes` are zero.
static bool resize_medium(block_t *block, size_t size_bytes) {
  uintptr_t run = (uintptr_t)block->ptr - HEAP_GUARD_BYTES;
  heap_arena_place_t place;
  size_t run_bytes = 0;
  heap_central_lock();
  bool done = find_medium(block->ptr, &place) &&
              resize_run(run, place.size_bytes, size_bytes, &run_bytes);
  heap_central_unlock();
  if (done) {
    block->space_bytes = heap_guarded_bytes(run_bytes);
  }
  return done;
}

// Tells whether a small block can be what was asked for.
static bool stays_small(const block_t *block, size_t size_bytes) {
  size_t wanted_bytes = size_bytes + heap_harden.canary_bytes;
  return wanted_bytes <= block->space_bytes && size_bytes > 0 &&
         (wanted_bytes >= block->space_bytes / 2 ||
          block->space_bytes <= SMALLEST_MOVED_BYTES);
}

// Makes the bytes behind the block's first `keep_bytes` zero, canary first; of
// a mapped one those only that stay, as the kernel takes the others away.
static void clear_tail(const block_t *block, size_t keep_bytes,
                       size_t new_space_bytes) {
  char *start = block->ptr;
  size_t page_mask = HEAP_GUARD_BYTES - 1;
  size_t end_bytes = block->space_bytes;
  if (block->kind == BLOCK_MAPPED && new_space_bytes < end_bytes) {
    new_space_bytes = new_space_bytes > HEAP_PAGE_BYTES
                          ? (new_space_bytes + page_mask) & ~page_mask
                          : HEAP_PAGE_BYTES;
    end_bytes = new_space_bytes < end_bytes ? new_space_bytes : end_bytes;
  }
  if (end_bytes == block->space_bytes && heap_harden_has(HEAP_HARDEN_CANARY)) {
    heap_canary_store((uintptr_t)start + end_bytes - HEAP_CANARY_BYTES, 0);
  }
  size_t pages_bytes = (keep_bytes + page_mask) & ~page_mask;
  if (block->kind == BLOCK_SMALL || pages_bytes >= end_bytes) {
    memset(start + keep_bytes, 0, end_bytes - keep_bytes);
  } else {
    memset(start + keep_bytes, 0, pages_bytes - keep_bytes);
    zero_pages(start + pages_bytes, end_bytes - pages_bytes);
  }
}

// What stands behind a run that grew was free; looks whether it was left alone.
static void verify_grown(const block_t *block, size_t old_space_bytes,
                         const void *caller) {
  char *grown = (char *)block->ptr + old_space_bytes;
  size_t grown_bytes = block->space_bytes - old_space_bytes;
  if (heap_harden_has(HEAP_HARDEN_ZERO | HEAP_HARDEN_REUSE) &&
      !is_zero(grown, grown_bytes)) {
    report_written(block->ptr, block->space_bytes, caller);
    memset(grown, 0, grown_bytes);
  }
}

// Changes the length of a block where it is, or has the kernel move it. Returns
// where it is then; NULL: it is as it was. `in_need`: whatever is possible.
static void *resize(block_t *block, size_t size_bytes, bool in_need,
                    const void *caller) {
  size_t old_space_bytes = block->space_bytes;
  size_t space_bytes = size_bytes + heap_harden.canary_bytes;
  size_t kept_bytes =
      size_bytes < block->size_bytes ? size_bytes : block->size_bytes;
  bool done = false;
  void *ptr = block->ptr;
  if (block->kind == BLOCK_EMPTY ||
      (block->kind == BLOCK_SMALL && !stays_small(block, size_bytes)) ||
      (block->kind == BLOCK_MEDIUM && !in_need &&
       !is_right_size(block->space_bytes, size_bytes)) ||
      (block->kind == BLOCK_MAPPED && !in_need &&
       size_bytes < HEAP_MAPPED_GROWN_BYTES / 2)) {
    return NULL;
  }
  // What is given up must not be read again; what is got must be zero.
  clear_tail(block, kept_bytes, space_bytes);
  switch (block->kind) {
    case BLOCK_EMPTY:
      break;
    case BLOCK_SMALL:
      done = true;
      break;
    case BLOCK_MEDIUM:
      done = resize_medium(block, size_bytes);
      if (done && block->space_bytes > old_space_bytes) {
        verify_grown(block, old_space_bytes, caller);
      }
      break;
    case BLOCK_MAPPED:
      done = heap_mapped_resize(ptr, space_bytes);
      if (!done && size_bytes > block->size_bytes) {
        ptr = heap_mapped_move(ptr, space_bytes);
        done = ptr != NULL;
        ptr = done ? ptr : block->ptr;
      }
      block->space_bytes =
          heap_mapped_usable_size(heap_page_of((uintptr_t)ptr));
      break;
  }
  set_canary(ptr, done ? size_bytes : block->size_bytes, block->space_bytes);
  return done ? ptr : NULL;
}

// There is no memory for another block: changes this one's length where it is,
// or lets a block that was to be smaller be.
static void *realloc_in_need(block_t *block, size_t size_bytes,
                             const void *caller) {
  if (block->kind == BLOCK_EMPTY) {
    return NULL;
  }
  void *ptr = resize(block, size_bytes == 0 ? 1 : size_bytes, true, caller);
  if (ptr == NULL && size_bytes <= block->size_bytes) {
    // Too much space for a canary's reach: only the size changes not.
    ptr = block->ptr;
  }
  if (ptr == block->ptr && ptr != NULL) {
    heap_hook_resize(ptr, size_bytes, requested_size_of(ptr));
  }
  return ptr;
}

static void *realloc_by_copy(block_t *block, size_t size_bytes,
                             const heap_call_t *call) {
  void *copy = NULL;
  bool fresh;
  bool is_growing = size_bytes > block->size_bytes;
  if (is_absurd(size_bytes)) {
    errno = ENOMEM;
    return NULL;
  }
  if (is_growing && size_bytes >= HEAP_MAPPED_GROWN_BYTES) {
    copy = mapped_alloc(HEAP_MIN_ALIGN_BYTES, size_bytes, &fresh);
  } else if (is_growing && is_medium(size_bytes, true)) {
    copy = medium_alloc(HEAP_MIN_ALIGN_BYTES, size_bytes, &fresh, call->caller);
  }
  if (copy == NULL) {
    copy =
        alloc_silently(HEAP_MIN_ALIGN_BYTES, size_bytes, &fresh, call->caller);
  }
  if (copy == NULL) {
    return realloc_in_need(block, size_bytes, call->caller);
  }
  size_t kept_bytes = is_growing ? block->size_bytes : size_bytes;
  if (kept_bytes > 0) {
    memcpy(copy, block->ptr, kept_bytes);
  }
  tell_alloc(copy, size_bytes);
  heap_hook_free(block->ptr);
  free_silently(block, call);
  return copy;
}

void *heap_realloc(void *ptr, size_t size_bytes) {
  const heap_call_t call = {"realloc", __builtin_return_address(0)};
  block_t block;
  if (ptr == NULL) {
    return alloc_called(size_bytes, call.caller);
  }
  if (!locate(ptr, &call, &block)) {
    errno = EINVAL;
    return NULL;
  }
  if (is_absurd(size_bytes)) {
    errno = ENOMEM;
    return NULL;
  }
  if (!block.is_whole) {
    report_block(HEAP_MISUSE_OVERFLOW, &block, &call);
    set_canary(ptr, block.size_bytes, block.space_bytes);
    block.is_whole = true;
  }
  void *resized = resize(&block, size_bytes, false, call.caller);
  if (resized == ptr) {
    heap_hook_resize(ptr, size_bytes, size_bytes);
  }
  return resized != NULL ? resized : realloc_by_copy(&block, size_bytes, &call);
}

void *heap_aligned_alloc(size_t align_bytes, size_t size_bytes) {
  if (align_bytes == 0 || (align_bytes & (align_bytes - 1)) != 0) {
    errno = EINVAL;
    return NULL;
  }
  if (align_bytes < HEAP_MIN_ALIGN_BYTES) {
    align_bytes = HEAP_MIN_ALIGN_BYTES;
  }
  bool fresh;
  return tell_alloc(alloc_silently(align_bytes, size_bytes, &fresh,
                                   __builtin_return_address(0)),
                    size_bytes);
}

size_t heap_usable_size(void *ptr) {
  const heap_call_t call = {"usable_size", __builtin_return_address(0)};
  block_t block;
  if (ptr == NULL || !locate(ptr, &call, &block)) {
    return 0;
  }
  return block.size_bytes;
}

size_t heap_add_memory(void *memory, size_t size_bytes, bool is_zeroed) {
  size_t used_bytes;
  start_once();
  heap_central_lock();
  int error = heap_arena_add(memory, size_bytes, is_zeroed, &used_bytes);
  heap_central_unlock();
  if (error != 0) {
    errno = error;
  }
  return used_bytes;
}

// Before that, what this thread freed waits no longer.
static size_t trim(size_t keep_bytes, bool with_pages) {
  heap_thread_t *thread = heap_thread_get_existing();
  if (thread != NULL) {
    heap_quarantine_flush(thread);
  }
  heap_central_lock();
  heap_run_quarantine_flush();
  heap_mapped_flush();
  heap_central_unlock();
  return heap_trim_all(keep_bytes, with_pages);
}

size_t heap_trim(size_t keep_bytes) {
  return trim(keep_bytes, true);
}
