// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The attachments of this process: a list, and what fork does to them.
//
// A child has the parent's descriptors, that is, the same open files, whose
// locks are what others take for the parent's life. So the child closes them
// before it does anything else, and holds nothing and is nobody until it opens
// the region anew. Its handles stay allocated for `close`.
//
// So between open(2) and the store of the descriptor in a handle that is in the
// list, no fork may happen (`shmipc_fork_block`).
//
// Locks: the list's; inside of it nothing but presence locks and the shared
// memory. fork takes it, so that the child finds the list whole.

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "shmipc/barrier.h"
#include "shmipc/region_internal.h"

// What a thread found last by an address; valid as long as `removals` stays.
typedef struct found {
  uintptr_t base;
  size_t reserved_bytes;
  shmipc_region_t *region;  // NULL: nothing.
  uint64_t removals;
} found_t;

static _Thread_local found_t last_found;
// Attachments that left the list. Written under lock, read without it.
static uint64_t removals;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static shmipc_region_t *first;  // Guarded by lock.
static uint64_t last_serial;    // Guarded by lock.
static int install_status;      // Written once, by `once`.
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void before_fork(void) {
  pthread_mutex_lock(&lock);
}

static void after_fork_in_parent(void) {
  pthread_mutex_unlock(&lock);
}

// Lock held.
static void note_removal(void) {
  // Relaxed: whoever asks for an address in the removed region is too late
  // anyway; only what the same thread did before, or what it was told of by
  // some synchronisation, must be seen.
  __atomic_store_n(&removals, removals + 1, __ATOMIC_RELAXED);
}

static void after_fork_in_child(void) {
  note_removal();
  while (first != NULL) {
    shmipc_region_t *region = first;
    first = region->next;
    region->next = NULL;
    region->previous = NULL;
    if (region->fd >= 0) {
      close(region->fd);
      region->fd = -1;
    }
    region->slot = UINT32_MAX;
    region->status = -ECHILD;
    region->serial = 0;
  }
  pthread_mutex_unlock(&lock);
}

static void install(void) {
  install_status =
      -pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

int shmipc_attachment_prepare(void) {
  pthread_once(&once, install);
  return install_status;
}

void shmipc_fork_block(void) {
  pthread_mutex_lock(&lock);
}

void shmipc_fork_unblock(void) {
  pthread_mutex_unlock(&lock);
}

void shmipc_attachment_add(shmipc_region_t *region) {
  assert(region->serial == 0);
  // Here and not with a thread's first lock: it takes milliseconds if there are
  // several threads.
  region->is_registered = shmipc_barrier_register();
  pthread_mutex_lock(&lock);
  region->serial = ++last_serial;
  region->next = first;
  region->previous = NULL;
  if (first != NULL) {
    first->previous = region;
  }
  first = region;
  pthread_mutex_unlock(&lock);
}

void shmipc_attachment_remove(shmipc_region_t *region) {
  pthread_mutex_lock(&lock);
  if (region->serial != 0) {
    if (region->previous != NULL) {
      region->previous->next = region->next;
    } else {
      first = region->next;
    }
    if (region->next != NULL) {
      region->next->previous = region->previous;
    }
    region->serial = 0;
    note_removal();
  }
  pthread_mutex_unlock(&lock);
}

// The attachments do not overlap.
static found_t find_lock_held(uintptr_t address) {
  found_t found = {.region = NULL};
  for (shmipc_region_t *region = first; region != NULL; region = region->next) {
    // Pairs with set_base in region.c.
    uintptr_t base =
        (uintptr_t)__atomic_load_n(&region->base, __ATOMIC_ACQUIRE);
    if (base != 0 && address - base < region->reserved_bytes) {
      found.base = base;
      found.reserved_bytes = region->reserved_bytes;
      found.region = region;
      found.removals = removals;
      break;
    }
  }
  return found;
}

shmipc_region_t *shmipc_region_containing(const void *pointer) {
  uintptr_t address = (uintptr_t)pointer;
  found_t *last = &last_found;
  if (last->region != NULL &&
      last->removals == __atomic_load_n(&removals, __ATOMIC_RELAXED) &&
      address - last->base < last->reserved_bytes) {
    return last->region;
  }
  pthread_mutex_lock(&lock);
  found_t found = find_lock_held(address);
  pthread_mutex_unlock(&lock);
  *last = found;
  return found.region;
}

bool shmipc_attachment_with(uint64_t serial,
                            void (*work)(shmipc_region_t *region,
                                         uint32_t argument),
                            uint32_t argument) {
  bool is_there = false;
  pthread_mutex_lock(&lock);
  for (shmipc_region_t *region = first; region != NULL && !is_there;
       region = region->next) {
    is_there = region->serial == serial;
    if (is_there && work != NULL) {
      work(region, argument);
    }
  }
  pthread_mutex_unlock(&lock);
  return is_there;
}
