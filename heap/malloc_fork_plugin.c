// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A library as many are: a lock of its own, held while it allocates, and by its
// handlers across a fork. They are registered before any constructor of the
// program runs.

#include <pthread.h>
#include <stdlib.h>

void plugin_work(void);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void before_fork(void) {
  pthread_mutex_lock(&lock);
}

static void after_fork(void) {
  pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void register_handlers(void) {
  pthread_atfork(before_fork, after_fork, after_fork);
}

// The block is one for which the heap has a lock.
void plugin_work(void) {
  pthread_mutex_lock(&lock);
  void *volatile ptr = malloc(50000);
  free(ptr);
  pthread_mutex_unlock(&lock);
}
