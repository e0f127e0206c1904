// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Looking at a cache: walk, check, statistics. All of it is read off the
// states of the objects, under the cache's lock, so that slabs stay; states
// change meanwhile where other threads do not hold still.

#include "slab/slab_internal.h"

#include <string.h>

bool slab_walk(slab_cache_t *cache, slab_visit_t visit, void *context) {
  bool go_on = true;
  pthread_mutex_lock(&cache->lock);
  for (size_t list = 0; list < SLAB_LIST_COUNT; ++list) {
    for (slab_t *slab = cache->lists[list].first; slab != NULL && go_on;
         slab = slab->next) {
      for (size_t i = 0; i < slab->num_used && go_on; ++i) {
        if (slab_state_load(&slab->states[i]) == SLAB_STATE_LIVE) {
          go_on = visit(context, slab_object_at(cache, slab, i));
        }
      }
    }
  }
  pthread_mutex_unlock(&cache->lock);
  return go_on;
}

// ---- statistics ----

static void count_objects(slab_cache_t *cache, slab_stats_t *stats) {
  for (size_t list = 0; list < SLAB_LIST_COUNT; ++list) {
    for (slab_t *slab = cache->lists[list].first; slab != NULL;
         slab = slab->next) {
      for (size_t i = 0; i < slab->num_used; ++i) {
        uint8_t state = slab_state_load(&slab->states[i]);
        stats->num_live += state == SLAB_STATE_LIVE;
        stats->num_cached += state > SLAB_STATE_FREE || state == SLAB_STATE_RAW;
      }
      ++stats->num_slabs;
      stats->capacity += slab->count;
      stats->slab_bytes += slab->memory_bytes;
    }
  }
  stats->num_free = stats->capacity - stats->num_live - stats->num_cached;
}

static void add_magazine(void *context, slab_magazine_t *magazine) {
  slab_stats_t *stats = context;
  stats->num_allocs += __atomic_load_n(&magazine->num_allocs, __ATOMIC_RELAXED);
  stats->num_refills +=
      __atomic_load_n(&magazine->num_refills, __ATOMIC_RELAXED);
  stats->num_flushes +=
      __atomic_load_n(&magazine->num_flushes, __ATOMIC_RELAXED);
}

void slab_stats(slab_cache_t *cache, slab_stats_t *out_stats) {
  slab_stats_t stats = {
      .object_bytes = cache->object_bytes,
      .stride_bytes = cache->stride_bytes,
  };
  // The process's lock for the magazines alone: others want it too.
  slab_process_lock();
  slab_for_each_magazine(cache, add_magazine, &stats);
  pthread_mutex_lock(&cache->lock);
  stats.num_allocs += cache->num_allocs_before;
  stats.num_refills += cache->num_refills_before;
  stats.num_flushes += cache->num_flushes_before;
  slab_process_unlock();
  count_objects(cache, &stats);
  pthread_mutex_unlock(&cache->lock);
  pthread_mutex_lock(&cache->depot.lock);
  stats.num_depot_exchanges = cache->depot.num_exchanges;
  pthread_mutex_unlock(&cache->depot.lock);
  stats.waste_bytes = stats.slab_bytes - stats.capacity * stats.object_bytes;
  stats.metadata_bytes =
      __atomic_load_n(&cache->metadata_bytes, __ATOMIC_RELAXED);
  // A refill comes before the allocation that it is for.
  uint64_t missed = stats.num_refills < stats.num_allocs ? stats.num_refills
                                                         : stats.num_allocs;
  stats.hit_rate = stats.num_allocs == 0
                       ? 1.0
                       : 1.0 - (double)missed / (double)stats.num_allocs;
  *out_stats = stats;
}

// ---- checking ----

// How many objects are in the magazines and in the depot, by their states, and
// the sums of hashes of their addresses.
typedef struct census {
  slab_cache_t *cache;
  size_t counts[256];
  uint64_t sums[256];
  const char *broken;
} census_t;

static uint64_t hash_of(const void *object) {
  uint64_t hash = (uintptr_t)object * UINT64_C(0x9e3779b97f4a7c15);
  return (hash ^ hash >> 29) * UINT64_C(0xbf58476d1ce4e5b9);
}

static void check_slot(census_t *census, const void *object, uint8_t expected) {
  uint8_t *state = slab_state_at(census->cache, (uintptr_t)object);
  if (state == NULL || slab_state_load(state) != expected) {
    census->broken = "magazine: an object that is not in it by its state";
  }
  ++census->counts[expected];
  census->sums[expected] += hash_of(object);
}

static void check_magazine(void *context, slab_magazine_t *magazine) {
  census_t *census = context;
  void **top = slab_top_load(magazine);
  uint8_t expected = slab_magazine_state(magazine);
  if (top < magazine->bottom || top > magazine->end) {
    census->broken = "magazine: the top is outside";
    return;
  }
  if (!magazine->traits.is_shared && census->counts[expected] != 0) {
    census->broken = "magazine: two with one tag";
  }
  for (void **slot = magazine->bottom; slot < top; ++slot) {
    check_slot(census, *slot, expected);
  }
  if (magazine->hot_free_state != NULL) {
    check_slot(census, magazine->hot, expected);
    if (magazine->hot_free_state !=
        slab_state_at(census->cache, (uintptr_t)magazine->hot)) {
      census->broken = "magazine: the hot object's state is another one's";
    }
  }
}

static void take_census(slab_cache_t *cache, census_t *census) {
  slab_for_each_magazine(cache, check_magazine, census);
  pthread_mutex_lock(&cache->depot.lock);
  size_t count = cache->depot.count;
  pthread_mutex_unlock(&cache->depot.lock);
  if (count > cache->depot.capacity) {
    census->broken = "depot: too full";
  }
  // Without its lock, which comes after the cache's. Nobody is inside.
  for (size_t i = 0; census->broken == NULL && i < count; ++i) {
    check_slot(census, cache->depot.objects[i], SLAB_STATE_SHARED);
  }
}

// Every object that is cached by its state is in a magazine or in the depot.
static const char *compare(slab_cache_t *cache, census_t *census) {
  for (size_t list = 0; list < SLAB_LIST_COUNT; ++list) {
    for (slab_t *slab = cache->lists[list].first; slab != NULL;
         slab = slab->next) {
      for (size_t i = 0; i < slab->num_used; ++i) {
        uint8_t state = slab_state_load(&slab->states[i]);
        if (state > SLAB_STATE_FREE) {
          if (census->counts[state]-- == 0) {
            return "slab: an object that is cached by its state only";
          }
          census->sums[state] -= hash_of(slab_object_at(cache, slab, i));
        }
      }
    }
  }
  for (size_t i = 0; i < 256; ++i) {
    if (census->counts[i] != 0 || census->sums[i] != 0) {
      return "magazine: an object is in it twice";
    }
  }
  return NULL;
}

const char *slab_check(slab_cache_t *cache) {
  census_t census = {.cache = cache};
  slab_process_lock();
  take_census(cache, &census);
  slab_process_unlock();
  pthread_mutex_lock(&cache->lock);
  const char *broken = census.broken;
  if (broken == NULL) {
    broken = slab_check_layer(cache);
  }
  if (broken == NULL) {
    broken = compare(cache, &census);
  }
  pthread_mutex_unlock(&cache->lock);
  return broken;
}
