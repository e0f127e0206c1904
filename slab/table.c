// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// From any address to the slab it lies in, without looking at what is there.
//
// The table of a cache is hashed by granule, the 64 KiB of addresses around a
// pointer; no two slabs of a cache share a granule. The home of a granule is
// its number modulo the table's size. Slabs that the kernel maps lie next to
// each other, so that nearly every granule is found at home, with one load and
// no search; that is all the inline paths try. Others are in the next entry
// that was unused when they came, up to a few places on, and cost a call.
//
//   table:  | mask | older | ... | entry | entry | entry | ...
//   entry:  | base | limit | states | slab |
//                              |
//   slab's states  | s0 s1 s2 ...    one byte an object, out of line
//
// Invariants:
// 1. An entry with limit 0 matches no address; the entry's base is not 0 if it
//    was ever used. A search ends at an entry that never was.
// 2. At most half of the entries were ever used.
//
// Readers take no lock. Whoever has a live object was given it after its slab
// was inserted, so it sees a table with that slab, and its slab stays while
// the object lives. Anybody else's pointer is a mistake: whatever moment's
// table it meets, it must be rejected without harm, hence limits are set last
// when an entry is filled and first when it is emptied. What an entry says is
// read in pieces: if one slab is removed and another inserted there at that
// moment, a mistaken pointer may be measured against pieces of both.
//
// A table that was replaced still knows all objects that are live since, so
// whoever loaded it before may go on with it. It is kept, the sum of all being
// no more than the table itself; its pages go back when the cache has no slab,
// so that nobody has an object to look for.

#include "slab/slab_internal.h"

#include <assert.h>
#include <sys/mman.h>

enum {
  PAGE_BYTES = 4096,
  HOME_SHIFT = SLAB_GRANULE_SHIFT - 5,  // As slab_table_home has it.
};

static_assert(sizeof(slab_entry_t) == 32, "shifted by 5 in slab_table_home");
static_assert(sizeof(slab_table_t) == 32, "entries follow, aligned");

static size_t num_entries(const slab_table_t *table) {
  return table->mask_bytes / sizeof(slab_entry_t) + 1;
}

static slab_entry_t *entries_of(slab_table_t *table) {
  return (slab_entry_t *)(void *)(table + 1);
}

static slab_entry_t *next_entry(slab_table_t *table, slab_entry_t *entry) {
  slab_entry_t *first = entries_of(table);
  return ++entry == first + num_entries(table) ? first : entry;
}

size_t slab_table_bytes(size_t size_log2) {
  return sizeof(slab_table_t) + (sizeof(slab_entry_t) << size_log2);
}

size_t slab_table_log2(const slab_table_t *table) {
  return (size_t)__builtin_ctzll(num_entries(table));
}

void slab_table_init(slab_table_t *table, size_t size_log2) {
  table->mask_bytes =
      (sizeof(slab_entry_t) << size_log2) - sizeof(slab_entry_t);
}

bool slab_table_has_room(const slab_table_t *table, size_t num_granules) {
  return table->num_used + num_granules <= num_entries(table) / 2;
}

slab_entry_t *slab_table_find(slab_table_t *table, uintptr_t address) {
  // Once: an old table may become all zero meanwhile.
  uintptr_t mask_bytes = __atomic_load_n(&table->mask_bytes, __ATOMIC_RELAXED);
  slab_entry_t *first = entries_of(table);
  size_t home = ((address >> HOME_SHIFT) & mask_bytes) / sizeof(slab_entry_t);
  size_t last = mask_bytes / sizeof(slab_entry_t);
  for (size_t i = 0; i <= last; ++i) {
    slab_entry_t *entry = first + ((home + i) & last);
    // Acquire: with the release in `fill`, the limit's base.
    size_t limit = __atomic_load_n(&entry->limit_bytes, __ATOMIC_ACQUIRE);
    uintptr_t base = __atomic_load_n(&entry->base, __ATOMIC_RELAXED);
    if (base == 0) {
      return NULL;
    }
    if (address - base < limit) {
      return entry;
    }
  }
  return NULL;
}

static uintptr_t first_granule(const slab_t *slab) {
  return (uintptr_t)slab->base >> SLAB_GRANULE_SHIFT;
}

size_t slab_granule_count(const slab_cache_t *cache, const slab_t *slab) {
  uintptr_t last = (uintptr_t)slab->base + slab_span_bytes(cache, slab) - 1;
  return (last >> SLAB_GRANULE_SHIFT) - first_granule(slab) + 1;
}

static void fill(const slab_cache_t *cache, slab_entry_t *entry, slab_t *slab) {
  __atomic_store_n(&entry->states, slab->states, __ATOMIC_RELAXED);
  entry->slab = slab;
  __atomic_store_n(&entry->base, (uintptr_t)slab->base, __ATOMIC_RELAXED);
  __atomic_store_n(&entry->limit_bytes, slab_span_bytes(cache, slab),
                   __ATOMIC_RELEASE);
}

void slab_table_insert(const slab_cache_t *cache, slab_table_t *table,
                       slab_t *slab) {
  uintptr_t granule = first_granule(slab);
  for (size_t i = slab_granule_count(cache, slab); i != 0; --i, ++granule) {
    slab_entry_t *home = slab_table_home(table, granule << SLAB_GRANULE_SHIFT);
    slab_entry_t *entry = home;
    while (entry->limit_bytes != 0) {
      entry = next_entry(table, entry);
    }
    table->num_used += entry->base == 0;
    table->num_displaced += entry != home;
    fill(cache, entry, slab);
  }
}

void slab_table_remove(const slab_cache_t *cache, const slab_t *slab) {
  slab_table_t *table = cache->fast.table;
  uintptr_t granule = first_granule(slab);
  for (size_t i = slab_granule_count(cache, slab); i != 0; --i, ++granule) {
    // Its entries are as many as its granules, each at or behind its home.
    slab_entry_t *entry = slab_table_home(table, granule << SLAB_GRANULE_SHIFT);
    while (entry->limit_bytes == 0 || entry->slab != slab) {
      entry = next_entry(table, entry);
    }
    __atomic_store_n(&entry->limit_bytes, 0, __ATOMIC_RELAXED);
  }
}

void slab_table_replace(slab_cache_t *cache, slab_table_t *bigger) {
  for (size_t list = 0; list < SLAB_LIST_COUNT; ++list) {
    for (slab_t *slab = cache->lists[list].first; slab != NULL;
         slab = slab->next) {
      slab_table_insert(cache, bigger, slab);
    }
  }
  cache->tables[slab_table_log2(bigger)] = bigger;
  // Release: with slab_table_of.
  __atomic_store_n(&cache->fast.table, bigger, __ATOMIC_RELEASE);
}

// Gives the pages of the tables back that were replaced. Whoever reads one all
// the same, with a pointer to no object, finds it all zero: a table with one
// entry, which says nothing.
static void trim_replaced(slab_cache_t *cache) {
  for (size_t i = 0; i < slab_table_log2(cache->fast.table); ++i) {
    size_t size_bytes = slab_table_bytes(i);
    if (cache->tables[i] != NULL && size_bytes >= PAGE_BYTES) {
      madvise(cache->tables[i], size_bytes, MADV_DONTNEED);
    }
  }
}

// Gives the pages of `table` back in which no entry is live.
static void trim_pages(slab_table_t *table, size_t size_bytes) {
  unsigned char *end = (unsigned char *)table + size_bytes;
  for (unsigned char *page = (unsigned char *)table + PAGE_BYTES;
       page + PAGE_BYTES <= end; page += PAGE_BYTES) {
    slab_entry_t *entry = (slab_entry_t *)(void *)page;
    size_t num_live = 0;
    size_t num_used = 0;
    for (size_t i = 0; i < PAGE_BYTES / sizeof(*entry); ++i) {
      num_live += entry[i].limit_bytes != 0;
      num_used += entry[i].base != 0;
    }
    if (num_live == 0 && num_used != 0) {
      table->num_used -= num_used;
      madvise(page, PAGE_BYTES, MADV_DONTNEED);
    }
  }
}

void slab_table_trim(slab_cache_t *cache) {
  if (cache->has_buffer || cache->has_source) {
    return;
  }
  slab_table_t *table = cache->fast.table;
  size_t size_bytes = slab_table_bytes(slab_table_log2(table));
  // If an entry is not at home, the search for it may go through any that was
  // used.
  if (size_bytes >= PAGE_BYTES && table->num_displaced == 0) {
    trim_pages(table, size_bytes);
  }
  if (cache->num_slabs == 0) {
    trim_replaced(cache);
  }
}
