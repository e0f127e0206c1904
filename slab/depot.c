// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The depot: a stack of free objects between the magazines of all threads.
//
// Magazines exchange many objects at once with it, under a lock that is held
// for one copy of pointers; so threads that pass objects to each other do not
// go through the slabs, whose lock is held longer. It holds at most 1 MiB of
// objects (and 16,384 of them), and what is above goes to the slabs, where it
// can become memory again. Its objects are constructed and have the state
// SHARED, which the magazine sets before it puts them here
// and verifies when it takes them out.
//
// The stack's memory appears with the first object and goes back when a reap
// finds the depot empty.

#include "slab/slab_internal.h"

#include <string.h>

enum {
  OBJECTS_MAX = 16384,
};

static size_t stack_bytes(const slab_depot_t *depot) {
  return depot->capacity * sizeof(*depot->objects);
}

int slab_depot_init(slab_cache_t *cache) {
  slab_depot_t *depot = &cache->depot;
  size_t capacity = SLAB_CACHED_BYTES_MAX / cache->stride_bytes;
  if (capacity > OBJECTS_MAX) {
    capacity = OBJECTS_MAX;
  }
  bool has_depot = cache->max_slots != 0 && !cache->has_buffer &&
                   cache->max_objects == SIZE_MAX;
  depot->capacity = has_depot ? capacity : 0;
  return pthread_mutex_init(&depot->lock, NULL);
}

// Makes sure that there is a stack. No lock held; false: no memory.
static bool ensure_stack(slab_cache_t *cache) {
  slab_depot_t *depot = &cache->depot;
  pthread_mutex_lock(&depot->lock);
  bool has_stack = depot->objects != NULL;
  pthread_mutex_unlock(&depot->lock);
  if (has_stack) {
    return true;
  }
  void **objects = slab_metadata_alloc(cache, stack_bytes(depot));
  if (objects == NULL) {
    return false;
  }
  pthread_mutex_lock(&depot->lock);
  if (depot->objects == NULL) {
    depot->objects = objects;
    objects = NULL;
  }
  pthread_mutex_unlock(&depot->lock);
  slab_metadata_free(cache, objects, stack_bytes(depot));
  return true;
}

size_t slab_depot_room(slab_cache_t *cache) {
  slab_depot_t *depot = &cache->depot;
  if (depot->capacity == 0 || !ensure_stack(cache)) {
    return 0;
  }
  pthread_mutex_lock(&depot->lock);
  size_t room = depot->capacity - depot->count;
  pthread_mutex_unlock(&depot->lock);
  return room;
}

size_t slab_depot_put(slab_cache_t *cache, void *const *objects, size_t count) {
  slab_depot_t *depot = &cache->depot;
  if (count == 0) {
    return 0;
  }
  pthread_mutex_lock(&depot->lock);
  size_t room = depot->objects == NULL ? 0 : depot->capacity - depot->count;
  if (count > room) {
    count = room;
  }
  if (count != 0) {
    memcpy(depot->objects + depot->count, objects, count * sizeof(*objects));
    depot->count += count;
    ++depot->num_exchanges;
  }
  pthread_mutex_unlock(&depot->lock);
  return count;
}

size_t slab_depot_take(slab_cache_t *cache, void **out_objects, size_t count) {
  slab_depot_t *depot = &cache->depot;
  if (depot->capacity == 0) {
    return 0;
  }
  pthread_mutex_lock(&depot->lock);
  if (count > depot->count) {
    count = depot->count;
  }
  if (count != 0) {
    depot->count -= count;
    memcpy(out_objects, depot->objects + depot->count,
           count * sizeof(*out_objects));
    ++depot->num_exchanges;
  }
  pthread_mutex_unlock(&depot->lock);
  return count;
}

void slab_depot_drain(slab_cache_t *cache) {
  void *objects[SLAB_FLUSH_MAX];
  size_t count;
  while ((count = slab_depot_take(cache, objects, SLAB_FLUSH_MAX)) != 0) {
    slab_put_all(cache, objects, count, SLAB_STATE_SHARED);
  }
}

void slab_depot_trim(slab_cache_t *cache) {
  slab_depot_t *depot = &cache->depot;
  void **objects = NULL;
  pthread_mutex_lock(&depot->lock);
  if (depot->count == 0) {
    objects = depot->objects;
    depot->objects = NULL;
  }
  pthread_mutex_unlock(&depot->lock);
  slab_metadata_free(cache, objects, stack_bytes(depot));
}
