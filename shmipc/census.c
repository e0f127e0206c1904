// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Whose pages and blocks belong to nobody any more.
//
// A thread that ended, or whose process was recovered, has another generation
// in its record: that costs two loads to see. Of a process that was not
// recovered yet only the kernel knows (presence.c).
//
// What was asked is kept with the slot's word: the slot may be somebody else's
// by the next question. Only the answer "dead" is dangerous when it is old, and
// a slot's word never comes back to a dead one's.

#include <string.h>

#include "shmipc/block_internal.h"

void shmipc_census_begin(shmipc_census_t *census) {
  memset(census->words, 0, sizeof(census->words));
}

// Whether the process that has `word` in its slot, taken, is alive.
static bool ask(const shmipc_region_t *region, shmipc_census_t *census,
                uint32_t slot, uint32_t word) {
  if (slot == region->slot) {
    return true;
  }
  if (census == NULL) {
    return true;
  }
  if (census->words[slot] != word) {
    census->is_alive[slot] = shmipc_presence_is_locked(region, slot) != 0;
    census->words[slot] = word;
  }
  return census->is_alive[slot];
}

bool shmipc_head_is_alive(const shmipc_region_t *region,
                          shmipc_census_t *census, uint64_t head) {
  uint32_t index = SHMIPC_PAGE_INDEX(head);
  if (index >= region->num_records) {
    return false;
  }
  const shmipc_record_t *record = shmipc_record_of(region, index);
  // Acquire: pairs with the release of a record.
  uint32_t owner = __atomic_load_n(&record->owner, __ATOMIC_ACQUIRE);
  uint32_t generation = __atomic_load_n(&record->generation, __ATOMIC_ACQUIRE);
  uint32_t slot = SHMIPC_OWNER_SLOT(owner);
  if (generation != SHMIPC_PAGE_GENERATION(head) || owner == 0 ||
      slot >= region->num_slots) {
    return false;
  }
  uint32_t word =
      __atomic_load_n(&shmipc_slot_of(region, slot)->word, __ATOMIC_ACQUIRE);
  if ((word & SHMIPC_SLOT_TAKEN) == 0 ||
      SHMIPC_OWNER(slot, word >> 1) != owner) {
    return false;
  }
  return ask(region, census, slot, word);
}

bool shmipc_block_is_alive(const shmipc_region_t *region,
                           shmipc_census_t *census, uint32_t word) {
  uint32_t slot = SHMIPC_BLOCK_SLOT(word);
  if (slot >= region->num_slots) {
    return false;
  }
  uint32_t taken =
      __atomic_load_n(&shmipc_slot_of(region, slot)->word, __ATOMIC_ACQUIRE);
  if ((taken & SHMIPC_SLOT_TAKEN) == 0 ||
      ((taken >> 1) & SHMIPC_BLOCK_GENERATIONS) !=
          SHMIPC_BLOCK_GENERATION(word)) {
    return false;
  }
  return ask(region, census, slot, taken);
}
