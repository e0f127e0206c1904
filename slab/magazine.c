// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What a thread does by itself: magazines, and the states that make every free
// exact without an atomic instruction in the usual case.
//
// A magazine is a thread's stack of free objects of one cache. Pop and push
// are the whole of alloc and free (slab_inline.h); this unit fills a magazine
// that is empty, from the depot or from slabs, and empties one that is full.
// It starts with 8 slots. Full, it doubles up to 512 slots, and above that
// only if it was also empty since it last grew: a thread that frees what others
// allocate gains nothing by more, one that does both keeps all of its working
// set, up to 1 MiB of objects. A refill asks for 1, 2, 4... objects, so a
// thread that needs one has one.
//
//   | object | object | ... |        |        |
//   ^ bottom                ^ top             ^ limit
//
// Beside the stack there is the hot object, the one that the thread allocated
// last: programs often free it next. Then it stays hot and becomes free, and
// the next alloc takes it; both know where its state is, and neither moves the
// top, on which they would wait for each other.
//
// The hard problem is a free by two threads at once, without an atomic
// instruction in every free. A cached object's state says in which magazine it
// is: each has a tag of its own.
//
//   t and r, free X            t, alloc
//   F1 load: LIVE?             A1 pop X; load: CACHED t?
//   F2 store CACHED t (or r)   A2 store LIVE
//   F3 push X
//
// If both load LIVE before either stores, both push X. But only one state was
// stored last, say CACHED t. Whatever r does with its slot, alloc or flush, it
// expects CACHED r there, and dies; also if t's share went back with its slab:
// in the range states stay, and outside of it there is no slab then. Between
// the two only a legal free by r could put that back, and then r has X in two
// slots, of which the second one finds LIVE, or t's state. So the mistake is
// found before X is in two hands, and at thread exit and destroy at the latest,
// since these flush. state_model_test.cc tries all interleavings. (A thread may
// also be held up between F1 and F2 for so long that X was freed and handed out
// again. Its F2 is then a free of a live object, which no allocator can tell
// from a right one.)
//
// Objects in the depot have the state SHARED, and so do those of magazines that
// came when all 126 tags of the cache were taken: their states change by
// compare and swap, and to their fast paths they are empty of objects, which
// have another state, and full.
//
// Objects outside of the cache's range (table.c) go through the same stacks,
// but by the slow path.
//
// Without a magazine (no memory for one, more than 4,095 caches, a buffer's
// second thread, SLAB_NO_MAGAZINES) each call goes to the slabs.

#include "slab/slab_internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

enum {
  EAGER_SLOTS = 512,
  BATCH_MAX_LOG2 = 8,
  CHUNK_MAX = SLAB_FLUSH_MAX,
};

static_assert(offsetof(slab_magazine_t, cache) == 64, "a line for fast paths");
static_assert(SLAB_MAGAZINE_MIN_SLOTS * sizeof(void *) == 64,
              "the first slots are the smallest piece of metadata");
static_assert(sizeof(slab_magazine_t) == 128, "a magazine is two lines");
static_assert(SLAB_STATE_CACHED + SLAB_TAG_MAX < SLAB_STATE_SHARED,
              "tags have states of their own");

static size_t min_size(size_t a, size_t b) {
  return a < b ? a : b;
}

uint8_t slab_magazine_state(const slab_magazine_t *magazine) {
  return magazine->traits.is_shared ? SLAB_STATE_SHARED
                                    : magazine->traits.free_state;
}

static size_t num_slots(const slab_magazine_t *magazine) {
  return (size_t)(magazine->end - magazine->bottom);
}

// The hot object is one that no caller can name, with a state that no object
// has.
static void forget_hot(slab_magazine_t *magazine) {
  magazine->hot = magazine;
  magazine->hot_state = &magazine->traits.no_state;
}

uint8_t *slab_magazine_change(const slab_magazine_t *magazine, void *object,
                              uint8_t to) {
  slab_cache_t *cache = magazine->cache;
  uint8_t from = slab_magazine_state(magazine);
  uint8_t *state = slab_state_at(cache, (uintptr_t)object);
  if (state == NULL) {
    slab_die_twice(cache, object, "slab_free");  // Its slab is gone.
  }
  if (!magazine->traits.is_shared) {
    if (slab_state_load(state) != from) {
      slab_die_twice(cache, object, "slab_free");
    }
    slab_state_store(state, to);
  } else if (!__atomic_compare_exchange_n(state, &from, to, false,
                                          __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    slab_die_twice(cache, object, "slab_free");
  }
  return state;
}

// ---- slots ----

// There is always room for the two words of dropped ones.
static size_t slots_bytes(size_t count) {
  return (count < 2 ? 2 : count) * sizeof(void *);
}

static void **slots_alloc(slab_cache_t *cache, size_t count) {
  void **slots;
  if (cache->has_buffer) {
    pthread_mutex_lock(&cache->lock);
    slots = cache->buffer_slots_taken ? NULL : cache->buffer_slots;
    cache->buffer_slots_taken = true;
    pthread_mutex_unlock(&cache->lock);
  } else {
    slots = slab_metadata_alloc(cache, slots_bytes(count));
  }
  return slots;
}

static void slots_free(slab_cache_t *cache, void **slots, size_t count) {
  if (!cache->has_buffer) {
    slab_metadata_free(cache, slots, slots_bytes(count));
    return;
  }
  pthread_mutex_lock(&cache->lock);
  cache->buffer_slots_taken = false;
  pthread_mutex_unlock(&cache->lock);
}

// The process's lock is held, or this is a handler of fork, and the source has
// locks of its own: it gets them later.
static void slots_drop(slab_cache_t *cache, void **slots, size_t count) {
  if (!cache->has_source) {
    slots_free(cache, slots, count);
    return;
  }
  pthread_mutex_lock(&cache->lock);
  slots[0] = cache->dropped_slots;
  slots[1] = (void *)count;
  cache->dropped_slots = slots;
  pthread_mutex_unlock(&cache->lock);
}

void slab_free_dropped_slots(slab_cache_t *cache) {
  pthread_mutex_lock(&cache->lock);
  void **slots = cache->dropped_slots;
  cache->dropped_slots = NULL;
  pthread_mutex_unlock(&cache->lock);
  while (slots != NULL) {
    void **next = slots[0];
    slots_free(cache, slots, (size_t)slots[1]);
    slots = next;
  }
}

static void set_slots(slab_magazine_t *magazine, void **slots, size_t count,
                      size_t used) {
  // Together under the lock, so that fork finds them whole.
  pthread_mutex_lock(&magazine->cache->lock);
  magazine->bottom = slots;
  magazine->end = slots + count;
  magazine->limit = magazine->traits.is_shared ? slots : slots + count;
  slab_top_store(magazine, slots + used);
  pthread_mutex_unlock(&magazine->cache->lock);
}

// Makes the magazine `count` slots large; false: no memory, or no smaller than
// that.
static bool grow(slab_magazine_t *magazine, size_t count) {
  slab_cache_t *cache = magazine->cache;
  size_t old_count = num_slots(magazine);
  count = min_size(count, cache->max_slots);
  if (cache->has_buffer || count <= old_count) {
    return false;
  }
  void **slots = slots_alloc(cache, count);
  if (slots == NULL) {
    return false;
  }
  void **old = magazine->bottom;
  size_t used = (size_t)(slab_top_load(magazine) - old);
  memcpy(slots, old, used * sizeof(*slots));
  set_slots(magazine, slots, count, used);
  slots_free(cache, old, old_count);
  magazine->refills_at_growth = magazine->num_refills;
  return true;
}

// ---- setting up ----

// Process's lock held.
static uint8_t take_tag(slab_cache_t *cache) {
  for (uint8_t tag = SLAB_TAG_MIN; tag <= SLAB_TAG_MAX; ++tag) {
    uint64_t bit = UINT64_C(1) << (tag % 64);
    if ((cache->tags[tag / 64] & bit) == 0) {
      cache->tags[tag / 64] |= bit;
      return tag;
    }
  }
  return SLAB_TAG_NONE;
}

static bool set_up(slab_cache_t *cache, slab_magazine_t *magazine) {
  slab_free_dropped_slots(cache);
  size_t count = cache->has_buffer
                     ? cache->max_slots
                     : min_size(SLAB_MAGAZINE_MIN_SLOTS, cache->max_slots);
  void **slots = slots_alloc(cache, count);
  if (slots == NULL) {
    return false;
  }
  slab_process_lock();
  uint8_t tag = take_tag(cache);
  magazine->traits.is_shared = tag == SLAB_TAG_NONE;
  magazine->traits.free_state = magazine->traits.is_shared
                                    ? SLAB_STATE_NEVER
                                    : (uint8_t)(SLAB_STATE_CACHED + tag);
  magazine->cache = cache;
  forget_hot(magazine);
  set_slots(magazine, slots, count, 0);
  magazine->generation = __atomic_load_n(&cache->generation, __ATOMIC_RELAXED);
  slab_process_unlock();
  return true;
}

slab_magazine_t *slab_magazine_get(slab_cache_t *cache) {
  if (cache->magazine_id == 0 ||
      (!slab_thread_exists() && !slab_thread_create())) {
    return NULL;
  }
  slab_magazine_t *magazine = slab_magazine_of(&cache->fast);
  if (magazine->cache == NULL && !set_up(cache, magazine)) {
    return NULL;
  }
  SLAB_ASSERT(magazine->cache == cache);
  return magazine;
}

// ---- giving up objects ----

// Makes `count` objects SHARED, and puts them into the depot; those for which
// it has no room after all, into the slabs.
static void share(slab_magazine_t *magazine, void *const *objects,
                  size_t count) {
  for (size_t i = 0; i < count; ++i) {
    slab_magazine_change(magazine, objects[i], SLAB_STATE_SHARED);
  }
  size_t put = slab_depot_put(magazine->cache, objects, count);
  if (put != count) {
    slab_put_all(magazine->cache, objects + put, count - put,
                 SLAB_STATE_SHARED);
  }
}

// Gives up `count` objects, to the depot if it may and there is room, otherwise
// to the slabs. `top` moves last: who else would look at it meanwhile, the
// child of a fork, goes by the states alone.
static void flush(slab_magazine_t *magazine, size_t count, bool to_depot) {
  slab_cache_t *cache = magazine->cache;
  while (count != 0) {
    size_t chunk = min_size(count, CHUNK_MAX);
    void **objects = slab_top_load(magazine) - chunk;
    size_t room = to_depot ? slab_depot_room(cache) : 0;
    size_t shared = min_size(chunk, room);
    share(magazine, objects + chunk - shared, shared);
    slab_put_all(cache, objects, chunk - shared, slab_magazine_state(magazine));
    slab_top_store(magazine, slab_top_load(magazine) - chunk);
    count -= chunk;
  }
}

// Gives up all objects.
static void flush_all(slab_magazine_t *magazine) {
  flush(magazine, (size_t)(slab_top_load(magazine) - magazine->bottom), false);
  if (magazine->hot_free_state != NULL) {
    *magazine->bottom = magazine->hot;
    slab_top_store(magazine, magazine->bottom + 1);
    magazine->hot_free_state = NULL;
    flush(magazine, 1, false);
  }
  forget_hot(magazine);
}

// Gives all up if a reap asked for it.
static void heed_reap(slab_magazine_t *magazine) {
  uint32_t generation =
      __atomic_load_n(&magazine->cache->generation, __ATOMIC_RELAXED);
  if (magazine->generation != generation) {
    magazine->generation = generation;
    flush_all(magazine);
    slab_release_excess(magazine->cache);
  }
}

static void note(uint64_t *number) {
  __atomic_store_n(number, *number + 1, __ATOMIC_RELAXED);
}

void slab_magazine_make_room(slab_magazine_t *magazine) {
  heed_reap(magazine);
  size_t count = num_slots(magazine);
  bool was_empty = magazine->num_refills != magazine->refills_at_growth;
  if (slab_top_load(magazine) != magazine->end ||
      ((count < EAGER_SLOTS || was_empty) && grow(magazine, 2 * count + 1))) {
    return;
  }
  flush(magazine, min_size(count - count / 2, SLAB_FLUSH_MAX), true);
  note(&magazine->num_flushes);
  slab_release_excess(magazine->cache);
}

void slab_magazine_abandon(slab_magazine_t *magazine) {
  slab_cache_t *cache = magazine->cache;
  if (!magazine->traits.is_shared) {
    uint8_t tag = (uint8_t)(magazine->traits.free_state - SLAB_STATE_CACHED);
    cache->tags[tag / 64] &= ~(UINT64_C(1) << (tag % 64));
  }
  pthread_mutex_lock(&cache->lock);
  cache->num_allocs_before += magazine->num_allocs;
  cache->num_refills_before += magazine->num_refills;
  cache->num_flushes_before += magazine->num_flushes;
  pthread_mutex_unlock(&cache->lock);
  slots_drop(cache, magazine->bottom, num_slots(magazine));
  memset(magazine, 0, sizeof(*magazine));
}

void slab_magazine_drain(slab_magazine_t *magazine) {
  flush_all(magazine);
  slab_magazine_abandon(magazine);
}

// ---- getting objects ----

// Takes up to `count` objects out of the depot, to the slots at the top.
static size_t take_from_depot(slab_magazine_t *magazine, size_t count) {
  slab_cache_t *cache = magazine->cache;
  void **top = slab_top_load(magazine);
  uint8_t *states[CHUNK_MAX];
  count = slab_depot_take(cache, top, min_size(count, CHUNK_MAX));
  // First all lines of states are asked for, to be written: another thread
  // wrote them last.
  for (size_t i = 0; i < count; ++i) {
    states[i] = slab_state_at(cache, (uintptr_t)top[i]);
    __builtin_prefetch(states[i], 1);
  }
  uint8_t to = slab_magazine_state(magazine);
  for (size_t i = 0; i < count; ++i) {
    if (states[i] == NULL || slab_state_load(states[i]) != SLAB_STATE_SHARED) {
      slab_die_twice(cache, top[i], "slab_free");
    }
    slab_state_store(states[i], to);
  }
  slab_top_store(magazine, top + count);
  return count;
}

// Returns how many objects a refill asks for.
static size_t next_batch(slab_magazine_t *magazine, size_t want) {
  size_t count = (size_t)1 << magazine->traits.batch_log2;
  if (magazine->traits.batch_log2 < BATCH_MAX_LOG2) {
    ++magazine->traits.batch_log2;
  }
  // A stack that has grown belongs to a thread that needs many.
  size_t share = num_slots(magazine) <= SLAB_MAGAZINE_MIN_SLOTS
                     ? 0
                     : min_size(num_slots(magazine) / 4, SLAB_FLUSH_MAX);
  count = count > share ? count : share;
  return count > want ? count : want;
}

void slab_magazine_ask_for_tag(slab_magazine_t *magazine) {
  slab_cache_t *cache = magazine->cache;
  slab_process_lock();
  uint8_t tag = take_tag(cache);
  if (tag != SLAB_TAG_NONE) {
    flush_all(magazine);  // While they are SHARED.
    magazine->traits.free_state = (uint8_t)(SLAB_STATE_CACHED + tag);
    magazine->traits.is_shared = false;
    set_slots(magazine, magazine->bottom, num_slots(magazine), 0);
  }
  slab_process_unlock();
}

bool slab_magazine_refill(slab_magazine_t *magazine, size_t want) {
  slab_cache_t *cache = magazine->cache;
  heed_reap(magazine);
  size_t count = next_batch(magazine, want);
  if (count > num_slots(magazine)) {
    grow(magazine, 2 * count + 1);
  }
  void **top = slab_top_load(magazine);
  count = min_size(count, (size_t)(magazine->end - top));
  size_t taken = take_from_depot(magazine, count);
  if (taken == 0) {
    // A constructor may fork, and the child is to know what is in hand.
    memset(top, 0, count * sizeof(*top));
    magazine->num_in_hand = (uint32_t)count;
    taken =
        slab_take_constructed(cache, slab_magazine_state(magazine), top, count);
    magazine->num_in_hand = 0;
    slab_top_store(magazine, top + taken);
  }
  if (taken == 0) {
    return false;
  }
  note(&magazine->num_refills);
  return true;
}
