// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// Blocks up to 32 KiB: a thread has pages of each class, and it alone allocates
// from them.
//
//   page    | block 0 | block 1 | ... | block n - 1 | word 0 ... word n - 1 |
//   (of 16 blocks and less: the words are in the heap's table)
//
// 1. A block is free if and only if its word is 0; otherwise the word says
//    whose it is. So one store allocates and one store frees, and there is
//    nothing to repair after a kill between any two instructions.
// 2. Only the thread that the page's head names stores a word where there was
//    0. So it needs no atomic operation for that, nor for freeing what is its
//    own process's. All others free by a compare-and-swap.
// 3. What a thread knows of free blocks, its *hints*, is in its own memory and
//    dies with it. A hint is looked up in the word before it is used.
// 4. Whoever frees a block and does not keep it as a hint sets the page's
//    `freed` after the word. The owner clears it before it scans. Killed in
//    between, the block is found when memory is short: then all words are read.
//
// The hard problem is memory that others free and the owner does not look at,
// without making it look at all of its pages again and again. Refilling looks
// at the `freed` of at most PAGES_LOOKED pages, from where it stopped the last
// time, and then takes a new page; only when there is none, at all words.
//
// Pages go back to all when they are found empty. When as many frees as a page
// has blocks found no room among the hints, a few pages of the class are looked
// at; at every eighth refill, one page of some class, since others may free
// what this thread allocates; and all of them, when somebody has found no
// memory since the last refill (the heap's `shortages`). A thread that does
// none of this is as one that sleeps: it keeps what it has.
//
// Not done: taking pages from a thread that lives. It has no lock that one
// could take.

#include <assert.h>
#include <stdlib.h>

#include "shmipc/block_internal.h"

#define PAGES_LOOKED 64u
#define PAGES_EMPTIED 4u
// Refills between looks at a page for emptiness.
#define REFILLS_A_LOOK 8u

void shmipc_page_note_freed(const shmipc_region_t *region, uint32_t page) {
  uint32_t *freed = &shmipc_note_of(region, page)->freed;
  // Only a load, mostly: the line stays shared. Sequentially consistent, as is
  // the change of the word before it, and what the owner does the other way
  // round: so either it sees that the owner has cleared it, or the owner sees
  // the word (4).
  if (__atomic_load_n(freed, __ATOMIC_SEQ_CST) == 0) {
    __atomic_store_n(freed, 1, __ATOMIC_RELAXED);
  }
}

// Whether no block of the page is live.
static bool is_empty(const uint32_t *words, uint32_t count) {
  uint32_t any = 0;
  for (uint32_t i = 0; i < count && any == 0; i++) {
    any = shmipc_word_load(&words[i]);
  }
  return any == 0;
}

static bool is_ours(const shmipc_region_t *region, const shmipc_self_t *self,
                    uint32_t page, uint32_t class_index) {
  return shmipc_head_load(region, page) == (self->page_id | (class_index + 1));
}

static bool make_room(shmipc_bin_t *bin) {
  if (bin->num_pages < bin->max_pages) {
    return true;
  }
  uint32_t more = bin->max_pages == 0 ? 8 : bin->max_pages * 2;
  uint32_t *pages = realloc(bin->pages, more * sizeof(*pages));
  if (pages == NULL) {
    return false;
  }
  bin->pages = pages;
  bin->max_pages = more;
  return true;
}

// Forgets a page and what it was good for.
static void drop_page(const shmipc_region_t *region, shmipc_bin_t *bin,
                      uint32_t place) {
  const unsigned char *start = shmipc_page_of(region, bin->pages[place]);
  uint32_t kept = 0;
  for (uint32_t i = 0; i < bin->num_hints; i++) {
    if ((size_t)(bin->hints[i].block - start) >= SHMIPC_PAGE_BYTES) {
      bin->hints[kept++] = bin->hints[i];
    }
  }
  bin->num_hints = kept;
  if (bin->current == place) {
    bin->position = UINT32_MAX;
  }
  bin->pages[place] = bin->pages[--bin->num_pages];
  // The last one is in its place now.
  if (bin->current == bin->num_pages) {
    bin->current = place;
  }
}

// Gives a page back if it has no live block. Not while somebody reclaims: the
// words of one class are where another has blocks, so a reclaimer that has read
// the head before would change the caller's data.
static bool empty_page(shmipc_region_t *region, const shmipc_self_t *self,
                       uint32_t class_index, uint32_t place) {
  shmipc_bin_t *bin = &self->cache->bins[class_index];
  uint32_t page = bin->pages[place];
  if (!is_ours(region, self, page, class_index)) {
    drop_page(region, bin, place);
    return false;
  }
  if (!is_empty(shmipc_words_of(region, page, class_index),
                shmipc_classes[class_index].count)) {
    return false;
  }
  // Sequentially consistent: see shmipc_is_reclaiming.
  __atomic_store_n(shmipc_head_of(region, page),
                   self->page_id | SHMIPC_PAGE_FREEING, __ATOMIC_SEQ_CST);
  if (shmipc_is_reclaiming(region)) {
    shmipc_head_store(region, page, self->page_id | (class_index + 1));
    return false;
  }
  drop_page(region, bin, place);
  shmipc_page_release(region, page);
  return true;
}

// Takes the page of a dead thread: gives it back if it is empty, otherwise it
// is ours. Returns how many pages became free.
static uint32_t adopt(shmipc_region_t *region, shmipc_self_t *self,
                      uint32_t page, uint64_t head) {
  uint32_t kind = shmipc_kind_of(head);
  if (kind == SHMIPC_PAGE_PREPARING || kind == SHMIPC_PAGE_FREEING) {
    return shmipc_run_take_over(region, self, page, head);
  }
  shmipc_bin_t *bin = &self->cache->bins[kind - 1];
  if (!make_room(bin) ||
      !shmipc_head_change(region, page, head, self->page_id | kind)) {
    return 0;
  }
  bin->pages[bin->num_pages++] = page;
  if (empty_page(region, self, kind - 1, bin->num_pages - 1)) {
    return 1;
  }
  shmipc_page_note_freed(region, page);
  return 0;
}

// Whether the page has a thread, other than this one.
static bool is_anothers(const shmipc_self_t *self, uint64_t head) {
  uint32_t kind = shmipc_kind_of(head);
  return (shmipc_is_class(kind) || kind == SHMIPC_PAGE_PREPARING ||
          kind == SHMIPC_PAGE_FREEING) &&
         (head & ~(uint64_t)SHMIPC_PAGE_KIND) != self->page_id;
}

// Makes a free page one of the class. Killed before the last step, it is
// PREPARING, which whoever takes it over frees.
static bool prepare(shmipc_region_t *region, shmipc_self_t *self, uint32_t page,
                    uint32_t class_index) {
  if (!shmipc_head_change(region, page, SHMIPC_PAGE_FREE,
                          SHMIPC_PAGE_PREPARING | self->page_id)) {
    return false;
  }
  uint32_t *words = shmipc_words_of(region, page, class_index);
  for (uint32_t i = 0; i < shmipc_classes[class_index].count; i++) {
    // Relaxed: the head comes after.
    __atomic_store_n(&words[i], SHMIPC_BLOCK_FREE, __ATOMIC_RELAXED);
  }
  __atomic_store_n(&shmipc_note_of(region, page)->freed, 0, __ATOMIC_RELAXED);
  shmipc_head_store(region, page, self->page_id | (class_index + 1));
  shmipc_bin_t *bin = &self->cache->bins[class_index];
  assert(bin->num_pages < bin->max_pages);
  bin->pages[bin->num_pages++] = page;
  return true;
}

// Goes round the pages once: takes the first that is free, and adopts what the
// dead have left. True if a page of the class is ours that was not before.
static bool find_page(shmipc_region_t *region, shmipc_self_t *self,
                      uint32_t class_index, shmipc_census_t *census) {
  shmipc_bin_t *bin = &self->cache->bins[class_index];
  uint32_t mapped = shmipc_pages_mapped(region);
  uint32_t *hint = &shmipc_heap_head_of(region)->first_free;
  // Relaxed: any value will do.
  uint32_t start = __atomic_load_n(hint, __ATOMIC_RELAXED);
  start = start < mapped ? start : 0;
  for (uint32_t i = 0; i < mapped; i++) {
    uint32_t page = start + i < mapped ? start + i : start + i - mapped;
    uint64_t head = shmipc_head_load(region, page);
    uint32_t num_pages = bin->num_pages;
    if (is_anothers(self, head) &&
        !shmipc_head_is_alive(region, census, head)) {
      (void)adopt(region, self, page, head);
      head = shmipc_head_load(region, page);
    }
    if (bin->num_pages > num_pages ||
        (head == SHMIPC_PAGE_FREE &&
         prepare(region, self, page, class_index))) {
      bin->current = bin->num_pages - 1;
      bin->position = 0;
      __atomic_store_n(hint, page + 1, __ATOMIC_RELAXED);
      return true;
    }
  }
  return false;
}

uint32_t shmipc_cache_trim_dead(shmipc_region_t *region, shmipc_self_t *self) {
  shmipc_census_t *census = malloc(sizeof(*census));
  uint32_t num_released = 0;
  if (census == NULL) {
    return 0;
  }
  shmipc_pages_refresh(region);
  uint32_t mapped = shmipc_pages_mapped(region);
  shmipc_census_begin(census);
  for (uint32_t page = 0; page < mapped; page++) {
    uint64_t head = shmipc_head_load(region, page);
    if (is_anothers(self, head) &&
        !shmipc_head_is_alive(region, census, head)) {
      num_released += adopt(region, self, page, head);
    }
  }
  free(census);
  return num_released;
}

// Puts free blocks of the current page among the hints.
static bool scan_current(shmipc_region_t *region, const shmipc_self_t *self,
                         uint32_t class_index) {
  shmipc_bin_t *bin = &self->cache->bins[class_index];
  const shmipc_class_t *class_of = &shmipc_classes[class_index];
  if (bin->position >= class_of->count || bin->current >= bin->num_pages) {
    return false;
  }
  uint32_t page = bin->pages[bin->current];
  if (!is_ours(region, self, page, class_index)) {
    drop_page(region, bin, bin->current);
    return false;
  }
  uint32_t *words = shmipc_words_of(region, page, class_index);
  unsigned char *start = shmipc_page_of(region, page);
  uint32_t i = bin->position;
  uint32_t found = 0;
  for (; i < class_of->count && found < SHMIPC_HINTS; i++) {
    // Sequentially consistent: see shmipc_page_note_freed.
    if (__atomic_load_n(&words[i], __ATOMIC_SEQ_CST) == SHMIPC_BLOCK_FREE) {
      bin->hints[found].word = &words[i];
      bin->hints[found].block = start + (size_t)i * class_of->size_bytes;
      found++;
    }
  }
  bin->position = i;
  bin->num_hints = found;
  // The first is to be taken first.
  for (uint32_t j = 0; j < found / 2; j++) {
    shmipc_hint_t hint = bin->hints[j];
    bin->hints[j] = bin->hints[found - 1 - j];
    bin->hints[found - 1 - j] = hint;
  }
  return found != 0;
}

// Scans the next pages in which something was freed; or all, when not `freed`.
static bool scan_others(shmipc_region_t *region, const shmipc_self_t *self,
                        uint32_t class_index, uint32_t count, bool freed) {
  shmipc_bin_t *bin = &self->cache->bins[class_index];
  count = count < bin->num_pages ? count : bin->num_pages;
  for (uint32_t i = 0; i < count && bin->num_pages != 0; i++) {
    bin->current = bin->current + 1 < bin->num_pages ? bin->current + 1 : 0;
    uint32_t *note = &shmipc_note_of(region, bin->pages[bin->current])->freed;
    if (freed && __atomic_load_n(note, __ATOMIC_RELAXED) == 0) {
      continue;
    }
    // Before the words are read (4). See shmipc_page_note_freed.
    __atomic_store_n(note, 0, __ATOMIC_SEQ_CST);
    bin->position = 0;
    if (scan_current(region, self, class_index)) {
      return true;
    }
  }
  bin->position = UINT32_MAX;
  return false;
}

static bool refill_from_own(shmipc_region_t *region, const shmipc_self_t *self,
                            uint32_t class_index) {
  return scan_current(region, self, class_index) ||
         scan_others(region, self, class_index, PAGES_LOOKED, true);
}

// All pages of the dead, found by asking the kernel.
static bool refill_from_dead(shmipc_region_t *region, shmipc_self_t *self,
                             uint32_t class_index) {
  shmipc_census_t *census = malloc(sizeof(*census));
  if (census == NULL) {
    return false;
  }
  shmipc_census_begin(census);
  bool was_found = false;
  // A page that is adopted may turn out to be full.
  do {
    was_found = find_page(region, self, class_index, census);
  } while (was_found && !scan_current(region, self, class_index) &&
           make_room(&self->cache->bins[class_index]));
  free(census);
  return self->cache->bins[class_index].num_hints != 0;
}

// Looks at the next page of the class for emptiness. One page stays, for the
// next time.
static void look_at_one(shmipc_region_t *region, const shmipc_self_t *self,
                        uint32_t class_index) {
  shmipc_bin_t *bin = &self->cache->bins[class_index];
  if (bin->num_pages > 1) {
    bin->checked = bin->checked < bin->num_pages ? bin->checked : 0;
    if (!empty_page(region, self, class_index, bin->checked)) {
      bin->checked++;
    }
  }
}

// Gives back what others may need more.
static void give_back(shmipc_region_t *region, shmipc_self_t *self) {
  shmipc_cache_t *cache = self->cache;
  // Relaxed: a hint.
  uint32_t shortages = __atomic_load_n(&shmipc_heap_head_of(region)->shortages,
                                       __ATOMIC_RELAXED);
  if (shortages != cache->shortages) {
    cache->shortages = shortages;
    (void)shmipc_cache_trim(region, self);
    return;
  }
  if (++cache->num_refills % REFILLS_A_LOOK != 0) {
    return;
  }
  for (uint32_t i = 0; i < SHMIPC_CLASSES; i++) {
    // All pages of a class, then the next one that has some.
    const shmipc_bin_t *bin = &cache->bins[cache->looked];
    if (bin->num_pages > 1 && bin->checked < bin->num_pages) {
      look_at_one(region, self, cache->looked);
      return;
    }
    cache->looked = cache->looked + 1 < SHMIPC_CLASSES ? cache->looked + 1 : 0;
    cache->bins[cache->looked].checked = 0;
  }
}

void shmipc_cache_say_shortage(const shmipc_region_t *region) {
  // Relaxed: a hint.
  __atomic_fetch_add(&shmipc_heap_head_of(region)->shortages, 1,
                     __ATOMIC_RELAXED);
}

static bool refill(shmipc_region_t *region, shmipc_self_t *self,
                   uint32_t class_index) {
  shmipc_bin_t *bin = &self->cache->bins[class_index];
  assert(bin->num_hints == 0);
  give_back(region, self);
  if (refill_from_own(region, self, class_index)) {
    return true;
  }
  // Every page that is found has room in the list. One that was a dead
  // thread's may be full.
  while (make_room(bin) && find_page(region, self, class_index, NULL)) {
    if (scan_current(region, self, class_index)) {
      return true;
    }
  }
  if (make_room(bin) && refill_from_dead(region, self, class_index)) {
    return true;
  }
  // All words, as a free without a note may be among them.
  if (scan_others(region, self, class_index, UINT32_MAX, false)) {
    return true;
  }
  return shmipc_cache_trim(region, self) != 0 && make_room(bin) &&
         find_page(region, self, class_index, NULL) &&
         scan_current(region, self, class_index);
}

static void *pop(const shmipc_self_t *self, uint32_t class_index) {
  shmipc_bin_t *bin = &self->cache->bins[class_index];
  while (bin->num_hints != 0) {
    shmipc_hint_t *hint = &bin->hints[--bin->num_hints];
    if (shmipc_word_load(hint->word) == SHMIPC_BLOCK_FREE) {
      // Relaxed: whoever gets to know of the block gets it by a release.
      __atomic_store_n(hint->word, self->cache->owner, __ATOMIC_RELAXED);
      return hint->block;
    }
  }
  return NULL;
}

static void *pop_or_refill(shmipc_region_t *region, shmipc_self_t *self,
                           uint32_t class_index) {
  // Twice: hints may all be wrong, when somebody else wrote in the words.
  for (int i = 0; i < 2; i++) {
    void *block = pop(self, class_index);
    if (block != NULL || !refill(region, self, class_index)) {
      return block;
    }
  }
  return pop(self, class_index);
}

void *shmipc_cache_alloc(shmipc_region_t *region, shmipc_self_t *self,
                         uint32_t class_index, size_t alignment) {
  void *block = pop_or_refill(region, self, class_index);
  while (block == NULL && shmipc_pages_grow(region, 1)) {
    block = pop_or_refill(region, self, class_index);
  }
  // No page anywhere: a larger block of a page that we have.
  for (uint32_t i = class_index + 1; block == NULL && i < SHMIPC_CLASSES; i++) {
    if (shmipc_classes[i].size_bytes % alignment != 0) {
      continue;
    }
    block = pop(self, i);
    if (block == NULL && refill_from_own(region, self, i)) {
      block = pop(self, i);
    }
  }
  if (block == NULL) {
    shmipc_cache_say_shortage(region);
  }
  return block;
}

void shmipc_cache_note_free(shmipc_region_t *region, shmipc_self_t *self,
                            uint32_t class_index, uint32_t page) {
  shmipc_bin_t *bin = &self->cache->bins[class_index];
  shmipc_page_note_freed(region, page);
  if (++bin->num_frees < shmipc_classes[class_index].count) {
    return;
  }
  bin->num_frees = 0;
  for (uint32_t i = 0; i < PAGES_EMPTIED; i++) {
    look_at_one(region, self, class_index);
  }
}

uint32_t shmipc_cache_trim(shmipc_region_t *region, shmipc_self_t *self) {
  uint32_t num_released = 0;
  for (uint32_t i = 0; i < SHMIPC_CLASSES; i++) {
    uint32_t place = self->cache->bins[i].num_pages;
    while (place-- > 0) {
      num_released += empty_page(region, self, i, place);
    }
  }
  return num_released;
}

int shmipc_cache_of(shmipc_region_t *region, shmipc_self_t **out_self) {
  int status = shmipc_self_of(region, out_self);
  if (status < 0) {
    return status;
  }
  shmipc_self_t *self = *out_self;
  if (self->cache == NULL) {
    shmipc_cache_t *cache = calloc(1, sizeof(*cache));
    if (cache == NULL) {
      return -ENOMEM;
    }
    cache->owner = SHMIPC_BLOCK_OWNER(region->slot, region->slot_generation);
    for (uint32_t i = 0; i < SHMIPC_CLASSES; i++) {
      cache->bins[i].position = UINT32_MAX;
    }
    self->cache = cache;
  }
  return 0;
}

void shmipc_cache_delete(shmipc_cache_t *cache) {
  if (cache == NULL) {
    return;
  }
  for (uint32_t i = 0; i < SHMIPC_CLASSES; i++) {
    free(cache->bins[i].pages);
  }
  free(cache);
}
