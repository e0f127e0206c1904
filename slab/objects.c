// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Slabs: objects of one cache next to each other, and which of them are free.
//
//   memory                                                       memory_bytes
//   | color | front | object 0 | object 1 | ... | object n-1 | waste |
//                   ^ base
//   states, elsewhere:  one byte an object
//
// A free object in a slab is one of two kinds. The first `num_used` objects
// have been out before: those of them that are back have the state FREE and
// are constructed. The others were never touched, nor were their pages; they
// go out in order of address, and only when no FREE one is left. There is no
// list of free objects: `slab_take` looks for the state FREE, eight objects at
// a time, from `first_free` on, and gets them in order of address.
//
// Slabs grow with the cache, from 64 KiB to 2 MiB, about 1/8 of what there is;
// the large ones ask for huge pages, since random use of many objects costs a
// TLB miss an object otherwise. A slab starts at a granule. Colors shift the
// objects of successive slabs by a cache line each, as far as that costs no
// more than 1/64 of the slab, so that the first lines of large objects do not
// all compete for the same sets of the cache.
//
// Invariants (slab_check_layer):
// 1. num_free = number of FREE states + (count - num_used).
// 2. States at num_used and above are UNUSED, others are not.
// 3. No FREE state is before first_free.
// 4. A slab is in the list that num_free says; the table knows its granules.
//
// Empty slabs are kept, up to 4 MiB and a quarter of what is in use; beyond
// that the thread that emptied the last one gives them back. If they are wanted
// again soon, twice as much is kept from then on; if not, half.
//
// Not done: moving objects, giving back part of a slab.

#include "slab/slab_internal.h"

#include <assert.h>
#include <string.h>

enum {
  SLAB_BYTES_MAX = 1 << 21,
  HUGE_BYTES = 1 << 21,
  // A cache of this size has its next slabs as large as they get.
  LARGE_CACHE_BYTES = 8 << 20,
  OBJECTS_WANTED = 8,
  LINE_BYTES = 64,
  COLORS_MAX = 8,
  WASTE_SHIFT = 6,
  WORD_BYTES = 8,
  KEEP_BYTES_MIN = 4 << 20,
};

#define EACH_BYTE UINT64_C(0x0101010101010101)

static_assert(SLAB_STATE_FREE == 0x80, "free_in_word looks for it");

void *slab_object_at(const slab_cache_t *cache, const slab_t *slab,
                     size_t index) {
  return slab->base + index * cache->stride_bytes;
}

size_t slab_index_of(const slab_cache_t *cache, const slab_t *slab,
                     uintptr_t address) {
  return (address - (uintptr_t)slab->base) / cache->stride_bytes;
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

// ---- making and destroying ----

// What a slab in the making will be.
typedef struct plan {
  size_t bytes;
  size_t offset_bytes;
  size_t count;
  bool is_huge;
} plan_t;

// How large the next slab is. Lock held.
static size_t next_slab_bytes(const slab_cache_t *cache) {
  size_t bytes = SLAB_GRANULE_BYTES;
  bool is_large = cache->slab_bytes >= LARGE_CACHE_BYTES;
  while (bytes < SLAB_BYTES_MAX &&
         (is_large || bytes < OBJECTS_WANTED * cache->stride_bytes ||
          bytes <= cache->slab_bytes / 16)) {
    bytes *= 2;
  }
  size_t least = cache->front_bytes + cache->stride_bytes;
  return bytes >= least ? bytes : slab_round_up(least, SLAB_GRANULE_BYTES);
}

// Returns how far the objects of the next slab are shifted. Lock held.
static size_t next_color_bytes(slab_cache_t *cache, size_t slab_bytes) {
  size_t step =
      cache->align_bytes > LINE_BYTES ? cache->align_bytes : LINE_BYTES;
  size_t spare = (slab_bytes - cache->front_bytes) % cache->stride_bytes;
  size_t paid = slab_bytes >> WASTE_SHIFT;
  if (spare < paid && cache->stride_bytes <= paid) {
    spare = paid;
  }
  size_t count = spare / step + 1;
  return cache->next_color++ % (count < COLORS_MAX ? count : COLORS_MAX) * step;
}

// Bytes of the states and the records.
static size_t states_bytes(const slab_cache_t *cache, const slab_t *slab) {
  size_t bytes = slab_round_up(slab->count, WORD_BYTES);
  if ((cache->flags & SLAB_DEBUG) != 0) {
    bytes += slab->count * sizeof(slab_record_t);
  }
  return bytes;
}

static void free_parts(slab_cache_t *cache, slab_t *slab) {
  slab_metadata_free(cache, slab->states, states_bytes(cache, slab));
  if (slab->base != NULL) {
    slab_memory_free(cache, slab->base - slab->offset_bytes,
                     slab->memory_bytes);
  }
  slab_metadata_free(cache, slab, sizeof(*slab));
}

// Returns the memory of a slab, NULL if there is none.
static unsigned char *alloc_memory(slab_cache_t *cache, const plan_t *plan) {
  // No two slabs share a granule; a buffer has one slab.
  size_t align_bytes = cache->has_buffer ? LINE_BYTES : SLAB_GRANULE_BYTES;
  if (align_bytes < cache->align_bytes) {
    align_bytes = cache->align_bytes;
  }
  unsigned char *memory = slab_memory_alloc(
      cache, plan->bytes, plan->is_huge ? HUGE_BYTES : align_bytes);
  if (memory != NULL && plan->is_huge) {
    slab_kernel->advise_huge(memory, plan->bytes);
  }
  return memory;
}

// Allocates all of a slab. NULL if there is no memory.
static slab_t *slab_new(slab_cache_t *cache, const plan_t *plan) {
  slab_t *slab = slab_metadata_alloc(cache, sizeof(*slab));
  if (slab == NULL) {
    return NULL;
  }
  slab->memory_bytes = plan->bytes;
  slab->offset_bytes = (uint32_t)plan->offset_bytes;
  slab->count = (uint32_t)plan->count;
  slab->num_free = slab->count;
  slab->states = slab_metadata_alloc(cache, states_bytes(cache, slab));
  unsigned char *memory =
      slab->states == NULL ? NULL : alloc_memory(cache, plan);
  if (memory == NULL) {
    free_parts(cache, slab);
    return NULL;
  }
  slab->base = memory + plan->offset_bytes;
  if ((cache->flags & SLAB_DEBUG) != 0) {
    slab_debug_init_slab(cache, slab);
  }
  return slab;
}

// Makes sure that the table has room for `slab`. False: no memory.
static bool ensure_table(slab_cache_t *cache, const slab_t *slab) {
  size_t num_granules = slab_granule_count(cache, slab);
  for (;;) {
    pthread_mutex_lock(&cache->lock);
    slab_table_t *table = cache->fast.table;
    bool has_room = slab_table_has_room(table, num_granules);
    size_t size_log2 = slab_table_log2(table) + 1;
    size_t needed = table->num_used + num_granules;
    pthread_mutex_unlock(&cache->lock);
    if (has_room) {
      return true;
    }
    while ((size_t)1 << size_log2 < 2 * needed) {
      ++size_log2;
    }
    slab_table_t *bigger =
        size_log2 < SLAB_TABLE_SIZES
            ? slab_metadata_alloc(cache, slab_table_bytes(size_log2))
            : NULL;
    if (bigger == NULL) {
      return false;
    }
    slab_table_init(bigger, size_log2);
    pthread_mutex_lock(&cache->lock);
    bool is_new = cache->tables[size_log2] == NULL &&
                  size_log2 > slab_table_log2(cache->fast.table);
    if (is_new) {
      slab_table_replace(cache, bigger);
    }
    pthread_mutex_unlock(&cache->lock);
    if (!is_new) {  // Another thread was faster.
      slab_metadata_free(cache, bigger, slab_table_bytes(size_log2));
    }
  }
}

// Publishes `slab`; false if its table is full by now. Lock held.
static bool link_slab(slab_cache_t *cache, slab_t *slab) {
  if (!slab_table_has_room(cache->fast.table,
                           slab_granule_count(cache, slab))) {
    return false;
  }
  slab_table_insert(cache, cache->fast.table, slab);
  list_push(cache, slab, SLAB_LIST_EMPTY);
  ++cache->num_slabs;
  return true;
}

// A slab came from the source. If that makes up for most of what went back
// last, it should not have gone. Lock held.
static void learn_to_keep(slab_cache_t *cache, size_t bytes) {
  if (cache->released_bytes == 0) {
    return;
  }
  cache->regrown_bytes += bytes;
  if (cache->regrown_bytes >= cache->released_bytes / 2) {
    cache->keep_bytes *= 2;
    cache->released_bytes = 0;
    cache->regrown_bytes = 0;
  }
}

// Plans the next slab and reserves its objects; false: the limit is reached.
static bool plan_slab(slab_cache_t *cache, plan_t *out_plan) {
  pthread_mutex_lock(&cache->lock);
  size_t most = cache->max_objects - cache->num_objects;
  size_t bytes = next_slab_bytes(cache);
  size_t offset_bytes = cache->front_bytes + next_color_bytes(cache, bytes);
  size_t count = (bytes - offset_bytes) / cache->stride_bytes;
  if (count > most) {
    count = most;
    bytes = slab_round_up(offset_bytes + count * cache->stride_bytes,
                          SLAB_GRANULE_BYTES);
  }
  *out_plan = (plan_t){
      .bytes = bytes,
      .offset_bytes = offset_bytes,
      .count = count,
      .is_huge = bytes == HUGE_BYTES && !cache->has_source &&
                 cache->slab_bytes >= LARGE_CACHE_BYTES,
  };
  if (count != 0) {
    cache->num_objects += count;
    cache->slab_bytes += bytes;
    learn_to_keep(cache, bytes);
  }
  pthread_mutex_unlock(&cache->lock);
  return count != 0;
}

static void unplan_slab(slab_cache_t *cache, const plan_t *plan) {
  pthread_mutex_lock(&cache->lock);
  cache->num_objects -= plan->count;
  cache->slab_bytes -= plan->bytes;
  pthread_mutex_unlock(&cache->lock);
}

// Publishes `slab`, with a larger table if need be. False: no memory.
static bool publish(slab_cache_t *cache, slab_t *slab) {
  while (ensure_table(cache, slab)) {
    pthread_mutex_lock(&cache->lock);
    bool is_linked = link_slab(cache, slab);
    pthread_mutex_unlock(&cache->lock);
    if (is_linked) {
      return true;
    }
    // Others filled the table meanwhile.
  }
  return false;
}

bool slab_grow(slab_cache_t *cache) {
  plan_t plan;
  if (cache->has_buffer || !plan_slab(cache, &plan)) {
    return false;
  }
  slab_t *slab = slab_new(cache, &plan);
  if (slab != NULL && publish(cache, slab)) {
    return true;
  }
  if (slab != NULL) {
    free_parts(cache, slab);
  }
  unplan_slab(cache, &plan);
  return false;
}

bool slab_grow_in_buffer(slab_cache_t *cache) {
  slab_buffer_t *buffer = &cache->buffer;
  size_t align_bytes =
      cache->align_bytes > LINE_BYTES ? cache->align_bytes : LINE_BYTES;
  size_t left_bytes = (size_t)(buffer->end - buffer->next);
  size_t fixed_bytes =
      sizeof(slab_t) + cache->front_bytes + align_bytes + 4 * LINE_BYTES;
  size_t each_bytes = cache->stride_bytes + 1;
  if ((cache->flags & SLAB_DEBUG) != 0) {
    each_bytes += sizeof(slab_record_t);
  }
  if (cache->num_slabs != 0 || left_bytes < fixed_bytes + each_bytes) {
    return false;
  }
  size_t count = (left_bytes - fixed_bytes) / each_bytes;
  if (count > cache->max_objects) {
    count = cache->max_objects;
  }
  if (count > UINT32_MAX) {
    count = UINT32_MAX;
  }
  plan_t plan = {
      .bytes = cache->front_bytes + count * cache->stride_bytes,
      .offset_bytes = cache->front_bytes,
      .count = count,
  };
  slab_t *slab = slab_new(cache, &plan);
  if (slab == NULL || !link_slab(cache, slab)) {
    return false;
  }
  cache->num_objects = count;
  cache->slab_bytes = plan.bytes;
  return true;
}

slab_t *slab_unlink_empty(slab_cache_t *cache, size_t bytes) {
  slab_t *chain = NULL;
  size_t unlinked = 0;
  while (unlinked < bytes && cache->lists[SLAB_LIST_EMPTY].first != NULL) {
    slab_t *slab = cache->lists[SLAB_LIST_EMPTY].first;
    list_remove(cache, slab);
    slab_table_remove(cache, slab);
    --cache->num_slabs;
    cache->num_objects -= slab->count;
    cache->slab_bytes -= slab->memory_bytes;
    unlinked += slab->memory_bytes;
    slab->next = chain;
    chain = slab;
  }
  if (chain != NULL) {
    // Magazines may know states of these slabs, of objects that they gave out
    // last. Never 0, the epoch of a magazine that is not in use.
    uint64_t word = cache->fast.offset_and_epoch;
    uint32_t epoch = (uint32_t)(word >> 32) + 1;
    epoch += epoch == 0;
    __atomic_store_n(&cache->fast.offset_and_epoch,
                     (uint64_t)epoch << 32 | (uint32_t)word, __ATOMIC_RELAXED);
  }
  return chain;
}

size_t slab_destroy_chain(slab_cache_t *cache, slab_t *first) {
  size_t bytes = 0;
  while (first != NULL) {
    slab_t *slab = first;
    first = slab->next;
    for (size_t i = 0; cache->destruct != NULL && i < slab->num_used; ++i) {
      cache->destruct(slab_object_at(cache, slab, i), cache->context);
    }
    bytes += slab->memory_bytes;
    free_parts(cache, slab);
  }
  return bytes;
}

void slab_keep_least(slab_cache_t *cache) {
  cache->keep_bytes = KEEP_BYTES_MIN;
  cache->released_bytes = 0;
  cache->regrown_bytes = 0;
}

size_t slab_excess_bytes(slab_cache_t *cache) {
  if (cache->has_buffer) {
    return 0;
  }
  size_t used_bytes = cache->slab_bytes - cache->empty_bytes;
  size_t kept_bytes = cache->keep_bytes + used_bytes / 4;
  if (cache->empty_bytes <= kept_bytes) {
    return 0;
  }
  // What went back before is still gone: as much again was not needed.
  if (cache->released_bytes != 0 && cache->keep_bytes > KEEP_BYTES_MIN) {
    cache->keep_bytes /= 2;
  }
  size_t excess_bytes = cache->empty_bytes - kept_bytes / 2;
  cache->released_bytes = excess_bytes;
  return excess_bytes;
}

// ---- taking and putting ----

static uint64_t load_word(const slab_t *slab, size_t index) {
  return __atomic_load_n((const uint64_t *)(const void *)(slab->states + index),
                         __ATOMIC_RELAXED);
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
    size_t word_index = index & ~(size_t)(WORD_BYTES - 1);
    // Bytes before `index` become UNUSED.
    uint64_t word = load_word(slab, word_index) >>
                    8 * (index - word_index) << 8 * (index - word_index);
    uint64_t found = free_in_word(word);
    if (found != 0) {
      return word_index + (size_t)__builtin_ctzll(found) / 8;
    }
    index = word_index + WORD_BYTES;
  }
  return slab->num_used;
}

static void take_one(slab_cache_t *cache, slab_t *slab, size_t index,
                     uint8_t state, slab_slot_t *slot) {
  slot->object = slab_object_at(cache, slab, index);
  slot->state = slab->states + index;
  slab_state_store(slot->state, state);
  --slab->num_free;
}

// Takes up to `count` FREE objects of `slab`.
static size_t take_free(slab_cache_t *cache, slab_t *slab, uint8_t state,
                        slab_slot_t *slots, size_t count) {
  size_t num_free = slab->num_free - (slab->count - slab->num_used);
  if (count > num_free) {
    count = num_free;
  }
  size_t index = slab->first_free;
  for (size_t i = 0; i < count; ++i, ++index) {
    index = find_free(slab, index);
    if (index == slab->num_used) {
      // Counted as free, but a thread has it as well.
      slab_report_misuse(&(slab_report_t){.misuse = SLAB_MISUSE_TWICE,
                                          .function = "slab_alloc",
                                          .cache = cache});
    }
    take_one(cache, slab, index, state, &slots[i]);
  }
  slab->first_free = count == num_free ? slab->num_used : (uint32_t)index;
  return count;
}

size_t slab_take(slab_cache_t *cache, uint8_t state, slab_slot_t *slots,
                 size_t count, size_t *out_num_unused) {
  size_t taken = 0;
  *out_num_unused = 0;
  while (taken < count && *out_num_unused == 0) {
    slab_t *slab = cache->lists[SLAB_LIST_PARTIAL].first;
    if (slab == NULL) {
      slab = cache->lists[SLAB_LIST_EMPTY].first;
    }
    if (slab == NULL) {
      break;
    }
    taken += take_free(cache, slab, state, slots + taken, count - taken);
    while (taken < count && slab->num_used < slab->count) {
      if (slab->first_free == slab->num_used) {
        ++slab->first_free;
      }
      take_one(cache, slab, slab->num_used++, state, &slots[taken++]);
      ++*out_num_unused;
    }
    relist(cache, slab);
  }
  return taken;
}

void slab_put(slab_cache_t *cache, slab_t *slab, size_t index) {
  SLAB_ASSERT(slab->num_free < slab->count);
  ++slab->num_free;
  if (index < slab->first_free) {
    slab->first_free = (uint32_t)index;
  }
  relist(cache, slab);
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
  uintptr_t last = (uintptr_t)slab->base + slab_span_bytes(cache, slab) - 1;
  for (uintptr_t at = (uintptr_t)slab->base; at <= last;
       at = (at | (SLAB_GRANULE_BYTES - 1)) + 1) {
    slab_entry_t *entry = slab_table_find(cache->fast.table, at);
    if (entry == NULL || entry->slab != slab ||
        entry->base != (uintptr_t)slab->base || entry->states != slab->states) {
      return "slab: not in the table as it is";
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
  return NULL;
}
