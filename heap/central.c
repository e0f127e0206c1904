// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// fork: the handlers hold the lock across fork(2), so the child's copy of
// everything behind it is whole.
//
// The first hard problem: other libraries have handlers that take locks of
// theirs, and other threads allocate with these held. So ours must be the last
// to run in the parent's prepare phase, which means to be registered first: by
// the first allocation of the process, or before all constructors if the malloc
// is the program's (malloc_preinit.c) or preloaded (it is linked as the first
// to be initialised).
//
// The second: those that were registered before ours all the same run after it
// in that phase and before it in the child, and they may allocate. The thread
// that forks therefore passes through its own lock: it is the only one that can
// be behind it, and it is not in the middle of anything there.

#include "heap/central.h"

#include <pthread.h>
#include <stdbool.h>

static pthread_mutex_t central_mutex = PTHREAD_MUTEX_INITIALIZER;
static size_t kernel_calls;  // Guarded by central_mutex.

// The thread in fork(2), valid while `forking`. Both atomic, written by that
// thread with the mutex held; `forking` is released after the thread and
// acquired before it: any other thread reads either false or a thread that is
// not itself, not even one that forked before, and goes to the mutex.
static pthread_t forking_thread;
static bool forking;

static bool is_forking_thread(void) {
  return __atomic_load_n(&forking, __ATOMIC_ACQUIRE) &&
         pthread_equal(__atomic_load_n(&forking_thread, __ATOMIC_RELAXED),
                       pthread_self()) != 0;
}

void heap_central_lock(void) {
  if (!is_forking_thread()) {
    pthread_mutex_lock(&central_mutex);
  }
}

void heap_central_unlock(void) {
  if (!is_forking_thread()) {
    pthread_mutex_unlock(&central_mutex);
  }
}

void heap_central_count_kernel_call(void) {
  ++kernel_calls;
}

size_t heap_central_kernel_calls(void) {
  return kernel_calls;
}

static void before_fork(void) {
  pthread_mutex_lock(&central_mutex);
  __atomic_store_n(&forking_thread, pthread_self(), __ATOMIC_RELAXED);
  __atomic_store_n(&forking, true, __ATOMIC_RELEASE);
}

// In the parent and in the child: the mutex has no owner check, so the child's
// only thread, a copy of the one that locked it, may unlock it.
static void after_fork(void) {
  __atomic_store_n(&forking, false, __ATOMIC_RELAXED);
  pthread_mutex_unlock(&central_mutex);
}

void heap_central_register_fork(void) {
  // Two threads at once cannot be: the first one allocates before it makes the
  // second. Set before, as the registration may allocate.
  static bool is_registered;
  if (!is_registered) {
    is_registered = true;
    pthread_atfork(before_fork, after_fork, after_fork);
  }
}

// A function of its own: GCC takes no priority from a definition when there was
// a declaration before.
__attribute__((constructor(101))) static void register_early(void) {
  heap_central_register_fork();
}
