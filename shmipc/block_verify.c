// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// The heap's part of the checker: every page is free, of one thread with blocks
// that are free or somebody's, or of one run; every root leads to a block.

#include <string.h>
#include <sys/stat.h>

#include "shmipc/block_internal.h"

// Whether a generation may have been given out: not after the present one.
static bool is_past(uint32_t now, uint32_t then, uint32_t mask) {
  return ((now - then) & mask) <= mask / 2;
}

static const char *look_at_thread(const shmipc_region_t *region,
                                  uint64_t head) {
  uint32_t index = SHMIPC_PAGE_INDEX(head);
  if (index >= region->num_records) {
    return "page: its thread is no record";
  }
  uint32_t now = __atomic_load_n(&shmipc_record_of(region, index)->generation,
                                 __ATOMIC_ACQUIRE);
  return is_past(now, SHMIPC_PAGE_GENERATION(head), UINT32_MAX)
             ? NULL
             : "page: its thread is yet to come";
}

static const char *look_at_owner(const shmipc_region_t *region, uint32_t word) {
  if (word == SHMIPC_BLOCK_FREE || word == SHMIPC_BLOCK_REGION) {
    return NULL;
  }
  uint32_t slot = SHMIPC_BLOCK_SLOT(word);
  if (slot >= region->num_slots) {
    return "block: its owner is no slot";
  }
  uint32_t taken =
      __atomic_load_n(&shmipc_slot_of(region, slot)->word, __ATOMIC_ACQUIRE);
  uint32_t now = (taken >> 1) & SHMIPC_BLOCK_GENERATIONS;
  uint32_t then = SHMIPC_BLOCK_GENERATION(word);
  if (!is_past(now, then, SHMIPC_BLOCK_GENERATIONS) ||
      (now == then && (taken & SHMIPC_SLOT_TAKEN) == 0)) {
    return "block: its owner is yet to come";
  }
  return NULL;
}

static const char *look_at_blocks(const shmipc_region_t *region, uint32_t page,
                                  uint32_t class_index, uint64_t *out_offset,
                                  uint64_t *out_value) {
  const uint32_t *words = shmipc_words_of(region, page, class_index);
  for (uint32_t i = 0; i < shmipc_classes[class_index].count; i++) {
    uint32_t word = shmipc_word_load(&words[i]);
    const char *what = look_at_owner(region, word);
    if (what != NULL) {
      *out_offset = (uint64_t)((const unsigned char *)&words[i] - region->base);
      *out_value = word;
      return what;
    }
  }
  return NULL;
}

static const char *look_at_run(const shmipc_region_t *region, uint32_t page,
                               uint64_t *out_offset, uint64_t *out_value) {
  const uint32_t *word = shmipc_table_words_of(region, page);
  uint32_t owner = shmipc_word_load(word);
  const char *what = owner == SHMIPC_BLOCK_FREE ? "block: large, but nobody's"
                                                : look_at_owner(region, owner);
  if (what != NULL) {
    *out_offset = (uint64_t)((const unsigned char *)word - region->base);
    *out_value = owner;
    return what;
  }
  const uint32_t *length = &shmipc_note_of(region, page)->num_pages;
  uint32_t num_pages = __atomic_load_n(length, __ATOMIC_RELAXED);
  *out_offset = (uint64_t)((const unsigned char *)length - region->base);
  *out_value = num_pages;
  return num_pages == 0 || num_pages > shmipc_run_extent(region, page)
             ? "block: longer than its run of pages"
             : NULL;
}

// Whether the region does not have that page yet. (Its end, as the kernel says
// it, is never before what it was.)
static bool is_beyond_end(const shmipc_region_t *region, uint32_t index) {
  struct stat file;
  if (index < shmipc_pages_mapped(region)) {
    return false;
  }
  uint64_t end =
      region->pages_offset + ((uint64_t)(index + 1) << SHMIPC_PAGE_SHIFT);
  return region->backend == SHMIPC_SYSV ||
         (fstat(region->fd, &file) == 0 && (uint64_t)file.st_size < end);
}

const char *shmipc_look_at_page(const shmipc_region_t *region, uint32_t index,
                                uint64_t *out_offset, uint64_t *out_value) {
  uint64_t head = shmipc_head_load(region, index);
  uint32_t kind = shmipc_kind_of(head);
  *out_offset =
      (uint64_t)((unsigned char *)shmipc_head_of(region, index) - region->base);
  *out_value = head;
  if (head == SHMIPC_PAGE_FREE) {
    return NULL;
  }
  if (is_beyond_end(region, index)) {
    return "page: not free, but beyond the end";
  }
  if (head == SHMIPC_PAGE_MORE) {
    uint32_t before =
        index > 0 ? shmipc_kind_of(shmipc_head_load(region, index - 1)) : 0;
    return before >= SHMIPC_PAGE_PREPARING ? NULL
                                           : "page: continues what is no run";
  }
  if (kind == SHMIPC_PAGE_LARGE) {
    // After the head: a tag is counted before it is used.
    uint64_t num_runs = __atomic_load_n(&shmipc_heap_head_of(region)->num_runs,
                                        __ATOMIC_ACQUIRE);
    return SHMIPC_PAGE_TAG(head) >= num_runs
               ? "page: its run is yet to come"
               : look_at_run(region, index, out_offset, out_value);
  }
  if (kind != SHMIPC_PAGE_PREPARING && kind != SHMIPC_PAGE_FREEING &&
      !shmipc_is_class(kind)) {
    return "page: of no kind";
  }
  if ((head & SHMIPC_PAGE_UNUSED) != 0) {
    return "page: of a kind, with other bits";
  }
  const char *what = look_at_thread(region, head);
  // Pages that we have not mapped are for others to check.
  if (what != NULL || !shmipc_is_class(kind) ||
      index >= shmipc_pages_mapped(region)) {
    return what;
  }
  return look_at_blocks(region, index, kind - 1, out_offset, out_value);
}

static void copy_name(const shmipc_root_t *root, char *name) {
  for (size_t i = 0; i < sizeof(root->name); i++) {
    name[i] = __atomic_load_n(&root->name[i], __ATOMIC_RELAXED);
  }
}

const char *shmipc_look_at_root(const shmipc_region_t *region, uint32_t index,
                                uint64_t *out_offset, uint64_t *out_value) {
  const shmipc_root_t *root = shmipc_root_of(region, index);
  *out_offset = (uint64_t)((const unsigned char *)root - region->base);
  *out_value = __atomic_load_n(&root->state, __ATOMIC_ACQUIRE);
  if ((*out_value & 1) == 0) {
    return NULL;
  }
  char name[sizeof(root->name)];
  copy_name(root, name);
  if (memchr(name, '\0', sizeof(name)) == NULL || name[0] == '\0') {
    return "root: its name has no end, or no beginning";
  }
  for (uint32_t i = 0; i < index; i++) {
    const shmipc_root_t *other = shmipc_root_of(region, i);
    char others[sizeof(other->name)];
    copy_name(other, others);
    if ((__atomic_load_n(&other->state, __ATOMIC_ACQUIRE) & 1) != 0 &&
        strncmp(others, name, sizeof(name)) == 0) {
      return "root: another one has its name";
    }
  }
  uint64_t offset = __atomic_load_n(&root->ref, __ATOMIC_RELAXED);
  *out_offset += offsetof(shmipc_root_t, ref);
  *out_value = offset;
  // Unmapped pages, as above. What is below is no block either.
  if (offset >= shmipc_mapped_bytes(region)) {
    return offset < region->capacity_bytes ? NULL
                                           : "root: leads out of the region";
  }
  shmipc_place_t place;
  uint32_t owner = SHMIPC_BLOCK_FREE;
  if (shmipc_place_find(region, region->base + offset, &place) == 0) {
    owner = shmipc_word_load(place.word);
  }
  if (owner == SHMIPC_BLOCK_FREE) {
    return "root: leads to no live block";
  }
  // A change that is under way, or was left half done, is none.
  shmipc_census_t census;
  shmipc_census_begin(&census);
  return owner != SHMIPC_BLOCK_REGION && shmipc_roots_owner(region) == 0 &&
                 shmipc_block_is_alive(region, &census, owner)
             ? "root: its block is a process's"
             : NULL;
}

const char *shmipc_look_at_reclaimer(const shmipc_region_t *region,
                                     uint32_t index, uint64_t *out_offset,
                                     uint64_t *out_value) {
  (void)index;
  const shmipc_heap_head_t *heap = shmipc_heap_head_of(region);
  *out_offset = region->heap_offset + offsetof(shmipc_heap_head_t, reclaimer);
  *out_value = __atomic_load_n(&heap->reclaimer, __ATOMIC_ACQUIRE);
  uint32_t word = __atomic_load_n(&heap->roots_mutex.word, __ATOMIC_ACQUIRE);
  // One that died leaves it to the next that has the mutex.
  if (*out_value == 0 || (word & SHMIPC_WORD_DIED) != 0) {
    return NULL;
  }
  return (word & SHMIPC_WORD_OWNER) !=
                 SHMIPC_WORD_OF(SHMIPC_PAGE_INDEX(*out_value),
                                SHMIPC_PAGE_GENERATION(*out_value))
             ? "heap: who reclaims does not have the mutex"
             : NULL;
}
