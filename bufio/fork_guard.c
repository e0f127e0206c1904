// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A list with a lock that fork takes, so that the child, which has one thread,
// finds the list whole. Objects themselves may have been caught in the middle
// of anything by a fork in another thread: `in_child` resets rather than
// repairs.
//
// The handlers are installed before `main`, so before those of the program: in
// the child they come first, and before the fork last. So a handler of the
// program may open and close what it likes: it does not find the list locked,
// nor, in the child, a writer that still has its parent's bytes.
//
// Locks: this one is the innermost.

#include "bufio/fork_guard.h"

#include <errno.h>
#include <pthread.h>

#include "bufio/exit_flush.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
// Guarded by lock.
static bufio_fork_node_t *first;
static int install_status = -ENOMEM;  // Written once, by `once`.
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void before_fork(void) {
  pthread_mutex_lock(&lock);
}

static void after_fork_in_parent(void) {
  pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void) {
  for (bufio_fork_node_t *node = first; node != NULL; node = node->next) {
    node->in_child(node);
  }
  bufio_exit_after_fork();
  pthread_mutex_unlock(&lock);
}

static void install(void) {
  install_status =
      -pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

// 101 is the first that is the program's: static objects of C++ come later.
__attribute__((constructor(101))) static void install_first(void) {
  pthread_once(&once, install);
}

int bufio_fork_guard_add(bufio_fork_node_t *node,
                         void (*in_child)(bufio_fork_node_t *node)) {
  pthread_once(&once, install);
  if (install_status < 0) {
    return install_status;
  }
  node->in_child = in_child;
  node->previous = NULL;
  pthread_mutex_lock(&lock);
  node->next = first;
  if (first != NULL) {
    first->previous = node;
  }
  first = node;
  pthread_mutex_unlock(&lock);
  return 0;
}

void bufio_fork_guard_remove(bufio_fork_node_t *node) {
  if (node->in_child == NULL) {
    return;
  }
  pthread_mutex_lock(&lock);
  if (node->previous != NULL) {
    node->previous->next = node->next;
  } else {
    first = node->next;
  }
  if (node->next != NULL) {
    node->next->previous = node->previous;
  }
  pthread_mutex_unlock(&lock);
  node->in_child = NULL;
}
