// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// When to give memory back. A purge that waits for a clock never happens in a
// program that has stopped calling us, and a helper thread is not ours to
// start; so the frees themselves purge, as soon as more than a small share of
// the heap is idle. The hard problem is the program that needs the memory
// again at once: purging and faulting in again costs more than all the rest.
// It is recognised by its deeds: if most of what was purged is handed out
// again, that was a mistake, and much more may stay idle from now on, up to
// four times what is used. Once as much as was used at most of late has been
// given back and not been wanted again, half as much. A program whose heap
// swings pays for a few purges and then keeps its memory, as far as that limit
// goes; one that shrinks for good gives it back, to the last call it makes.
// While much may stay idle, a purge is a small step: a mistake then costs
// little, and one that was none is followed by the next.
//
// Invariants: an IDLE page is DIRTY; a PURGED page is not DIRTY; `idle_pages`
// counts the IDLE flags of all arenas.

#include "heap/purge.h"

#include "heap/central.h"
#include "heap/fatal.h"
#include "heap/harden.h"
#include "heap/kernel.h"
#include "heap/page_table.h"

enum {
  KEEP_MIN_PAGES = 8,
  KEEP_SHARE = 32,  // Of what is used, at patience 1.
  // At any patience: so many times what is used, and these.
  KEEP_MOST_TIMES = 4,
  KEEP_MOST_PAGES = 64,
  PATIENCE_MAX = KEEP_MOST_TIMES * KEEP_SHARE,
  PATIENCE_STEP = 16,
  // Less than this share of what is used, reused, says nothing yet.
  EVIDENCE_SHARE = 64,
  // Of the distance to what is used now, at each purge.
  FADE_SHARE = 16,
  // What a purge gives back, of what may stay idle: at patience 1, and above.
  FIRST_STEP_SHARE = 2,
  LATER_STEP_SHARE = 16,
};

// All guarded by the central lock.
static size_t idle_pages;
static size_t patience = 1;
// The most that was used, fading towards what is used.
static size_t most_used_pages;
// Since it last changed; reused are pages that were purged at any time.
static size_t purged_pages;
static size_t reused_pages;

static size_t limit_pages(size_t used_pages) {
  size_t share = used_pages / KEEP_SHARE;
  size_t limit = (share > KEEP_MIN_PAGES ? share : KEEP_MIN_PAGES) * patience;
  size_t most = KEEP_MOST_TIMES * used_pages + KEEP_MOST_PAGES;
  return limit < most ? limit : most;
}

// What says of a page that it is not as new. In the hardened variant that it
// was given back does: somebody may have written to it since.
#define USED_FLAGS \
  (HEAP_HARDENED ? HEAP_PAGE_DIRTY | HEAP_PAGE_PURGED : HEAP_PAGE_DIRTY)

bool heap_purge_note_use(heap_page_flags_t *pages, size_t first, size_t end) {
  bool clean = true;
  for (size_t i = first; i < end; ++i) {
    uint8_t flags = pages->flags[i];
    clean = clean && (flags & USED_FLAGS) == 0;
    idle_pages -= (flags & HEAP_PAGE_IDLE) != 0;
    reused_pages += (flags & HEAP_PAGE_PURGED) != 0;
    pages->flags[i] = HEAP_PAGE_DIRTY;
  }
  return clean;
}

void heap_purge_note_idle(heap_page_flags_t *pages, size_t first, size_t end) {
  if (end > pages->idle_end) {
    pages->idle_end = end;
  }
  for (size_t i = first; i < end; ++i) {
    if (pages->flags[i] == HEAP_PAGE_DIRTY) {
      pages->flags[i] |= pages->is_kept ? HEAP_PAGE_REFUSED : HEAP_PAGE_IDLE;
      idle_pages += !pages->is_kept;
    }
  }
}

void heap_purge_note_gone(heap_page_flags_t *pages, size_t first, size_t end) {
  for (size_t i = first; i < end; ++i) {
    bool was_idle = (pages->flags[i] & HEAP_PAGE_IDLE) != 0;
    idle_pages -= was_idle;
    purged_pages += was_idle;
    bool is_purged =
        was_idle || (pages->flags[i] &
                     (HEAP_HARDENED ? USED_FLAGS : HEAP_PAGE_PURGED)) != 0;
    // What was never used is as new.
    pages->flags[i] = is_purged ? HEAP_PAGE_PURGED : 0;
  }
}

bool heap_purge_is_due(size_t used_pages) {
  if (used_pages > most_used_pages) {
    most_used_pages = used_pages;
  }
  return idle_pages > limit_pages(used_pages);
}

static void set_patience(size_t value) {
  patience = value < PATIENCE_MAX ? value : PATIENCE_MAX;
  purged_pages = 0;
  reused_pages = 0;
}

bool heap_purge_is_eager(void) {
  return patience == 1;
}

size_t heap_purge_begin(size_t used_pages) {
  if (reused_pages > used_pages / EVIDENCE_SHARE &&
      reused_pages > purged_pages / 2) {
    set_patience(patience * PATIENCE_STEP);
  } else if (purged_pages > reused_pages + most_used_pages) {
    set_patience(patience - patience / 2);
  }
  most_used_pages -= (most_used_pages - used_pages) / FADE_SHARE;
  size_t limit = limit_pages(used_pages);
  return limit - limit / (patience == 1 ? FIRST_STEP_SHARE : LATER_STEP_SHARE);
}

// Gives back the idle pages [first, end), or takes them off the idle ones.
static bool discard(heap_page_flags_t *pages, uintptr_t base, size_t first,
                    size_t end) {
  heap_central_count_kernel_call();
  if (heap_kernel->discard((void *)(base + first * HEAP_PAGE_BYTES),
                           (end - first) * HEAP_PAGE_BYTES)) {
    heap_purge_note_gone(pages, first, end);
    return true;
  }
  // Locked memory, say. Not tried again before it is used and freed again.
  for (size_t i = first; i < end; ++i) {
    pages->flags[i] = HEAP_PAGE_DIRTY | HEAP_PAGE_REFUSED;
    --idle_pages;
  }
  return false;
}

// Lowers `idle_end` to the highest idle page's. Each page that it passes was
// passed upwards when it became idle.
static void find_idle_end(heap_page_flags_t *pages) {
  while (pages->idle_end > 0 &&
         (pages->flags[pages->idle_end - 1] & HEAP_PAGE_IDLE) == 0) {
    --pages->idle_end;
  }
}

size_t heap_purge_pages(heap_page_flags_t *pages, uintptr_t base,
                        size_t page_count, size_t keep_pages) {
  size_t purged = 0;
  find_idle_end(pages);
  size_t end = pages->idle_end < page_count ? pages->idle_end : page_count;
  while (end > 0 && idle_pages > keep_pages) {
    size_t most = idle_pages - keep_pages;
    size_t first = end;
    while (first > 0 && end - first < most &&
           (pages->flags[first - 1] & HEAP_PAGE_IDLE) != 0) {
      --first;
    }
    if (first == end) {
      --end;
      continue;
    }
    purged += discard(pages, base, first, end) ? end - first : 0;
    end = first;
  }
  return purged;
}

bool heap_purge_has_idle(heap_page_flags_t *pages) {
  find_idle_end(pages);
  return pages->idle_end > 0;
}

size_t heap_purge_idle_pages(void) {
  return idle_pages;
}
