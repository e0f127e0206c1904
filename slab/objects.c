// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Slabs: objects of one cache next to each other, and which of them are free.
//
//   memory                                                       memory_bytes
//   | color | front | object 0 | object 1 | ... | object n-1 | waste |
//                   ^ base
//   states, elsewhere:  one byte an object; those of the slabs of a range are
//                       next to each other, and begin at any byte
//
// A free object in a slab is one of two kinds. The first `num_used` objects
// have been out before: those of them that are back have the state FREE and
// are constructed. The others were never touched, nor were their pages; they
// go out in order of address, and only when no FREE one is left. There is no
// list of free objects: `slab_take` looks for the state FREE, eight objects at
// a time, from `first_free` on, and gets them in order of address.
//
// Invariants (slab_check_layer):
// 1. num_free = number of FREE states + (count - num_used).
// 2. States at num_used and above are UNUSED, others are not.
// 3. No FREE state is before first_free.
// 4. A slab is in the list that num_free says, and is found from its address.
//
// If two threads free one object at once, and one of them is held up until the
// other's share is back in the slab (magazine.c), the object counts twice in
// num_free, and no state shows it: the slab would look empty while one of its
// objects is live. So the states are counted before a slab goes back to the
// source and when the cache is destroyed, and a slab that has not as many as
// it says ends the process.
//
// Not done: moving objects, giving back part of a slab.

#include "slab/slab_internal.h"

#include <assert.h>

enum {
  WORD_BYTES = 8,
};

#define EACH_BYTE UINT64_C(0x0101010101010101)

static_assert(SLAB_STATE_FREE == 0x80, "free_in_word looks for it");

void *slab_object_at(const slab_cache_t *cache, const slab_t *slab,
                     size_t index) {
  return slab->base + index * cache->stride_bytes;
}

size_t slab_index_of(const slab_cache_t *cache, const slab_t *slab,
                     uintptr_t address) {
  // As slab_find_state does it; also right for addresses inside of objects.
  uintptr_t offset = address - (uintptr_t)slab->base;
  return (size_t)(((slab_uint128_t)offset * cache->fast.reciprocal) >> 64);
}

slab_t *slab_find(slab_cache_t *cache, uintptr_t address) {
  slab_t *slab = cache->buffer_slab;
  if (slab == NULL) {
    slab = slab_range_find(cache, address);
  }
  if (slab == NULL) {
    slab = slab_table_find(cache, address);
  }
  return slab;
}

uint8_t *slab_state_outside(slab_cache_t *cache, uintptr_t address) {
  const slab_t *slab = slab_table_find(cache, address);
  if (slab == NULL) {
    return NULL;
  }
  // As slab_find_state does it; of what is behind the last object, the stride
  // is too much.
  uintptr_t offset = address - (uintptr_t)slab->base;
  slab_uint128_t product = (slab_uint128_t)offset * cache->fast.reciprocal;
  size_t length_bytes = slab->memory_bytes - slab->offset_bytes;
  if ((uint64_t)product >= cache->fast.reciprocal || offset >= length_bytes ||
      length_bytes - offset < cache->stride_bytes) {
    return NULL;
  }
  return slab->states + (size_t)(product >> 64);
}

static void list_push(slab_cache_t *cache, slab_t *slab,
                      slab_list_kind_t kind) {
  slab_list_t *list = &cache->lists[kind];
  slab->list = (uint8_t)kind;
  slab->prev = NULL;
  slab->next = list->first;
  if (list->first != NULL) {
    list->first->prev = slab;
  }
  list->first = slab;
  ++list->count;
  if (kind == SLAB_LIST_EMPTY) {
    cache->empty_bytes += slab->memory_bytes;
  }
}

static void list_remove(slab_cache_t *cache, slab_t *slab) {
  slab_list_t *list = &cache->lists[slab->list];
  if (slab->prev == NULL) {
    list->first = slab->next;
  } else {
    slab->prev->next = slab->next;
  }
  if (slab->next != NULL) {
    slab->next->prev = slab->prev;
  }
  --list->count;
  if (slab->list == SLAB_LIST_EMPTY) {
    cache->empty_bytes -= slab->memory_bytes;
  }
}

static slab_list_kind_t list_for(const slab_t *slab) {
  if (slab->num_free == 0) {
    return SLAB_LIST_FULL;
  }
  return slab->num_free == slab->count ? SLAB_LIST_EMPTY : SLAB_LIST_PARTIAL;
}

// Moves a slab to the list where it belongs.
static void relist(slab_cache_t *cache, slab_t *slab) {
  slab_list_kind_t kind = list_for(slab);
  if (kind != slab->list) {
    list_remove(cache, slab);
    list_push(cache, slab, kind);
  }
}

void slab_list_add(slab_cache_t *cache, slab_t *slab) {
  list_push(cache, slab, list_for(slab));
  ++cache->num_slabs;
}

void slab_list_drop(slab_cache_t *cache, slab_t *slab) {
  list_remove(cache, slab);
  slab->list = SLAB_LIST_NONE;
  --cache->num_slabs;
}

// ---- taking and putting ----

// Returns the word of states at an address that is a multiple of a word. Some
// of them may be another slab's.
static uint64_t load_word(const uint8_t *states) {
  return __atomic_load_n((const uint64_t *)(const void *)states,
                         __ATOMIC_RELAXED);
}

// Returns how many states are in the word of `state` before it.
static size_t place_in_word(const uint8_t *state) {
  return (uintptr_t)state % WORD_BYTES;
}

// Returns a word with the top bit set of the lowest byte that is FREE, and
// possibly of bytes above; 0 if none is.
static uint64_t free_in_word(uint64_t word) {
  uint64_t differs = word ^ EACH_BYTE * SLAB_STATE_FREE;
  return (differs - EACH_BYTE) & ~differs & EACH_BYTE * 0x80;
}

// Returns the index of the first FREE object at or after `index`, `num_used`
// if there is none.
static size_t find_free(const slab_t *slab, size_t index) {
  while (index < slab->num_used) {
    const uint8_t *state = slab->states + index;
    size_t place = place_in_word(state);
    uint64_t found = free_in_word(load_word(state - place) >> 8 * place);
    if (found != 0) {
      index += (size_t)__builtin_ctzll(found) / 8;
      break;
    }
    index += WORD_BYTES - place;
  }
  return index < slab->num_used ? index : slab->num_used;
}

// The slab counts more free objects than there are.
SLAB_NORETURN static void die_miscounted(const slab_cache_t *cache,
                                         const slab_t *slab,
                                         const char *function) {
  slab_report_misuse(&(slab_report_t){.misuse = SLAB_MISUSE_MISCOUNTED,
                                      .function = function,
                                      .cache = cache,
                                      .ptr = slab->base});
}

static void verify_count(const slab_cache_t *cache, const slab_t *slab,
                         const char *function) {
  size_t num_free = slab->count - slab->num_used;
  for (size_t i = 0; i < slab->num_used;) {
    const uint8_t *state = slab->states + i;
    if (place_in_word(state) == 0 && slab->num_used - i >= WORD_BYTES &&
        load_word(state) == EACH_BYTE * SLAB_STATE_FREE) {
      num_free += WORD_BYTES;
      i += WORD_BYTES;
    } else {
      num_free += slab_state_load(state) == SLAB_STATE_FREE;
      ++i;
    }
  }
  if (num_free != slab->num_free) {
    die_miscounted(cache, slab, function);
  }
}

void slab_verify(slab_cache_t *cache, slab_t *slab, const char *function) {
  verify_count(cache, slab, function);
  if ((cache->flags & SLAB_DEBUG) != 0) {
    slab_debug_verify(cache, slab, function);
  }
}

// Fills in objects from `index` on.
static void fill_in(const slab_cache_t *cache, const slab_t *slab, size_t index,
                    void **out_objects, size_t count) {
  unsigned char *object = slab_object_at(cache, slab, index);
  for (size_t i = 0; i < count; ++i, object += cache->stride_bytes) {
    out_objects[i] = object;
  }
}

// Takes the FREE objects from `*index` to the end of that word of states, up to
// `count`; eight at once if all are: nobody else changes a FREE state. Returns
// how many, and where to go on.
static size_t take_word(slab_cache_t *cache, slab_t *slab, size_t *index,
                        uint8_t state, void **out_objects, size_t count) {
  uint8_t *first = slab->states + *index;
  size_t place = place_in_word(first);
  if (place == 0 && count >= WORD_BYTES &&
      slab->num_used - *index >= WORD_BYTES &&
      load_word(first) == EACH_BYTE * SLAB_STATE_FREE) {
    __atomic_store_n((uint64_t *)(void *)first, EACH_BYTE * state,
                     __ATOMIC_RELAXED);
    fill_in(cache, slab, *index, out_objects, WORD_BYTES);
    *index += WORD_BYTES;
    return WORD_BYTES;
  }
  size_t end = *index + WORD_BYTES - place;
  end = end < slab->num_used ? end : slab->num_used;
  size_t taken = 0;
  for (; *index < end && taken < count; ++*index) {
    if (slab_state_load(&slab->states[*index]) == SLAB_STATE_FREE) {
      slab_state_store(&slab->states[*index], state);
      fill_in(cache, slab, *index, &out_objects[taken++], 1);
    }
  }
  return taken;
}

// Takes up to `count` FREE objects of `slab`.
static size_t take_free(slab_cache_t *cache, slab_t *slab, uint8_t state,
                        void **out_objects, size_t count) {
  size_t num_free = slab->num_free - (slab->count - slab->num_used);
  if (count > num_free) {
    count = num_free;
  }
  size_t index = slab->first_free;
  for (size_t taken = 0; taken < count;) {
    index = find_free(slab, index);
    if (index == slab->num_used) {
      // Counted as free, but a thread has it as well.
      die_miscounted(cache, slab, "slab_alloc");
    }
    taken += take_word(cache, slab, &index, state, out_objects + taken,
                       count - taken);
  }
  slab->num_free -= (uint32_t)count;
  slab->first_free = count == num_free ? slab->num_used : (uint32_t)index;
  return count;
}

// Takes up to `count` objects of `slab` that never were out.
static size_t take_unused(slab_cache_t *cache, slab_t *slab, uint8_t state,
                          void **out_objects, size_t count) {
  if (count > slab->count - slab->num_used) {
    count = slab->count - slab->num_used;
  }
  fill_in(cache, slab, slab->num_used, out_objects, count);
  for (size_t i = 0; i < count; ++i) {
    uint8_t *unused = &slab->states[slab->num_used + i];
    if (slab_state_load(unused) != SLAB_STATE_UNUSED) {
      // By a thread that was held up in it until the slab was gone.
      slab_die_twice(cache, out_objects[i], "slab_alloc");
    }
    slab_state_store(unused, state);
  }
  if (slab->first_free == slab->num_used) {
    slab->first_free += (uint32_t)count;
  }
  slab->num_used += (uint32_t)count;
  slab->num_free -= (uint32_t)count;
  return count;
}

size_t slab_take(slab_cache_t *cache, uint8_t state, void **out_objects,
                 size_t count, size_t *out_num_unused) {
  size_t taken = 0;
  // A child of fork must not take it for constructed.
  uint8_t unused_state = cache->construct == NULL ? state : SLAB_STATE_RAW;
  *out_num_unused = 0;
  while (taken < count && *out_num_unused == 0) {
    slab_t *slab = cache->lists[SLAB_LIST_PARTIAL].first;
    if (slab == NULL) {
      slab = cache->lists[SLAB_LIST_EMPTY].first;
    }
    if (slab == NULL) {
      break;
    }
    taken += take_free(cache, slab, state, out_objects + taken, count - taken);
    *out_num_unused = take_unused(cache, slab, unused_state,
                                  out_objects + taken, count - taken);
    taken += *out_num_unused;
    relist(cache, slab);
  }
  return taken;
}

void slab_put(slab_cache_t *cache, slab_t *slab, size_t index) {
  if (slab->num_free == slab->count) {
    die_miscounted(cache, slab, "slab_free");
  }
  ++slab->num_free;
  if (index < slab->first_free) {
    slab->first_free = (uint32_t)index;
  }
  relist(cache, slab);
}

// Puts an object into its slab whose state should be `from`. Lock held.
static void put_one(slab_cache_t *cache, void *object, uint8_t from) {
  slab_t *slab = slab_find(cache, (uintptr_t)object);
  uint8_t *state = slab_state_at(cache, (uintptr_t)object);
  if (slab == NULL || state == NULL || slab_state_load(state) != from) {
    slab_die_twice(cache, object, "slab_free");
  }
  slab_state_store(state, SLAB_STATE_FREE);
  slab_put(cache, slab, (size_t)(state - slab->states));
}

void slab_put_all(slab_cache_t *cache, void *const *objects, size_t count,
                  uint8_t from) {
  pthread_mutex_lock(&cache->lock);
  for (size_t i = 0; i < count; ++i) {
    put_one(cache, objects[i], from);
  }
  pthread_mutex_unlock(&cache->lock);
}

// ---- checking ----

static const char *check_slab(slab_cache_t *cache, slab_t *slab) {
  size_t num_free = slab->count - slab->num_used;
  for (size_t i = 0; i < slab->count; ++i) {
    uint8_t state = slab_state_load(&slab->states[i]);
    if ((state == SLAB_STATE_UNUSED) != (i >= slab->num_used)) {
      return "slab: an object was used, or not, against its state";
    }
    num_free += state == SLAB_STATE_FREE;
    if (state == SLAB_STATE_FREE && i < slab->first_free) {
      return "slab: a free object before the first free one";
    }
  }
  if (num_free != slab->num_free) {
    return "slab: number of free objects";
  }
  // From its address; those between are found by the same arithmetic.
  for (size_t i = 0; i < slab->count;
       i += slab->count == 1 ? 1 : slab->count - 1) {
    uintptr_t object = (uintptr_t)slab_object_at(cache, slab, i);
    if (slab_find(cache, object) != slab ||
        slab_state_at(cache, object) != &slab->states[i]) {
      return "slab: an object is not found from its address";
    }
  }
  return (cache->flags & SLAB_DEBUG) == 0 ? NULL
                                          : slab_debug_check(cache, slab);
}

const char *slab_check_layer(slab_cache_t *cache) {
  size_t num_slabs = 0;
  size_t num_objects = 0;
  size_t bytes = 0;
  for (size_t kind = 0; kind < SLAB_LIST_COUNT; ++kind) {
    size_t count = 0;
    slab_t *prev = NULL;
    for (slab_t *slab = cache->lists[kind].first; slab != NULL;
         prev = slab, slab = slab->next) {
      if (slab->list != kind || slab->list != list_for(slab) ||
          slab->prev != prev) {
        return "slab: in a list that is not its own";
      }
      const char *broken = check_slab(cache, slab);
      if (broken != NULL) {
        return broken;
      }
      ++count;
      num_objects += slab->count;
      bytes += slab->memory_bytes;
    }
    if (count != cache->lists[kind].count) {
      return "slab: length of a list";
    }
    num_slabs += count;
  }
  if (num_slabs != cache->num_slabs || num_objects != cache->num_objects ||
      bytes != cache->slab_bytes) {
    return "slab: number of slabs, objects or bytes";
  }
  return slab_range_check(cache);
}
