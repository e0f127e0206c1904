// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0
//
// slab_alloc_inline and slab_free_inline: `slab_alloc` and `slab_free`, checks
// and all, with the usual case inlined into the caller. For loops in which the
// call itself counts; code that includes this must be compiled again when slab
// is. Everything but these two functions is an implementation detail.
//
// The usual case touches three lines: the thread's magazine of the cache, the
// magazine's slots, and the states of the objects. magazine.c has the theory.

#ifndef MY_ALLOC_SLAB_SLAB_INLINE_H_
#define MY_ALLOC_SLAB_SLAB_INLINE_H_

#include <stddef.h>
#include <stdint.h>

#include "slab/slab.h"

#ifdef __cplusplus
extern "C" {
#endif

#define SLAB_LIKELY(condition) __builtin_expect(!!(condition), 1)
#define SLAB_UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#define SLAB_INLINE static inline __attribute__((always_inline))

enum {
  SLAB_GRANULE_SHIFT = 16,  // A granule of addresses belongs to one slab.
  SLAB_STATE_LIVE = 1,      // The state of an object that is handed out.
};

__extension__ typedef unsigned __int128 slab_uint128_t;

// A free object in a magazine.
typedef struct slab_slot {
  void *object;
  uint8_t *state;
} slab_slot_t;

// What the fast paths compare with.
typedef struct slab_traits {
  uint8_t live_state;  // The state of live objects.
  uint8_t free_state;  // Of objects in the magazine.
  uint8_t batch_log2;  // As many objects the next refill asks for.
  uint8_t no_state;    // Of no object.
  uint32_t epoch;      // The cache's, as far as the hot object is concerned.
} slab_traits_t;

// What a thread has of a cache. All zero when it has nothing. Written by the
// owner only, but for what others read as numbers (relaxed): `top`,
// `num_allocs`, and some of the second line.
typedef struct __attribute__((aligned(64))) slab_magazine {
  slab_slot_t *top;     // The next free slot of the stack.
  slab_slot_t *bottom;  // The first slot.
  slab_slot_t *limit;   // Behind the last slot.
  // The object that this thread allocated last. Its state is good while the
  // epoch is the cache's, and while the object is free here.
  slab_slot_t hot;
  uint8_t *hot_free_state;  // Its state if it is free again, otherwise NULL.
  uint64_t num_allocs;
  slab_traits_t traits;
  // Not for the fast paths.
  slab_cache_t *cache;   // NULL: not in use.
  uint32_t num_refills;  // Since the thread began to use the cache.
  uint32_t num_flushes;
  uint32_t refills_at_growth;  // num_refills when it last grew.
  uint32_t generation;         // The cache's when it last gave all up.
} slab_magazine_t;

// What the table says of a granule. All zero: nothing.
typedef struct slab_entry {
  uintptr_t base;      // Address of the slab's first object.
  size_t limit_bytes;  // From there to the last object's end; 0: none.
  uint8_t *states;     // One byte an object.
  struct slab_piece *slab;
} slab_entry_t;

// From a granule to its slab; its entries follow it. Replaced as a whole when
// it grows; the ones before stay readable.
typedef struct slab_table {
  uintptr_t mask_bytes;  // (number of entries - 1) * sizeof(slab_entry_t).
  size_t num_used;  // Entries that are or were in use. Cache's lock, as below.
  size_t num_displaced;  // Entries that were put elsewhere than home.
  size_t reserved;
} slab_table_t;

// The first line of a cache: all that the fast paths read of it. Immutable but
// for `table` (acquire; whoever has a live object sees a table that knows it)
// and the epoch (relaxed; whoever has an object of a slab that came later sees
// that it has changed).
typedef struct __attribute__((aligned(64))) slab_cache_fast {
  uint32_t magazine_offset_bytes;  // From the thread's base.
  uint32_t epoch;  // Never 0; changes before memory of slabs goes back.
  slab_table_t *table;
  uint64_t reciprocal;  // ceil(2^64 / stride).
} slab_cache_fast_t;

// The thread's magazines; never NULL. Code for shared objects would call a
// function for it; in slab itself, linked to a program, it is at a constant
// distance from the thread pointer.
#if defined(__PIC__) && !defined(__PIE__)
#define SLAB_TLS_MODEL __attribute__((tls_model("initial-exec")))
#elif defined(SLAB_TLS_IS_LOCAL)
#define SLAB_TLS_MODEL __attribute__((tls_model("local-exec")))
#else
#define SLAB_TLS_MODEL
#endif
extern SLAB_API __thread unsigned char *slab_thread_base SLAB_TLS_MODEL;

// Everything else. `slab_free_slow` takes what is not the usual case.
SLAB_API void *slab_alloc_slow(slab_cache_t *cache) SLAB_MUST_USE;
SLAB_API void slab_free_slow(slab_cache_t *cache, void *object);

// Relaxed: a state is only ever a claim on the object; what is in the object
// is ordered by whatever hands it from thread to thread.
SLAB_INLINE uint8_t slab_state_load(const uint8_t *state) {
  return __atomic_load_n(state, __ATOMIC_RELAXED);
}

SLAB_INLINE void slab_state_store(uint8_t *state, uint8_t value) {
  __atomic_store_n(state, value, __ATOMIC_RELAXED);
}

SLAB_INLINE slab_slot_t *slab_top_load(const slab_magazine_t *magazine) {
  return __atomic_load_n(&magazine->top, __ATOMIC_RELAXED);
}

SLAB_INLINE void slab_top_store(slab_magazine_t *magazine, slab_slot_t *top) {
  __atomic_store_n(&magazine->top, top, __ATOMIC_RELAXED);
}

// Adds to a number that only this thread writes and others may read: one
// instruction where the compiler's atomics would take three.
SLAB_INLINE void slab_count(uint64_t *counter, uint64_t amount) {
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
  __asm__("addq %1, %0" : "+m"(*counter) : "er"(amount) : "cc");
#else
  __atomic_store_n(counter, *counter + amount, __ATOMIC_RELAXED);
#endif
}

SLAB_INLINE slab_magazine_t *slab_magazine_of(const slab_cache_fast_t *fast) {
  return (slab_magazine_t *)(void *)(slab_thread_base +
                                     fast->magazine_offset_bytes);
}

// Relaxed: a thread that has an object of a slab which came after the change
// learned of both from whoever gave it the object.
SLAB_INLINE uint32_t slab_epoch_load(const slab_cache_fast_t *fast) {
  return __atomic_load_n(&fast->epoch, __ATOMIC_RELAXED);
}

// Acquire: with the release in slab_table_replace.
SLAB_INLINE slab_table_t *slab_table_of(const slab_cache_fast_t *fast) {
  return __atomic_load_n(&fast->table, __ATOMIC_ACQUIRE);
}

// Returns the entry where the granule of `object` has its home.
SLAB_INLINE slab_entry_t *slab_table_home(slab_table_t *table,
                                          uintptr_t object) {
  const int shift = SLAB_GRANULE_SHIFT - 5;
  uintptr_t offset_bytes = (object >> shift) & table->mask_bytes;
  return (slab_entry_t *)(void *)((unsigned char *)(table + 1) + offset_bytes);
}

// A relaxed load of a word of an entry, which the compiler may make a part of
// the instruction that uses it: it never does with an atomic one, and here that
// takes four instructions and a register to save. An aligned word is read
// whole.
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define SLAB_ENTRY_LOAD(member) (*(member))
#else
#define SLAB_ENTRY_LOAD(member) __atomic_load_n(member, __ATOMIC_RELAXED)
#endif

// Finds the state of the object that starts at `object`; false if the slab of
// `entry` has none there. Of an offset times the reciprocal, the upper half is
// the index of the object, and the lower half is below the reciprocal exactly
// when the offset is a multiple of the stride.
SLAB_INLINE bool slab_find_state(const slab_cache_fast_t *fast,
                                 const slab_entry_t *entry, uintptr_t object,
                                 uint8_t **out_state) {
  uintptr_t offset = object - SLAB_ENTRY_LOAD(&entry->base);
  slab_uint128_t product = (slab_uint128_t)offset * fast->reciprocal;
  if (SLAB_UNLIKELY((uint64_t)product >= fast->reciprocal) ||
      SLAB_UNLIKELY(offset >= SLAB_ENTRY_LOAD(&entry->limit_bytes))) {
    return false;
  }
  *out_state = SLAB_ENTRY_LOAD(&entry->states) + (size_t)(product >> 64);
  return true;
}

// Takes the hot object, which is free and has its state at `state`. NULL: not
// the usual case. What it returns was not stored by the free before, so that a
// pair of both does not wait for itself.
SLAB_INLINE void *slab_alloc_hot(slab_magazine_t *magazine, uint8_t *state) {
  if (SLAB_UNLIKELY(slab_state_load(state) != magazine->traits.free_state)) {
    return NULL;
  }
  magazine->hot_free_state = NULL;
  slab_state_store(state, SLAB_STATE_LIVE);
  slab_count(&magazine->num_allocs, 1);
  void *object = magazine->hot.object;
  if (object == NULL) {
    __builtin_unreachable();
  }
  return object;
}

// Pops the stack. NULL: not the usual case.
SLAB_INLINE void *slab_alloc_any(slab_magazine_t *magazine) {
  slab_slot_t *top = slab_top_load(magazine);
  if (SLAB_UNLIKELY(top == magazine->bottom)) {
    return NULL;
  }
  uint8_t *state = top[-1].state;
  if (SLAB_UNLIKELY(slab_state_load(state) != magazine->traits.free_state)) {
    return NULL;
  }
  void *object = top[-1].object;
  if (object == NULL) {
    __builtin_unreachable();
  }
  slab_top_store(magazine, top - 1);
  slab_state_store(state, SLAB_STATE_LIVE);
  // Atomic lest the compiler make one store of two by way of vector registers.
  __atomic_store_n(&magazine->hot.object, object, __ATOMIC_RELAXED);
  __atomic_store_n(&magazine->hot.state, state, __ATOMIC_RELAXED);
  slab_count(&magazine->num_allocs, 1);
  return object;
}

// The usual cases of `slab_alloc`. NULL: it is none of them.
SLAB_INLINE void *slab_alloc_usual(const slab_cache_fast_t *fast) {
  slab_magazine_t *magazine = slab_magazine_of(fast);
  uint8_t *state = magazine->hot_free_state;
  return state != NULL ? slab_alloc_hot(magazine, state)
                       : slab_alloc_any(magazine);
}

SLAB_INLINE void *slab_alloc_inline(slab_cache_t *cache) {
  void *object =
      slab_alloc_usual((const slab_cache_fast_t *)(const void *)cache);
  return SLAB_LIKELY(object != NULL) ? object : slab_alloc_slow(cache);
}

// Frees the object that was allocated last. False: not the usual case.
SLAB_INLINE bool slab_free_hot(const slab_cache_fast_t *fast,
                               slab_magazine_t *magazine) {
  uint8_t *state = magazine->hot.state;
  if (SLAB_UNLIKELY(slab_epoch_load(fast) != magazine->traits.epoch) ||
      SLAB_UNLIKELY(slab_state_load(state) != magazine->traits.live_state)) {
    return false;
  }
  slab_state_store(state, magazine->traits.free_state);
  magazine->hot_free_state = state;
  return true;
}

// Pushes an object on the stack. False: not the usual case.
SLAB_INLINE bool slab_free_any(const slab_cache_fast_t *fast,
                               slab_magazine_t *magazine, void *object) {
  slab_table_t *table = slab_table_of(fast);
  slab_entry_t *entry = slab_table_home(table, (uintptr_t)object);
  uint8_t *state;
  if (SLAB_UNLIKELY(!slab_find_state(fast, entry, (uintptr_t)object, &state)) ||
      SLAB_UNLIKELY(slab_state_load(state) != magazine->traits.live_state)) {
    return false;
  }
  slab_slot_t *top = slab_top_load(magazine);
  if (SLAB_UNLIKELY(top == magazine->limit)) {
    return false;
  }
  slab_state_store(state, magazine->traits.free_state);
  top->object = object;
  top->state = state;
  slab_top_store(magazine, top + 1);
  return true;
}

// The usual cases of `slab_free`. False: it is none of them.
SLAB_INLINE bool slab_free_usual(const slab_cache_fast_t *fast, void *object) {
  slab_magazine_t *magazine = slab_magazine_of(fast);
  return magazine->hot.object == object ? slab_free_hot(fast, magazine)
                                        : slab_free_any(fast, magazine, object);
}

SLAB_INLINE void slab_free_inline(slab_cache_t *cache, void *object) {
  if (SLAB_UNLIKELY(!slab_free_usual(
          (const slab_cache_fast_t *)(const void *)cache, object))) {
    slab_free_slow(cache, object);
  }
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_SLAB_SLAB_INLINE_H_
