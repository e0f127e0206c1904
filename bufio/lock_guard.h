// Copyright The my_alloc Authors
// SPDX-License-Identifier: Apache-2.0

// A mutex that is not left locked by pthread_cancel. Internal.

#ifndef MY_ALLOC_BUFIO_LOCK_GUARD_H_
#define MY_ALLOC_BUFIO_LOCK_GUARD_H_

#include <pthread.h>

#ifdef __cplusplus
extern "C" {
#endif

// Locks, and has the calling thread not cancelled before it unlocks: write(2),
// fdatasync(2) and waiting are places where it could be, and then nobody would
// unlock, or lead. Returns what `bufio_unlock` takes.
static inline int bufio_lock(pthread_mutex_t *mutex) {
  int cancel_state = PTHREAD_CANCEL_ENABLE;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel_state);
  pthread_mutex_lock(mutex);
  return cancel_state;
}

static inline void bufio_unlock(pthread_mutex_t *mutex, int cancel_state) {
  pthread_mutex_unlock(mutex);
  pthread_setcancelstate(cancel_state, &cancel_state);
}

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // MY_ALLOC_BUFIO_LOCK_GUARD_H_
