// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Slots, and what becomes of those of dead processes.
//
//   slot word     generation 31 | taken 1      presence lock
//   free          g               0            not held
//   taken         g               1            held, as long as the owner lives
//   dead          g               1            not held
//
// 1. Slots are taken and recovered under the gate, a lock that the kernel takes
//    from a process that dies. The presence lock is taken before the word is
//    stored, so taken and not held always means dead.
// 2. A thread's record is named in a lock's word only while the lock is in the
//    record's `holds`: it is noted there before the word is changed and taken
//    out after. So whoever looks through the records of a dead process finds
//    every lock that names it; one that is noted but names it not is ignored.
//    (But for words that are biased to it, lock_word.c: those that are not
//    noted are free. And but for one that it was unlocking when it was killed,
//    having cleared its note, and that another made its own meanwhile: whoever
//    waits for it sees that its owner is dead.)
// 3. A slot is free again only once its records are, and a record only once
//    nothing names it. Every step may be repeated, and none is the last word
//    before the word of the slot: a recoverer that is killed leaves a dead slot
//    with less in it. Two processes never recover at once (1), and a waiter
//    that takes a lock from a dead owner (lock_word.c) changes the same word
//    with a compare-and-swap from the dead owner's exact value.
//
// The alive are never harmed by what the region says: only the kernel's answer
// about a presence lock makes a slot dead.

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <time.h>
#include <unistd.h>

#include "shmipc/futex.h"
#include "shmipc/region_internal.h"

bool shmipc_record_is_alive(const shmipc_region_t *region, uint32_t owner) {
  uint32_t slot = SHMIPC_OWNER_SLOT(owner);
  if (owner == 0 || slot >= region->num_slots) {
    return false;
  }
  // Our own lock does not conflict with us.
  return slot == region->slot || shmipc_presence_is_locked(region, slot) != 0;
}

bool shmipc_owner_is_alive(const shmipc_region_t *region, uint32_t word) {
  uint32_t index = (word & SHMIPC_WORD_INDEX) - 1;
  if (index >= region->num_records) {
    return false;
  }
  const shmipc_record_t *record = shmipc_record_of(region, index);
  // Acquire: pairs with the release of a record. If it is free or another's by
  // now, the word that we were given has changed before.
  uint32_t owner = __atomic_load_n(&record->owner, __ATOMIC_ACQUIRE);
  uint32_t generation = __atomic_load_n(&record->generation, __ATOMIC_ACQUIRE);
  if (SHMIPC_WORD_OF(index, generation) != (word & SHMIPC_WORD_OWNER)) {
    return false;
  }
  return shmipc_record_is_alive(region, owner);
}

// Makes a lock that names `id` free, with the mark that its owner died.
static void release_word(shmipc_region_t *region, uint64_t offset,
                         uint32_t id) {
  if (offset % sizeof(uint32_t) != 0 || offset < region->data_offset ||
      offset > region->capacity_bytes - sizeof(uint32_t)) {
    return;
  }
  if (offset + sizeof(uint32_t) > shmipc_mapped_bytes(region)) {
    // No thread of ours has such a lock, and of those that are recovered we
    // have mapped all: what is noted is nonsense.
    return;
  }
  uint32_t *word = (uint32_t *)(void *)(region->base + offset);
  uint32_t seen = __atomic_load_n(word, __ATOMIC_RELAXED);
  while ((seen & SHMIPC_WORD_OWNER) == id) {
    uint32_t next =
        SHMIPC_WORD_SHARED | SHMIPC_WORD_DIED | (seen & SHMIPC_WORD_WAITERS);
    // Release: pairs with the acquire of the next owner.
    if (__atomic_compare_exchange_n(word, &seen, next, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_RELAXED)) {
      shmipc_futex_wake(word, INT32_MAX);
      return;
    }
  }
}

void shmipc_record_release(shmipc_region_t *region, uint32_t index) {
  assert(index < region->num_records);
  shmipc_record_t *record = shmipc_record_of(region, index);
  uint32_t generation = __atomic_load_n(&record->generation, __ATOMIC_RELAXED);
  uint32_t id = SHMIPC_WORD_OF(index, generation);
  for (int i = 0; i < SHMIPC_HOLDS_MAX; i++) {
    uint64_t hold = __atomic_load_n(&record->holds[i], __ATOMIC_RELAXED);
    if ((hold & SHMIPC_HOLD_KIND) == SHMIPC_HOLD_LOCK) {
      release_word(region, hold & ~(uint64_t)SHMIPC_HOLD_KIND, id);
    }
    // Reading ends with this store; a writer that waits for it looks again
    // within a slice. Sequentially consistent: see rwlock.c.
    if (hold != 0) {
      __atomic_store_n(&record->holds[i], 0, __ATOMIC_SEQ_CST);
    }
  }
  __atomic_store_n(&record->generation, generation + 1, __ATOMIC_RELEASE);
  __atomic_store_n(&record->owner, 0, __ATOMIC_RELEASE);
}

static void free_slot(shmipc_region_t *region, uint32_t index,
                      uint32_t generation) {
  uint32_t owner = SHMIPC_OWNER(index, generation);
  for (uint32_t i = 0; i < region->num_records; i++) {
    if (__atomic_load_n(&shmipc_record_of(region, i)->owner,
                        __ATOMIC_ACQUIRE) == owner) {
      shmipc_record_release(region, i);
    }
  }
  shmipc_slot_t *slot = shmipc_slot_of(region, index);
  __atomic_store_n(&slot->pid, 0, __ATOMIC_RELAXED);
  // Release: after all of the above.
  __atomic_store_n(&slot->word, (generation + 1) << 1, __ATOMIC_RELEASE);
}

int shmipc_slot_recover_dead(shmipc_region_t *region) {
  int num_recovered = 0;
  // Locks of the dead may be in pages that were added after we mapped ours.
  int status = shmipc_region_refresh(region);
  if (status < 0) {
    return status;
  }
  for (uint32_t i = 0; i < region->num_slots; i++) {
    uint32_t word =
        __atomic_load_n(&shmipc_slot_of(region, i)->word, __ATOMIC_ACQUIRE);
    if ((word & SHMIPC_SLOT_TAKEN) != 0 && i != region->slot &&
        shmipc_presence_is_locked(region, i) == 0) {
      free_slot(region, i, word >> 1);
      num_recovered++;
    }
  }
  return num_recovered;
}

// -EAGAIN if the slot is somebody else's.
static int take(shmipc_region_t *region, uint32_t index) {
  shmipc_slot_t *slot = shmipc_slot_of(region, index);
  uint32_t word = __atomic_load_n(&slot->word, __ATOMIC_ACQUIRE);
  if ((word & SHMIPC_SLOT_TAKEN) != 0) {
    return -EAGAIN;
  }
  int status = shmipc_presence_try_lock(region, index);
  if (status < 0) {
    return status;
  }
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  region->slot_generation = word >> 1;
  __atomic_store_n(&slot->pid, (uint32_t)getpid(), __ATOMIC_RELAXED);
  __atomic_store_n(&slot->attached_s, (uint64_t)now.tv_sec, __ATOMIC_RELAXED);
  // Release: pairs with the acquire loads above. From here on we have to be
  // recovered.
  __atomic_store_n(&slot->word, word | SHMIPC_SLOT_TAKEN, __ATOMIC_RELEASE);
  region->slot = index;
  return 0;
}

int shmipc_slot_take(shmipc_region_t *region) {
  assert(region->slot == UINT32_MAX && !region->read_only);
  int recovered = shmipc_slot_recover_dead(region);
  for (uint32_t i = 0; i < region->num_slots; i++) {
    int status = take(region, i);
    if (status != -EAGAIN) {
      return status;
    }
  }
  return recovered < 0 ? recovered : -EUSERS;
}

void shmipc_slot_give_up(shmipc_region_t *region) {
  if (region->slot == UINT32_MAX) {
    return;
  }
  uint32_t slot = region->slot;
  free_slot(region, slot, region->slot_generation);
  shmipc_presence_unlock(region, slot);
  region->slot = UINT32_MAX;
}
