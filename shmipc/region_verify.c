// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The checker: walks header, slots, records and the locks they note, and names
// what cannot be; block_verify.c has the heap's part,
// channel_verify.c the channels' that have a name.
//
// Others are at work meanwhile, and pass through states that look wrong from
// outside (a slot is locked before it says taken). None of these lasts, unless
// its process is stopped right there. So a finding counts only if it is still
// there, with the same value, after a few looks.

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "shmipc/block_internal.h"
#include "shmipc/channel_internal.h"
#include "shmipc/lock_word.h"
#include "shmipc/region_internal.h"

#define LOOKS 4
#define BETWEEN_LOOKS_NS 2000000

typedef struct verifier {
  shmipc_region_t *region;
  shmipc_problem_fn_t *report;
  void *context;
  int num_problems;
} verifier_t;

static uint32_t load(const uint32_t *word) {
  return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

int shmipc_examine(shmipc_region_t *region, shmipc_look_fn_t *look,
                   uint32_t index, shmipc_problem_fn_t *report, void *context) {
  const char *what = NULL;
  uint64_t offset = 0;
  uint64_t value = 0;
  for (int i = 0; i < LOOKS; i++) {
    uint64_t offset_now = 0;
    uint64_t value_now = 0;
    const char *now = look(region, index, &offset_now, &value_now);
    if (now == NULL || (i > 0 && (now != what || offset_now != offset ||
                                  value_now != value))) {
      return 0;
    }
    what = now;
    offset = offset_now;
    value = value_now;
    struct timespec pause = {.tv_sec = 0, .tv_nsec = BETWEEN_LOOKS_NS};
    nanosleep(&pause, NULL);
  }
  if (report != NULL) {
    report(context, what, offset, value);
  }
  return 1;
}

static void examine(verifier_t *verifier, shmipc_look_fn_t *look,
                    uint32_t index) {
  verifier->num_problems += shmipc_examine(verifier->region, look, index,
                                           verifier->report, verifier->context);
}

static const char *look_at_header(const shmipc_region_t *region, uint32_t index,
                                  uint64_t *out_offset, uint64_t *out_value) {
  (void)index;
  const shmipc_header_t *header = shmipc_header_of(region);
  *out_offset = offsetof(shmipc_header_t, hash);
  *out_value = header->hash;
  if (header->hash != region->header_hash) {
    return "header: not the hash that it had when we attached";
  }
  *out_value = shmipc_header_hash(header);
  if (*out_value != header->hash) {
    return "header: a field has changed";
  }
  *out_offset = offsetof(shmipc_header_t, ready);
  *out_value = load(&header->ready);
  if (*out_value != SHMIPC_READY) {
    return "header: not ready";
  }
  *out_offset = offsetof(shmipc_header_t, records_used);
  *out_value = load(&header->records_used);
  if (*out_value > region->num_records) {
    return "header: more records used than there are";
  }
  return NULL;
}

static const char *look_at_size(const shmipc_region_t *region, uint32_t index,
                                uint64_t *out_offset, uint64_t *out_value) {
  (void)index;
  struct stat file;
  *out_offset = 0;
  if (region->backend == SHMIPC_SYSV || fstat(region->fd, &file) < 0) {
    return NULL;
  }
  *out_value = (uint64_t)file.st_size;
  return *out_value < shmipc_mapped_bytes(region)
             ? "size: the file is shorter than what is mapped"
             : NULL;
}

static const char *look_at_slot(const shmipc_region_t *region, uint32_t index,
                                uint64_t *out_offset, uint64_t *out_value) {
  const shmipc_slot_t *slot = shmipc_slot_of(region, index);
  *out_offset = SHMIPC_HEADER_BYTES + index * sizeof(*slot);
  *out_value = load(&slot->word);
  bool is_taken = (*out_value & SHMIPC_SLOT_TAKEN) != 0;
  if (index == region->slot) {
    if (*out_value !=
        ((uint64_t)(region->slot_generation << 1) | SHMIPC_SLOT_TAKEN)) {
      return "slot: our own is not as we left it";
    }
    *out_offset += offsetof(shmipc_slot_t, pid);
    *out_value = load(&slot->pid);
    return *out_value != (uint32_t)getpid() ? "slot: our own has another pid"
                                            : NULL;
  }
  if (!is_taken && shmipc_presence_is_locked(region, index) == 1) {
    return "slot: free, but its process is alive";
  }
  return NULL;
}

// What a lock's word says that is noted in a record.
static const char *look_at_word(const shmipc_region_t *region, uint64_t offset,
                                uint64_t *out_offset, uint64_t *out_value) {
  uint32_t word = load((const uint32_t *)(const void *)(region->base + offset));
  *out_offset = offset;
  *out_value = word;
  uint32_t index = word & SHMIPC_WORD_INDEX;
  if (index == 0) {
    return (word & SHMIPC_WORD_OWNER) != 0 ? "lock: a generation without owner"
                                           : NULL;
  }
  if (index == SHMIPC_WORD_GIVEN_UP) {
    return word != SHMIPC_WORD_GIVEN_UP ? "lock: given up, with other bits"
                                        : NULL;
  }
  if (index > region->num_records) {
    return "lock: its owner is no record";
  }
  // The thread may have it or not, and may be gone.
  if (shmipc_word_is_biased(word)) {
    return NULL;
  }
  const shmipc_record_t *record = shmipc_record_of(region, index - 1);
  if (load(&record->owner) == 0 ||
      SHMIPC_WORD_OF(index - 1, load(&record->generation)) !=
          (word & SHMIPC_WORD_OWNER)) {
    return "lock: its owner is nobody";
  }
  for (int i = 0; i < SHMIPC_HOLDS_MAX; i++) {
    if (__atomic_load_n(&record->holds[i], __ATOMIC_ACQUIRE) ==
        (offset | SHMIPC_HOLD_LOCK)) {
      return NULL;
    }
  }
  return "lock: its owner has no note of it";
}

static const char *look_at_hold(const shmipc_region_t *region, uint64_t hold,
                                uint64_t *out_offset, uint64_t *out_value) {
  uint64_t kind = hold & SHMIPC_HOLD_KIND;
  uint64_t offset = hold & ~(uint64_t)SHMIPC_HOLD_KIND;
  if (kind != SHMIPC_HOLD_LOCK && kind != SHMIPC_HOLD_READ) {
    return "record: a note of no kind";
  }
  if (offset < region->data_offset ||
      offset > region->capacity_bytes - sizeof(uint32_t)) {
    return "record: a note of a lock outside of the data";
  }
  // Pages that we have not mapped are for others to check.
  if (offset + sizeof(uint32_t) > shmipc_mapped_bytes(region)) {
    return NULL;
  }
  return look_at_word(region, offset, out_offset, out_value);
}

static const char *look_at_record(const shmipc_region_t *region, uint32_t index,
                                  uint64_t *out_offset, uint64_t *out_value) {
  const shmipc_record_t *record = shmipc_record_of(region, index);
  uint64_t start = shmipc_records_offset(region->num_slots) +
                   (uint64_t)index * sizeof(*record);
  uint32_t owner = load(&record->owner);
  *out_offset = start;
  *out_value = owner;
  if (owner != 0) {
    uint32_t slot = SHMIPC_OWNER_SLOT(owner);
    if (slot >= region->num_slots) {
      return "record: its owner is no slot";
    }
    uint32_t word = load(&shmipc_slot_of(region, slot)->word);
    if ((word & SHMIPC_SLOT_TAKEN) == 0 ||
        SHMIPC_OWNER(slot, word >> 1) != owner) {
      return "record: its owner is not in its slot";
    }
    if (index >= load(&shmipc_header_of(region)->records_used)) {
      return "record: taken, but not among those used";
    }
  }
  for (int i = 0; i < SHMIPC_HOLDS_MAX; i++) {
    uint64_t hold = __atomic_load_n(&record->holds[i], __ATOMIC_ACQUIRE);
    if (hold == 0) {
      continue;
    }
    *out_offset =
        start + offsetof(shmipc_record_t, holds) + (uint64_t)i * sizeof(hold);
    *out_value = hold;
    if (owner == 0) {
      return "record: free, but with a note";
    }
    const char *what = look_at_hold(region, hold, out_offset, out_value);
    if (what != NULL) {
      return what;
    }
  }
  return NULL;
}

int shmipc_region_verify(shmipc_region_t *region, shmipc_problem_fn_t *report,
                         void *context) {
  if (region->serial == 0) {
    return region->status;
  }
  verifier_t verifier = {
      .region = region, .report = report, .context = context};
  examine(&verifier, look_at_header, 0);
  examine(&verifier, look_at_size, 0);
  for (uint32_t i = 0; i < region->num_slots; i++) {
    examine(&verifier, look_at_slot, i);
  }
  for (uint32_t i = 0; i < region->num_records; i++) {
    examine(&verifier, look_at_record, i);
  }
  if (region->heap_offset != 0) {
    examine(&verifier, shmipc_look_at_reclaimer, 0);
    for (uint32_t i = 0; i < region->heap_pages; i++) {
      examine(&verifier, shmipc_look_at_page, i);
    }
    for (uint32_t i = 0; i < SHMIPC_ROOTS_MAX; i++) {
      examine(&verifier, shmipc_look_at_root, i);
      examine(&verifier, shmipc_look_at_root_channel, i);
    }
  }
  return verifier.num_problems;
}
