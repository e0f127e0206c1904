// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// What pthread_cancel must not come between: a mutex and its unlock, a call to
// the kernel and its account. Internal.

#ifndef MY_ALLOC_BUFIO_LOCK_GUARD_H_
#define MY_ALLOC_BUFIO_LOCK_GUARD_H_

#include <pthread.h>

#ifdef __cplusplus
extern "C" {
#endif

// Has the calling thread not cancelled before `bufio_hold_end`, which takes
// what this returns.
static inline int bufio_hold_begin(void) {
  int cancel_state = PTHREAD_CANCEL_ENABLE;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
  return cancel_state;
}

static inline void bufio_hold_end(int cancel_state) {
  pthread_setcancelstate(cancel_state, &cancel_state);
}

// Locks, and has the calling thread not cancelled before it unlocks: write(2),
// fdatasync(2) and waiting are places where it could be, and then nobody would
// unlock, or lead. Returns what `bufio_unlock` takes.
static inline int bufio_lock(pthread_mutex_t *mutex) {
  int cancel_state = bufio_hold_begin();
  pthread_mutex_lock(mutex);
  return cancel_state;
}

static inline void bufio_unlock(pthread_mutex_t *mutex, int cancel_state) {
  pthread_mutex_unlock(mutex);
  bufio_hold_end(cancel_state);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_LOCK_GUARD_H_
