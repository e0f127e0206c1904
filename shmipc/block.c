// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Blocks: from a size to memory, and from any pointer to its block.
//
//   pointer ──► page (a shift) ──► head: kind, thread ──► class: index (a
//   multiplication) ──► word: whose it is
//
// All that a pointer is taken for is looked up outside of the block, so one
// that is not the start of a live block is told from one that is.
//
// The short way of an allocation takes a free block that the thread knows of
// and stores whose it is in the block's word: the block is the process's with
// that store, and before it nobody's. The short way of a free is the store of 0
// and a note in private memory. Both are for pages that are the thread's own,
// and make no atomic read-modify-write. block_cache.c has the rest of small
// blocks, block_page.c pages.
//
// A large block is a run of pages of its own. It is live while the head of its
// first page says LARGE; its word is in the heap's table.

#include "shmipc/block.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "shmipc/block_internal.h"

int shmipc_heap_status(const shmipc_region_t *region, bool writes) {
  if (region->serial == 0) {
    return region->status;
  }
  if (region->heap_offset == 0) {
    return -EOPNOTSUPP;
  }
  return writes && region->read_only ? -EROFS : 0;
}

static int begin(shmipc_region_t *region, shmipc_self_t **out_self) {
  int status = shmipc_heap_status(region, true);
  return status < 0 ? status : shmipc_cache_of(region, out_self);
}

int shmipc_place_find(const shmipc_region_t *region, const void *block,
                      shmipc_place_t *out_place) {
  uint64_t offset = (uint64_t)((uintptr_t)block - (uintptr_t)region->base -
                               (uintptr_t)region->pages_offset);
  uint64_t page = offset >> SHMIPC_PAGE_SHIFT;
  if (page >= shmipc_pages_mapped(region)) {
    return -EINVAL;
  }
  out_place->page = (uint32_t)page;
  uint32_t position = (uint32_t)offset & (SHMIPC_PAGE_BYTES - 1);
  // Sequentially consistent: see shmipc_is_reclaiming.
  uint64_t head =
      __atomic_load_n(shmipc_head_of(region, (uint32_t)page), __ATOMIC_SEQ_CST);
  uint32_t kind = shmipc_kind_of(head);
  out_place->head = head;
  if (shmipc_is_class(kind)) {
    uint32_t index;
    if (!shmipc_class_index(&shmipc_classes[kind - 1], position, &index)) {
      return -EINVAL;
    }
    out_place->class_index = kind - 1;
    out_place->word = shmipc_words_of(region, (uint32_t)page, kind - 1) + index;
    return 0;
  }
  out_place->class_index = SHMIPC_CLASSES;
  out_place->word = shmipc_table_words_of(region, (uint32_t)page);
  if (kind == SHMIPC_PAGE_LARGE) {
    return position == 0 ? 0 : -EINVAL;
  }
  // A block may have started there, if any can.
  bool was_block = position % 16 == 0 &&
                   (kind == SHMIPC_PAGE_FREE || kind == SHMIPC_PAGE_FREEING);
  return was_block ? -EALREADY : -EINVAL;
}

size_t shmipc_place_bytes(shmipc_region_t *region,
                          const shmipc_place_t *place) {
  if (place->class_index < SHMIPC_CLASSES) {
    return shmipc_classes[place->class_index].size_bytes;
  }
  uint32_t num_pages = __atomic_load_n(
      &shmipc_note_of(region, place->page)->num_pages, __ATOMIC_RELAXED);
  if (num_pages > shmipc_pages_mapped(region) - place->page) {
    // The region has grown, and we have mapped no more than its beginning.
    shmipc_pages_refresh(region);
  }
  uint32_t mapped = shmipc_pages_mapped(region) - place->page;
  // Never more than is there, whatever the region says.
  num_pages = num_pages < mapped ? num_pages : mapped;
  return (size_t)num_pages << SHMIPC_PAGE_SHIFT;
}

// Finds the block and what its word says, which is not 0.
static int find_live(const shmipc_region_t *region, const void *block,
                     shmipc_place_t *out_place, uint32_t *out_seen) {
  int status = shmipc_place_find(region, block, out_place);
  if (status < 0) {
    return status;
  }
  *out_seen = shmipc_word_load(out_place->word);
  return *out_seen != SHMIPC_BLOCK_FREE ? 0 : -EALREADY;
}

// Pages that a large block of that size has; 0: more than there can be.
static uint32_t pages_for(const shmipc_region_t *region, size_t size_bytes) {
  if (size_bytes > (uint64_t)region->heap_pages << SHMIPC_PAGE_SHIFT) {
    return 0;
  }
  // One at least: a block of 0 bytes has 1.
  size_t last = size_bytes != 0 ? size_bytes - 1 : 0;
  return (uint32_t)(last >> SHMIPC_PAGE_SHIFT) + 1;
}

static uint32_t claim_or_trim(shmipc_region_t *region, shmipc_self_t *self,
                              uint32_t count) {
  uint32_t first = shmipc_run_claim(region, self, count);
  if (first == SHMIPC_NO_PAGE &&
      shmipc_cache_trim_dead(region, self) + shmipc_cache_trim(region, self) !=
          0) {
    first = shmipc_run_claim(region, self, count);
  }
  return first;
}

static void *alloc_large(shmipc_region_t *region, shmipc_self_t *self,
                         size_t size_bytes) {
  uint32_t count = pages_for(region, size_bytes);
  if (count == 0) {
    return NULL;
  }
  uint32_t first = claim_or_trim(region, self, count);
  // What was added may end a run that was too short, or others took it.
  while (first == SHMIPC_NO_PAGE && shmipc_pages_grow(region, count)) {
    first = claim_or_trim(region, self, count);
  }
  if (first == SHMIPC_NO_PAGE) {
    shmipc_cache_say_shortage(region);
    return NULL;
  }
  __atomic_store_n(&shmipc_note_of(region, first)->num_pages, count,
                   __ATOMIC_RELAXED);
  __atomic_store_n(shmipc_table_words_of(region, first), self->cache->owner,
                   __ATOMIC_RELAXED);
  // Relaxed: only that no other has it.
  uint64_t tag = __atomic_fetch_add(&shmipc_heap_head_of(region)->num_runs, 1,
                                    __ATOMIC_RELAXED);
  // From here on it is a block.
  shmipc_head_store(region, first, SHMIPC_PAGE_RUN(tag));
  return shmipc_page_of(region, first);
}

static __attribute__((noinline)) void *alloc_any(shmipc_region_t *region,
                                                 size_t alignment,
                                                 size_t size_bytes) {
  shmipc_self_t *self;
  int status = begin(region, &self);
  if (status < 0) {
    errno = -status;
    return NULL;
  }
  uint32_t class_index = shmipc_class_aligned(alignment, size_bytes);
  int saved = errno;
  void *block = class_index < SHMIPC_CLASSES
                    ? shmipc_cache_alloc(region, self, class_index, alignment)
                    : alloc_large(region, self, size_bytes);
  errno = block != NULL ? saved : ENOMEM;
  return block;
}

void *shmipc_block_alloc(shmipc_region_t *region, size_t size_bytes) {
  shmipc_self_t *self = shmipc_self_cached;
  shmipc_cache_t *cache = self->cache;
  if (__builtin_expect(self->serial == region->serial && cache != NULL &&
                           size_bytes <= SHMIPC_CLASS_TABLE_MAX,
                       1)) {
    shmipc_bin_t *bin =
        &cache->bins[shmipc_class_table[(size_bytes + 15) / 16]];
    uint32_t place = bin->num_hints;
    if (__builtin_expect(place != 0, 1)) {
      shmipc_hint_t hint = bin->hints[place - 1];
      bin->num_hints = place - 1;
      if (__builtin_expect(shmipc_word_load(hint.word) == SHMIPC_BLOCK_FREE,
                           1)) {
        // Relaxed: as in block_cache.c.
        __atomic_store_n(hint.word, cache->owner, __ATOMIC_RELAXED);
        return hint.block;
      }
    }
  }
  return alloc_any(region, 1, size_bytes);
}

void *shmipc_block_alloc_aligned(shmipc_region_t *region, size_t alignment,
                                 size_t size_bytes) {
  if (alignment == 0 || (alignment & (alignment - 1)) != 0 ||
      alignment > SHMIPC_BLOCK_ALIGNMENT_MAX) {
    errno = EINVAL;
    return NULL;
  }
  return alloc_any(region, alignment, size_bytes);
}

// Frees the block of a word that is still `seen`, which is live, for whoever
// has the page to find.
static int free_word(const shmipc_region_t *region, uint32_t page,
                     uint32_t *word, uint32_t seen) {
  // Sequentially consistent: see shmipc_page_note_freed.
  if (!__atomic_compare_exchange_n(word, &seen, SHMIPC_BLOCK_FREE, false,
                                   __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
    return -EALREADY;
  }
  shmipc_page_note_freed(region, page);
  return 0;
}

int shmipc_place_free(shmipc_region_t *region, const shmipc_self_t *self,
                      const shmipc_place_t *place, uint32_t seen) {
  if (place->class_index < SHMIPC_CLASSES) {
    return free_word(region, place->page, place->word, seen);
  }
  // From the head that was found, which no other run ever has. From here on it
  // is no block. Killed now, whoever looks for pages goes on.
  if (!shmipc_head_change(region, place->page, place->head,
                          SHMIPC_PAGE_FREEING | self->page_id)) {
    return -EALREADY;
  }
  shmipc_run_release(region, place->page);
  return 0;
}

static __attribute__((noinline)) int free_any(shmipc_region_t *region,
                                              void *block) {
  shmipc_self_t *self;
  if (block == NULL) {
    return 0;
  }
  int saved = errno;
  int status = begin(region, &self);
  errno = saved;
  if (status < 0) {
    return status;
  }
  shmipc_place_t place;
  uint32_t seen;
  status = find_live(region, block, &place, &seen);
  if (status < 0) {
    return status;
  }
  status = shmipc_place_free(region, self, &place, seen);
  if (status == 0 && place.class_index < SHMIPC_CLASSES &&
      place.head == (self->page_id | (place.class_index + 1))) {
    shmipc_bin_t *bin = &self->cache->bins[place.class_index];
    if (bin->num_hints < SHMIPC_HINTS) {
      shmipc_hint_t hint = {.word = place.word, .block = block};
      bin->hints[bin->num_hints++] = hint;
    } else {
      shmipc_cache_note_free(region, self, place.class_index, place.page);
    }
  }
  return status;
}

// The short way for a block in a page of another thread. `head` is the page's.
static __attribute__((noinline)) int free_of_other(shmipc_region_t *region,
                                                   void *block, uint32_t page,
                                                   uint64_t head) {
  uint32_t class_index = shmipc_kind_of(head) - 1;
  uint32_t position =
      (uint32_t)((unsigned char *)block - shmipc_page_of(region, page));
  uint32_t index;
  if (class_index >= SHMIPC_CLASSES ||
      !shmipc_class_index(&shmipc_classes[class_index], position, &index)) {
    return free_any(region, block);
  }
  uint32_t *word = shmipc_words_of(region, page, class_index) + index;
  uint32_t seen = shmipc_word_load(word);
  return seen == SHMIPC_BLOCK_FREE ? -EALREADY
                                   : free_word(region, page, word, seen);
}

// A call that ends the short way: it then needs no frame.
static __attribute__((noinline)) int note_free(shmipc_region_t *region,
                                               shmipc_self_t *self,
                                               uint32_t class_index,
                                               uint32_t page) {
  shmipc_cache_note_free(region, self, class_index, page);
  return 0;
}

// The short way: a block of this process, in a page of this thread whose words
// are in it.
int shmipc_block_free(shmipc_region_t *region, void *block) {
  shmipc_self_t *self = shmipc_self_cached;
  uint64_t offset = (uint64_t)((uintptr_t)block - (uintptr_t)region->pages);
  uint64_t page = offset >> SHMIPC_PAGE_SHIFT;
  // Unmapped pages, and pointers from elsewhere, are beyond it.
  if (__builtin_expect(
          self->serial != region->serial || page >= shmipc_pages_mapped(region),
          0)) {
    return free_any(region, block);
  }
  // Sequentially consistent: as in shmipc_place_find.
  uint64_t head = __atomic_load_n(region->heads + page, __ATOMIC_SEQ_CST);
  uint64_t own_class = head - self->page_id - 1;
  shmipc_cache_t *cache = self->cache;
  if (__builtin_expect(own_class >= SHMIPC_CLASSES || cache == NULL, 0)) {
    return free_of_other(region, block, (uint32_t)page, head);
  }
  const shmipc_class_t *class_of = &shmipc_classes[own_class];
  uint32_t position = (uint32_t)offset & (SHMIPC_PAGE_BYTES - 1);
  uint32_t index;
  if (__builtin_expect(class_of->words_offset == 0 ||
                           !shmipc_class_index(class_of, position, &index),
                       0)) {
    return free_any(region, block);
  }
  uint32_t *word = (uint32_t *)(void *)((unsigned char *)block - position +
                                        class_of->words_offset) +
                   index;
  if (__builtin_expect(shmipc_word_load(word) != cache->owner, 0)) {
    return free_any(region, block);
  }
  // Release: pairs with the acquire of whoever allocates it, which may be
  // another thread once this one has ended.
  __atomic_store_n(word, SHMIPC_BLOCK_FREE, __ATOMIC_RELEASE);
  shmipc_bin_t *bin = &cache->bins[own_class];
  uint32_t place = bin->num_hints;
  if (__builtin_expect(place < SHMIPC_HINTS, 1)) {
    shmipc_hint_t hint = {.word = word, .block = block};
    bin->hints[place] = hint;
    bin->num_hints = place + 1;
    return 0;
  }
  return note_free(region, self, (uint32_t)own_class, (uint32_t)page);
}

size_t shmipc_block_usable_size(shmipc_region_t *region, const void *block) {
  shmipc_place_t place;
  uint32_t seen;
  if (shmipc_heap_status(region, false) < 0 ||
      find_live(region, block, &place, &seen) < 0) {
    return 0;
  }
  return shmipc_place_bytes(region, &place);
}

void *shmipc_block_get(shmipc_region_t *region, shmipc_ref_t ref, size_t len) {
  void *block = shmipc_ref_get(region, ref, len);
  size_t usable = block != NULL ? shmipc_block_usable_size(region, block) : 0;
  return usable != 0 && usable >= len ? block : NULL;
}

// Makes a run longer or shorter where it is.
static bool resize_large(shmipc_region_t *region, const shmipc_place_t *place,
                         size_t size_bytes) {
  uint32_t wanted = pages_for(region, size_bytes);
  uint32_t extent = shmipc_run_extent(region, place->page);
  uint32_t *num_pages = &shmipc_note_of(region, place->page)->num_pages;
  if (wanted == 0) {
    return false;
  }
  if (wanted > extent &&
      !shmipc_run_extend(region, place->page, extent, wanted - extent)) {
    return false;
  }
  if (wanted > shmipc_pages_mapped(region) - place->page) {
    shmipc_pages_refresh(region);
  }
  // Heads may say what is not true: that pages are the run's that do not exist.
  if (wanted > shmipc_pages_mapped(region) - place->page) {
    return false;
  }
  // Relaxed: of the block's owner only.
  __atomic_store_n(num_pages, wanted, __ATOMIC_RELAXED);
  if (wanted < extent) {
    shmipc_run_shorten(region, place->page, wanted);
  }
  return true;
}

// Whether the block can stay where it is.
static bool resize(shmipc_region_t *region, const shmipc_place_t *place,
                   size_t size_bytes) {
  size_t usable = shmipc_place_bytes(region, place);
  if (place->class_index == SHMIPC_CLASSES) {
    return size_bytes > SHMIPC_CLASS_BYTES_MAX &&
           resize_large(region, place, size_bytes);
  }
  return size_bytes <= usable && (size_bytes > usable / 2 || usable == 16);
}

void *shmipc_block_realloc(shmipc_region_t *region, void *block,
                           size_t size_bytes) {
  if (block == NULL) {
    return shmipc_block_alloc(region, size_bytes);
  }
  shmipc_self_t *self;
  shmipc_place_t place;
  uint32_t seen = 0;
  int status = begin(region, &self);
  if (status == 0) {
    status = find_live(region, block, &place, &seen);
  }
  if (status == 0 && seen != self->cache->owner) {
    status = -EPERM;
  }
  if (status < 0) {
    errno = -status;
    return NULL;
  }
  if (resize(region, &place, size_bytes)) {
    return block;
  }
  int saved = errno;
  size_t usable = shmipc_place_bytes(region, &place);
  void *moved = shmipc_block_alloc(region, size_bytes);
  if (moved == NULL) {
    // Making a block smaller does not fail.
    bool fits =
        size_bytes <= usable && (place.class_index < SHMIPC_CLASSES ||
                                 resize_large(region, &place, size_bytes));
    errno = fits ? saved : errno;
    return fits ? block : NULL;
  }
  memcpy(moved, block, size_bytes < usable ? size_bytes : usable);
  (void)shmipc_block_free(region, block);
  return moved;
}

// What a word becomes; 0: it may not.
typedef uint32_t next_fn_t(uint32_t seen, uint32_t owner);

static uint32_t next_given(uint32_t seen, uint32_t owner) {
  return seen == owner ? owner | SHMIPC_BLOCK_FLIGHT : 0;
}

static uint32_t next_taken(uint32_t seen, uint32_t owner) {
  bool may = seen == SHMIPC_BLOCK_REGION || (seen & SHMIPC_BLOCK_FLIGHT) != 0;
  return may ? owner : 0;
}

static uint32_t next_shared(uint32_t seen, uint32_t owner) {
  bool may = seen == owner || (seen & SHMIPC_BLOCK_FLIGHT) != 0;
  return may ? SHMIPC_BLOCK_REGION : 0;
}

static int change_owner(shmipc_region_t *region, const void *block,
                        next_fn_t *next_of) {
  int status = shmipc_heap_status(region, true);
  shmipc_place_t place;
  uint32_t seen = 0;
  if (status == 0) {
    status = find_live(region, block, &place, &seen);
  }
  if (status < 0) {
    return status;
  }
  uint32_t owner = SHMIPC_BLOCK_OWNER(region->slot, region->slot_generation);
  uint32_t next = next_of(seen, owner);
  // Acquire: pairs with the release of whoever gave it.
  return next != 0 && shmipc_word_change(place.word, seen, next) ? 0 : -EPERM;
}

int shmipc_block_give(shmipc_region_t *region, void *block) {
  return change_owner(region, block, next_given);
}

int shmipc_block_take(shmipc_region_t *region, void *block) {
  return change_owner(region, block, next_taken);
}

int shmipc_block_share(shmipc_region_t *region, void *block) {
  return change_owner(region, block, next_shared);
}
