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

#include <stdbool.h>
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
  SLAB_STATE_LIVE = 1,  // The state of an object that is handed out.
};

__extension__ typedef unsigned __int128 slab_uint128_t;

// What the fast paths compare with.
typedef struct slab_traits {
  uint8_t free_state;  // The state of objects in the magazine.
  uint8_t batch_log2;  // As many objects the next refill asks for.
  uint8_t no_state;    // Of no object.
  bool is_shared;      // It has no tag of its own.
} slab_traits_t;

// What a thread has of a cache. All zero when it has nothing. Written by the
// owner only, but for what others read as numbers (relaxed): `top`,
// `num_allocs`, and some of the second line.
typedef struct __attribute__((aligned(64))) slab_magazine {
  void **top;     // The next free slot of the stack.
  void **bottom;  // The first slot.
  void **limit;   // Behind the last slot that the fast paths may fill.
  // The object that this thread allocated last, and where its state is.
  void *hot;
  uint8_t *hot_state;
  uint8_t *hot_free_state;  // The same if it is free again, otherwise NULL.
  uint64_t num_allocs;
  slab_traits_t traits;
  // Not for the fast paths.
  slab_cache_t *cache;   // NULL: not in use.
  void **end;            // Behind the last slot.
  uint64_t num_refills;  // Since the thread began to use the cache.
  uint64_t num_flushes;
  uint64_t refills_at_growth;  // num_refills when it last grew.
  uint32_t generation;         // The cache's when it last gave all up.
  uint32_t num_in_hand;        // Slots above `top` that a refill is filling.
} slab_magazine_t;

// The first line of a cache: all that the fast paths read of it. Immutable.
// The range is where the cache's objects lie, unless it has none or that is
// full; object number i of it starts at base + i * stride, its state is at
// states + i.
typedef struct __attribute__((aligned(64))) slab_cache_fast {
  uintptr_t base;
  size_t limit_bytes;   // The length of the range; 0: none.
  uint64_t reciprocal;  // ceil(2^64 / stride).
  uint8_t *states;
  size_t magazine_offset_bytes;  // From the thread's base.
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

SLAB_INLINE void **slab_top_load(const slab_magazine_t *magazine) {
  return __atomic_load_n(&magazine->top, __ATOMIC_RELAXED);
}

SLAB_INLINE void slab_top_store(slab_magazine_t *magazine, void **top) {
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

// Finds the state of the object of the range that starts at `object`; false if
// there is none. Of an offset times the reciprocal, the upper half is the index
// of the object, and the lower half is below the reciprocal exactly when the
// offset is a multiple of the stride. States are there for all of the range, so
// that those of memory that has no object yet, or none any more, say so.
SLAB_INLINE bool slab_find_state(const slab_cache_fast_t *fast,
                                 uintptr_t object, uint8_t **out_state) {
  uintptr_t offset = object - fast->base;
  slab_uint128_t product = (slab_uint128_t)offset * fast->reciprocal;
  if (SLAB_UNLIKELY((uint64_t)product >= fast->reciprocal) ||
      SLAB_UNLIKELY(offset >= fast->limit_bytes)) {
    return false;
  }
  *out_state = fast->states + (size_t)(product >> 64);
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
  void *object = magazine->hot;
  if (object == NULL) {
    __builtin_unreachable();
  }
  return object;
}

// Pops the stack. NULL: not the usual case.
SLAB_INLINE void *slab_alloc_any(const slab_cache_fast_t *fast,
                                 slab_magazine_t *magazine) {
  void **top = slab_top_load(magazine);
  if (SLAB_UNLIKELY(top == magazine->bottom)) {
    return NULL;
  }
  void *object = top[-1];
  uintptr_t offset = (uintptr_t)object - fast->base;
  if (SLAB_UNLIKELY(offset >= fast->limit_bytes)) {
    return NULL;
  }
  // It is the start of an object: no free let it in that was not.
  uint8_t *state = fast->states +
                   (size_t)(((slab_uint128_t)offset * fast->reciprocal) >> 64);
  if (SLAB_UNLIKELY(slab_state_load(state) != magazine->traits.free_state)) {
    return NULL;
  }
  if (object == NULL) {
    __builtin_unreachable();
  }
  slab_top_store(magazine, top - 1);
  slab_state_store(state, SLAB_STATE_LIVE);
  // Atomic lest the compiler make one store of two by way of vector registers.
  __atomic_store_n(&magazine->hot, object, __ATOMIC_RELAXED);
  __atomic_store_n(&magazine->hot_state, state, __ATOMIC_RELAXED);
  slab_count(&magazine->num_allocs, 1);
  return object;
}

// The usual cases of `slab_alloc`. NULL: it is none of them.
SLAB_INLINE void *slab_alloc_usual(const slab_cache_fast_t *fast) {
  slab_magazine_t *magazine = slab_magazine_of(fast);
  uint8_t *state = magazine->hot_free_state;
  return state != NULL ? slab_alloc_hot(magazine, state)
                       : slab_alloc_any(fast, magazine);
}

SLAB_INLINE void *slab_alloc_inline(slab_cache_t *cache) {
  void *object =
      slab_alloc_usual((const slab_cache_fast_t *)(const void *)cache);
  return SLAB_LIKELY(object != NULL) ? object : slab_alloc_slow(cache);
}

// Frees the object that was allocated last. False: not the usual case.
SLAB_INLINE bool slab_free_hot(slab_magazine_t *magazine) {
  // NULL: it is the magazine of threads without one, and so is `object`.
  uint8_t *state = magazine->hot_state;
  if (SLAB_UNLIKELY(state == NULL) ||
      SLAB_UNLIKELY(slab_state_load(state) != SLAB_STATE_LIVE)) {
    return false;
  }
  slab_state_store(state, magazine->traits.free_state);
  magazine->hot_free_state = state;
  return true;
}

// Pushes an object on the stack. False: not the usual case.
SLAB_INLINE bool slab_free_any(const slab_cache_fast_t *fast,
                               slab_magazine_t *magazine, void *object) {
  uint8_t *state;
  if (SLAB_UNLIKELY(!slab_find_state(fast, (uintptr_t)object, &state)) ||
      SLAB_UNLIKELY(slab_state_load(state) != SLAB_STATE_LIVE)) {
    return false;
  }
  void **top = slab_top_load(magazine);
  if (SLAB_UNLIKELY(top >= magazine->limit)) {
    return false;
  }
  slab_state_store(state, magazine->traits.free_state);
  *top = object;
  slab_top_store(magazine, top + 1);
  return true;
}

// The usual cases of `slab_free`. False: it is none of them.
SLAB_INLINE bool slab_free_usual(const slab_cache_fast_t *fast, void *object) {
  slab_magazine_t *magazine = slab_magazine_of(fast);
  return magazine->hot == object ? slab_free_hot(magazine)
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
