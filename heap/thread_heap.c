// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How a thread finds free blocks, and how threads free each other's.
//
// A span belongs to one thread (or to the orphanage: thread_life.c). Only its
// owner allocates from it, and frees through its bins (bin.c); anybody else
// frees by setting the block's state. Blocks freed so are not counted in
// frees_to_go: that bound becomes exact again when the owner counts the states.
//
// The hard problem: an owner must learn that others freed blocks of its full
// spans, without a read-modify-write a free on memory that all threads share.
// The freeing thread sets the block's state, then looks at the span's hint and,
// only if it is not set yet, sets it and the owner's bit for the class:
//
//   freeing thread                     owner, out of blocks
//   F1 LIVE -> FREED  (exchange)       O1 bit of the class: test and clear
//   F2 hint set? done                  O2 oldest full spans: hint set? clear it
//   F3 hint = 1                        O3 count the states
//   F4 bit of owner's class = 1
//
// All seq_cst. If F2 saw the hint set, the owner clears it (O2) after that and
// counts (O3) after F1. If not, F4 comes after any O1 that missed it, and the
// next time the owner is out of blocks it looks again. Hints are only ever
// hints: a late one, to a span that has meanwhile changed hands or class, costs
// its owner a look. O2 looks at a bounded number of spans, and sets the bit
// again if it did not see them all.
//
// The exchange F1 also makes a double free by two threads at once exact: one of
// them sees the block freed. (A free by the owner at the same instant is a
// plain store: of those two, the heap stays whole, and the later one is not
// always told.)
//
// The blocks that bins hold back, cached or reserved, keep a span of each class
// from being given back. A program that goes on wants them soon; one that only
// frees may never call again, so they have to go before its last free. Once its
// frees have given back many spans in a row, with no group of blocks wanted in
// between, all bins are emptied and closed: what is freed then goes to its span
// at once, until blocks of that class are wanted.
//
// Lock order: none; the central lock is the only one.

#include "heap/thread_heap.h"

#include <errno.h>

#include "heap/central.h"
#include "heap/fatal.h"
#include "heap/purge.h"
#include "heap/thread_internal.h"

enum {
  FULL_SPANS_LOOKED_AT = 16,
  ORPHANS_LOOKED_AT = 4,
  SPANS_SWEPT = 8,
  // Given back in a row, 4 MiB at least: the program is shrinking.
  SHRINKING_SPANS = 64,
};

static uint64_t hint_bit(size_t size_class) {
  return UINT64_C(1) << (size_class % 64);
}

static bool has_hint(heap_thread_t *thread, size_t size_class) {
  return (__atomic_load_n(&thread->remote_hints[size_class / 64],
                          __ATOMIC_SEQ_CST) &
          hint_bit(size_class)) != 0;
}

static void set_hint(heap_thread_t *thread, size_t size_class) {
  __atomic_fetch_or(&thread->remote_hints[size_class / 64],
                    hint_bit(size_class), __ATOMIC_SEQ_CST);
}

static void clear_hint(heap_thread_t *thread, size_t size_class) {
  __atomic_fetch_and(&thread->remote_hints[size_class / 64],
                     ~hint_bit(size_class), __ATOMIC_SEQ_CST);
}

// Looks for a full span of which others freed blocks.
static heap_page_t *find_hinted(heap_thread_t *thread, size_t size_class) {
  if (!has_hint(thread, size_class)) {
    return NULL;
  }
  clear_hint(thread, size_class);
  heap_class_spans_t *spans = &thread->spans[size_class];
  heap_page_t *last = spans->full.last;
  for (int i = 0; i < FULL_SPANS_LOOKED_AT; ++i) {
    heap_page_t *page = spans->full.first;
    if (page == NULL) {
      return NULL;
    }
    heap_page_list_remove(&spans->full, page);
    if (heap_span_is_hinted(page)) {
      heap_span_recount_hinted(page);
      if (page->free_groups != 0) {
        set_hint(thread, size_class);  // There may be more behind it.
        return page;
      }
    }
    heap_class_spans_push_full(spans, page);
    if (page == last) {
      return NULL;
    }
  }
  set_hint(thread, size_class);
  return NULL;
}

// Frees those of the first `most` spans of a list that others emptied; of the
// other ones, what was full and has free blocks is moved to the partial ones.
// Returns how many spans are left to be looked at. Central lock held.
static size_t sweep_list(heap_thread_t *thread, size_t size_class,
                         heap_page_list_t *list, size_t most) {
  heap_class_spans_t *spans = &thread->spans[size_class];
  heap_page_t *last = list->last;
  while (last != NULL && most > 0) {
    heap_page_t *page = list->first;
    bool was_last = page == last;
    --most;
    heap_page_list_remove(list, page);
    if (heap_span_is_hinted(page)) {
      heap_span_recount_hinted(page);
      if (page->frees_to_go == 0) {
        heap_span_destroy(page);
        page = NULL;
      } else if (list == &spans->full && page->free_groups != 0) {
        page->list = HEAP_SPAN_PARTIAL;
        heap_page_list_push_back(&spans->partial, page);
        page = NULL;
      } else if (list == &spans->full) {
        page->frees_to_go = 1;
      }
    }
    if (page != NULL) {
      heap_page_list_push_back(list, page);
    }
    if (was_last) {
      return most;
    }
  }
  return most;
}

// Frees spans of `size_class` that others emptied, looking at `most` of them.
// Central lock held; by the owner.
static void sweep_class(heap_thread_t *thread, size_t size_class, size_t most) {
  heap_class_spans_t *spans = &thread->spans[size_class];
  clear_hint(thread, size_class);
  // Partial ones first, or those that were full would be looked at twice.
  most = sweep_list(thread, size_class, &spans->partial, most);
  if (sweep_list(thread, size_class, &spans->full, most) == 0) {
    set_hint(thread, size_class);  // There may be more.
  }
}

// Sweeps the first class of which others freed anything. Central lock held; by
// the owner.
static void sweep(heap_thread_t *thread) {
  for (size_t word = 0; word < HEAP_HINT_WORDS; ++word) {
    uint64_t hints =
        __atomic_load_n(&thread->remote_hints[word], __ATOMIC_SEQ_CST);
    if (hints != 0) {
      sweep_class(thread, word * 64 + (size_t)__builtin_ctzll(hints),
                  SPANS_SWEPT);
      return;
    }
  }
}

void heap_thread_sweep(void) {
  heap_thread_t *thread = heap_thread_get_existing();
  if (thread != NULL) {
    sweep(thread);
  }
}

// Central lock held.
static heap_page_t *adopt(heap_thread_t *thread, size_t size_class) {
  for (int i = 0; i < ORPHANS_LOOKED_AT; ++i) {
    heap_page_t *page =
        heap_class_spans_pop_partial(&heap_orphanage.spans[size_class]);
    if (page == NULL) {
      return NULL;
    }
    // First the owner, then the count: a hint set after the count finds us.
    heap_span_set_owner(page, thread);
    heap_span_recount_hinted(page);
    if (page->free_groups != 0) {
      return page;
    }
    heap_class_spans_push_full(&thread->spans[size_class], page);
  }
  return NULL;
}

static heap_page_t *adopt_or_create(heap_thread_t *thread, size_t size_class) {
  heap_central_lock();
  heap_page_t *page = adopt(thread, size_class);
  if (page == NULL) {
    sweep(&heap_orphanage);
    sweep(thread);
    page = heap_span_create(size_class, thread);
  }
  heap_central_unlock();
  return page;
}

bool heap_thread_refill(heap_thread_t *thread, size_t size_class) {
  heap_class_spans_t *spans = &thread->spans[size_class];
  heap_bin_t *bin = &thread->bins[size_class];
  thread->spans_freed = 0;
  if (heap_bin_is_closed(bin)) {
    heap_bin_open(bin, size_class);
  }
  while (!heap_bin_refill(bin, spans)) {
    heap_page_t *page = find_hinted(thread, size_class);
    if (page == NULL) {
      page = adopt_or_create(thread, size_class);
    }
    if (page == NULL) {
      return false;
    }
    heap_class_spans_set_current(spans, page);
  }
  return true;
}

// Called by frees, which preserve `errno`; a purge may have changed it.
static void destroy(heap_page_t *page) {
  int saved_errno = errno;
  heap_central_lock();
  heap_span_destroy(page);
  heap_central_unlock();
  errno = saved_errno;
}

// Frees what the thread holds back of a class, and lets it hold nothing back
// until it needs blocks of that class.
static void close_bin(heap_thread_t *thread, size_t size_class) {
  heap_class_spans_t *spans = &thread->spans[size_class];
  heap_bin_t *bin = &thread->bins[size_class];
  heap_page_t *empty = heap_bin_return_group(bin, spans);
  if (empty != NULL) {
    destroy(empty);
  }
  while (bin->top->ptr != NULL) {
    heap_slot_t slot = *bin->top;
    --bin->top;
    heap_thread_release_own(thread, heap_page_of((uintptr_t)slot.ptr),
                            heap_bin_state_of(&slot));
  }
  heap_bin_close(bin);
}

static void close_bins(heap_thread_t *thread) {
  for (size_t i = 0; i < HEAP_CLASS_COUNT; ++i) {
    close_bin(thread, i);
  }
}

// Gives back the pages without live blocks of the span that has been partial
// for the longest time, one of each class: what the program keeps.
static void discard_in_oldest(heap_thread_t *thread) {
  int saved_errno = errno;
  heap_central_lock();
  for (size_t i = 0; i < HEAP_CLASS_COUNT && heap_purge_is_eager(); ++i) {
    heap_page_t *oldest = thread->spans[i].partial.last;
    if (oldest != NULL) {
      heap_span_discard(oldest);
    }
  }
  heap_central_unlock();
  errno = saved_errno;
}

// Out of line, so that heap_thread_span_freed() needs no stack frame.
static void __attribute__((noinline))
give_up(heap_thread_t *thread, heap_page_t *page) {
  destroy(page);
  uint32_t spans = ++thread->spans_freed;
  if (spans == SHRINKING_SPANS) {
    // Once: those that this frees come after that number.
    close_bins(thread);
  } else if (spans > SHRINKING_SPANS && (spans & (spans - 1)) == 0) {
    discard_in_oldest(thread);
  }
}

void heap_thread_span_freed(heap_thread_t *thread, heap_page_t *page) {
  size_t size_class = page->size_class;
  if (heap_class_spans_freed(&thread->spans[size_class],
                             &thread->bins[size_class], page)) {
    give_up(thread, page);
  }
}

// Adds to a counter that only the calling thread writes.
static void add_to_own(size_t *counter, size_t amount) {
  __atomic_store_n(counter, *counter + amount, __ATOMIC_RELAXED);
}

void heap_thread_note_refill(heap_thread_t *thread, size_t size_class,
                             size_t size_bytes) {
  add_to_own(&thread->refills.count, 1);
  add_to_own(&thread->refills.request_bytes, size_bytes);
  add_to_own(&thread->refills.block_bytes,
             heap_class_info[size_class].size_bytes);
}

const heap_thread_t *heap_thread_all(void) {
  return &heap_orphanage;
}

heap_refill_totals_t heap_thread_refill_totals(void) {
  heap_refill_totals_t sum = {0};
  for (const heap_thread_t *thread = &heap_orphanage; thread != NULL;
       thread = thread->next) {
    const heap_refill_totals_t *own = &thread->refills;
    sum.count += __atomic_load_n(&own->count, __ATOMIC_RELAXED);
    sum.request_bytes += __atomic_load_n(&own->request_bytes, __ATOMIC_RELAXED);
    sum.block_bytes += __atomic_load_n(&own->block_bytes, __ATOMIC_RELAXED);
  }
  return sum;
}

void heap_thread_freed_behind(heap_thread_t *thread, heap_page_t *page,
                              uint8_t *state) {
  heap_thread_note_freed(thread, heap_span_of(page), state);
}

// Tells the owner of `span` that another thread set a block's state to freed.
// The span may be another one by now.
static void hint_owner(heap_page_t *span) {
  if (heap_span_is_hinted(span)) {
    return;
  }
  __atomic_store_n(&span->remote_hint, 1, __ATOMIC_SEQ_CST);
  // After the hint: if this is another span by now, its class and owner are
  // told, or else the hint would keep its own frees from telling them.
  heap_thread_t *owner = __atomic_load_n(&span->owner, __ATOMIC_SEQ_CST);
  size_t size_class = __atomic_load_n(&span->size_class, __ATOMIC_SEQ_CST);
  if ((HEAP_CHECKED || owner != NULL) && !has_hint(owner, size_class)) {
    set_hint(owner, size_class);
  }
}

bool heap_thread_free_foreign(heap_page_t *page, uint8_t *state) {
  // Once the block is free its span may become another one at any time.
  heap_page_t *span = heap_span_of(page);
  // F1; also the release that the owner's count acquires.
  uint8_t expected = HEAP_BLOCK_LIVE;
  if (!__atomic_compare_exchange_n(state, &expected, HEAP_BLOCK_FREED, false,
                                   __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
    return false;
  }
  hint_owner(span);
  return true;
}

// For heap_class_spans_settle(). Central lock held.
static void give_back(void *context, heap_page_t *page) {
  (void)context;
  heap_span_destroy(page);
}

#if HEAP_HARDENED
void heap_thread_release_foreign(heap_page_t *page, uint8_t *state) {
  heap_page_t *span = heap_span_of(page);
  // F1. Nobody else changes the state of a block that waits.
  __atomic_store_n(state, HEAP_BLOCK_FREED, __ATOMIC_SEQ_CST);
  hint_owner(span);
}
#endif

// Gives the pages back that nobody uses in partial spans. Central lock held.
static size_t discard_pages(const heap_class_spans_t *spans) {
  size_t discarded_bytes = 0;
  for (heap_page_t *page = spans->partial.first; page != NULL;
       page = page->next) {
    discarded_bytes += heap_span_discard(page);
  }
  return discarded_bytes;
}

size_t heap_thread_give_back(size_t size_class, bool with_pages) {
  heap_thread_t *thread = heap_thread_get_existing();
  size_t discarded_bytes = 0;
  if (thread != NULL) {
    heap_class_spans_settle(&thread->spans[size_class],
                            &thread->bins[size_class], give_back, NULL);
  }
  if (thread != NULL && with_pages) {
    discarded_bytes = discard_pages(&thread->spans[size_class]);
  }
  sweep_class(&heap_orphanage, size_class, SIZE_MAX);
  if (with_pages) {
    discarded_bytes += discard_pages(&heap_orphanage.spans[size_class]);
  }
  return discarded_bytes;
}
