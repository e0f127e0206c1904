// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// How a thread gets a heap, and what becomes of it when the thread exits.
//
// A thread that exits parks its heap, with all that is in it, for the next
// thread: short-lived ones then neither fault memory in nor give it back. Of
// few heaps and small ones only; any other leaves its empty spans to the arena
// and the rest to the orphanage, a heap without a thread; whoever is out of
// blocks adopts them from there first (thread_heap.c).

#include <assert.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "heap/central.h"
#include "heap/fatal.h"
#include "heap/hooks.h"
#include "heap/metadata.h"
#include "heap/thread_heap.h"
#include "heap/thread_internal.h"

#if HEAP_HARDENED
#include "heap/quarantine_push.h"
#endif

enum {
  PARKED_HEAPS_MAX = 4,
  PARKED_SPANS_MAX = 64,  // Of one heap.
};

static_assert(offsetof(heap_thread_t, bins) == 0, "bins are found by offset");

// What the bins of `empty_heap` point to: no block to take, no slot to fill.
static heap_slot_t no_slot;

#define EMPTY_BIN \
  { .top = &no_slot, .limit = &no_slot }

// All of a heap that the fast paths read as long as no span is its own; alone,
// because what has to be relocated is memory in every process.
static heap_bin_t empty_heap[HEAP_CLASS_COUNT]
    __attribute__((aligned(_Alignof(heap_thread_t)))) = {
        [0 ... HEAP_CLASS_COUNT - 1] = EMPTY_BIN};

// The model again: without it here, this file would call __tls_get_addr.
_Thread_local heap_thread_t *heap_thread_fast
    __attribute__((tls_model("initial-exec"))) =
        (heap_thread_t *)(void *)empty_heap;

// The thread's heap, or NULL. Differs from the fast one where hooks are set.
static _Thread_local heap_thread_t *own_heap
    __attribute__((tls_model("initial-exec")));

heap_thread_t heap_orphanage;

// Central lock.
static heap_thread_t *unused_heaps;  // Without spans.
bool heap_threads_were_two;
static heap_thread_t *parked_heaps;
static size_t parked_count;
static pthread_key_t exit_key;
static bool exit_key_created;

static void thread_exited(void *value);

static void init_bins(heap_thread_t *thread) {
  HEAP_ASSERT(heap_bins_slot_count(0, HEAP_CLASS_COUNT) == HEAP_SLOT_COUNT);
  heap_bins_init(thread->bins, thread->slots, 0, HEAP_CLASS_COUNT);
}

// Returns an unused heap or a new one. Central lock held.
static heap_thread_t *heap_create_locked(void) {
  if (heap_orphanage.next != NULL) {
    __atomic_store_n(&heap_threads_were_two, true, __ATOMIC_RELAXED);
  }
  if (!exit_key_created) {
    // Without a key, threads' heaps are never orphaned: a leak, no fault.
    exit_key_created = pthread_key_create(&exit_key, thread_exited) == 0;
  }
  heap_thread_t *thread = parked_heaps;
  if (thread != NULL) {
    parked_heaps = thread->next_free;
    --parked_count;
    return thread;
  }
  thread = unused_heaps;
  if (thread != NULL) {
    unused_heaps = thread->next_free;
    return thread;
  }
  thread = heap_metadata_alloc(sizeof(*thread));
  if (thread == NULL) {
    return NULL;
  }
  init_bins(thread);
  thread->next = heap_orphanage.next;
  heap_orphanage.next = thread;
  return thread;
}

heap_thread_t *heap_thread_get_existing(void) {
  return own_heap;
}

heap_thread_t *heap_thread_get(void) {
  if (own_heap != NULL) {
    return own_heap;
  }
  heap_central_register_fork();
  heap_central_lock();
  heap_thread_t *thread = heap_create_locked();
  heap_central_unlock();
  if (thread == NULL) {
    return NULL;
  }
  own_heap = thread;
  if (heap_hooks() == NULL) {
    heap_thread_fast = thread;
  }
  if (exit_key_created) {
    // May allocate, from the heap that is in place now.
    pthread_setspecific(exit_key, thread);
  }
  return thread;
}

// Destroys `page` if it is empty, otherwise leaves it to whoever adopts it.
// Central lock held.
static void orphan(heap_page_t *page) {
  heap_span_set_owner(page, &heap_orphanage);
  heap_span_recount_hinted(page);
  if (page->frees_to_go == 0) {
    heap_span_destroy(page);
    return;
  }
  page->list = HEAP_SPAN_PARTIAL;
  heap_page_list_push_back(&heap_orphanage.spans[page->size_class].partial,
                           page);
}

static void orphan_list(heap_page_list_t *list) {
  heap_page_t *page;
  while ((page = list->first) != NULL) {
    heap_page_list_remove(list, page);
    orphan(page);
  }
}

#if HEAP_HARDENED
// As if it were another's: the lock is held, and the counts are made later.
static void give_up_quarantine(heap_thread_t *thread) {
  heap_quarantine_t *waiting = &thread->quarantine;
  for (; waiting->queue_count > 0; --waiting->queue_count) {
    heap_quarantine_release(NULL, waiting->queue[waiting->queue_first], 0);
    waiting->queue_first = (waiting->queue_first + 1) % HEAP_QUEUE_SLOTS;
  }
  for (size_t i = 0; i < HEAP_SHUFFLE_SLOTS; ++i) {
    if (waiting->shuffled[i].page != NULL) {
      heap_quarantine_release(NULL, waiting->shuffled[i], 0);
      waiting->shuffled[i] = (heap_waiting_t){0};
    }
  }
  waiting->bytes = 0;
}
#endif

// Takes from an exited thread's heap all that is in it. Central lock held.
static void retire(heap_thread_t *thread) {
#if HEAP_HARDENED
  give_up_quarantine(thread);
#endif
  for (size_t i = 0; i < HEAP_CLASS_COUNT; ++i) {
    heap_class_spans_t *spans = &thread->spans[i];
    heap_bin_empty(&thread->bins[i]);
    if (spans->current != NULL) {
      orphan(spans->current);
      spans->current = NULL;
    }
    orphan_list(&spans->partial);
    orphan_list(&spans->full);
  }
  thread->next_free = unused_heaps;
  unused_heaps = thread;
}

void heap_thread_retire_parked(void) {
  heap_thread_t *thread;
  while ((thread = parked_heaps) != NULL) {
    parked_heaps = thread->next_free;
    retire(thread);
  }
  parked_count = 0;
}

static bool can_be_parked(const heap_thread_t *thread) {
  size_t count = 0;
  for (size_t i = 0; i < HEAP_CLASS_COUNT; ++i) {
    const heap_class_spans_t *spans = &thread->spans[i];
    count += spans->current != NULL;
    for (const heap_page_t *page = spans->partial.first;
         page != NULL && count <= PARKED_SPANS_MAX; page = page->next) {
      ++count;
    }
    for (const heap_page_t *page = spans->full.first;
         page != NULL && count <= PARKED_SPANS_MAX; page = page->next) {
      ++count;
    }
  }
  return parked_count < PARKED_HEAPS_MAX && count <= PARKED_SPANS_MAX;
}

// Runs among the thread's other destructors, which may still allocate and
// free: the thread then gets a heap again, and this runs once more for it.
static void thread_exited(void *value) {
  heap_thread_t *thread = value;
  heap_thread_fast = (heap_thread_t *)(void *)empty_heap;
  own_heap = NULL;
  heap_central_lock();
  if (can_be_parked(thread)) {
    thread->next_free = parked_heaps;
    parked_heaps = thread;
    ++parked_count;
  } else {
    retire(thread);
  }
  heap_central_unlock();
}
