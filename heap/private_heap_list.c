// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// fork copies a lock that another thread holds, and nobody opens it in the
// child. So the thread that forks takes all of them before, and gives them back
// on both sides: the child finds every heap whole.
//
// Lock order: the list, then the heaps from the first to the last one. Whoever
// has a heap's lock may wait for one that was created after it (a visitor of
// heap_walk_in may use such a heap), and never for the list.

#include "heap/private_heap_list.h"

#include <pthread.h>
#include <stddef.h>

static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
// Guarded by list_lock.
static heap_t *first_heap;
static heap_t *last_heap;

// list_lock held.
static bool is_file_used(heap_file_id_t id) {
  const heap_t *heap = first_heap;
  while (heap != NULL &&
         !(heap->options.use_file && heap->file_id.device == id.device &&
           heap->file_id.inode == id.inode)) {
    heap = heap->next_heap;
  }
  return heap != NULL;
}

static void append(heap_t *heap) {
  heap->next_heap = NULL;
  heap->prev_heap = last_heap;
  if (last_heap != NULL) {
    last_heap->next_heap = heap;
  } else {
    first_heap = heap;
  }
  last_heap = heap;
}

bool heap_private_list_add(heap_t *heap) {
  if (heap->reservation == NULL) {
    return true;  // In a buffer, which may go without a word.
  }
  pthread_mutex_lock(&list_lock);
  bool is_alone = !heap->options.use_file || !is_file_used(heap->file_id);
  if (is_alone) {
    append(heap);
  }
  pthread_mutex_unlock(&list_lock);
  return is_alone;
}

void heap_private_list_remove(heap_t *heap) {
  if (heap->reservation == NULL) {
    return;
  }
  pthread_mutex_lock(&list_lock);
  if (heap->prev_heap != NULL) {
    heap->prev_heap->next_heap = heap->next_heap;
  } else {
    first_heap = heap->next_heap;
  }
  if (heap->next_heap != NULL) {
    heap->next_heap->prev_heap = heap->prev_heap;
  } else {
    last_heap = heap->prev_heap;
  }
  pthread_mutex_unlock(&list_lock);
}

static void before_fork(void) {
  pthread_mutex_lock(&list_lock);
  for (heap_t *heap = first_heap; heap != NULL; heap = heap->next_heap) {
    if (!heap->options.single_threaded) {
      pthread_mutex_lock(&heap->lock);
    }
  }
}

// In the parent and in the child: the mutexes have no owner check, so the
// child's only thread, a copy of the one that locked them, may unlock them.
static void after_fork(void) {
  for (heap_t *heap = first_heap; heap != NULL; heap = heap->next_heap) {
    if (!heap->options.single_threaded) {
      pthread_mutex_unlock(&heap->lock);
    }
  }
  pthread_mutex_unlock(&list_lock);
}

// Before any of the program's handlers, so that these run while the locks are
// free; after central.c's, whose lock is the last one to be taken.
__attribute__((constructor(102))) static void register_fork(void) {
  pthread_atfork(before_fork, after_fork, after_fork);
}
